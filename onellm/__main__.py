"""``python -m onellm`` is the command ``onellm``."""

from onellm.cli import main

if __name__ == "__main__":
    main()
