"""Evaluate as one of several processes: ``deepspeed --module onellm.eval.launch --model DIR …``.

The arguments are those of ``onellm eval``. Any launcher will do that sets ``RANK`` and
``WORLD_SIZE``; the processes share nothing but the folder ``--out``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from onellm.eval.parts import Shard


def shard_from_environment() -> Shard:
    """This process among the others, from what launchers set; alone without them."""
    return Shard(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


def local_device() -> str:
    """The GPU of this process among those of its machine, ``""`` where it is alone on one."""
    import torch

    if "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``onellm eval`` with a launcher's arguments.

    Args:
        arguments: the process's own if left out.
    """
    from onellm.cli import app

    given = sys.argv[1:] if arguments is None else list(arguments)
    # DeepSpeed's launcher adds it; LOCAL_RANK in the environment says the same.
    app(["eval", *(word for word in given if not word.startswith("--local_rank"))])


if __name__ == "__main__":
    main()
