"""Where the packaged starter data lie."""

from __future__ import annotations

from pathlib import Path

from onellm.errors import BadInput


def starter_folder() -> Path:
    """Folder of the packaged shards, ``<modality>-train.tar`` and ``<modality>-test.tar``.

    Raises:
        BadInput: the package was installed without its data.
    """
    folder = Path(__file__).parent / "starter"
    if not folder.is_dir():
        raise BadInput(
            folder,
            expected="the starter data of this package",
            found="no such folder",
            hint="Reinstall the package, or name a folder of your own.",
        )
    return folder
