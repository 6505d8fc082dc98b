"""Names for what a result depends on: the files of a model, and annotation files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from onellm.errors import BadInput

_SAMPLE = 1 << 20
_MODEL_FILES = ("*.json", "*.safetensors", "*.pth", "*.model", "tokenizer/*")


def model_fingerprint(folder: str | Path) -> str:
    """A name for a saved model: 16 hexadecimal digits.

    Of each file it takes name, size, first and last megabyte: enough to tell one training run
    from another, without reading 14 GB.

    Args:
        folder: what ``save_pretrained`` wrote.

    Raises:
        BadInput: a folder without a model.
    """
    root = Path(folder)
    files = sorted({path for pattern in _MODEL_FILES for path in root.glob(pattern)})
    files = [path for path in files if path.is_file() and not path.name.startswith(".")]
    named = [path for path in files if _belongs(path.relative_to(root))]
    if not (root / "config.json").is_file():
        raise BadInput(root, expected="a saved model", found="no config.json")
    return _digest(root, named, sampled=True)[:16]


def _belongs(path: Path) -> bool:
    """Whether a file beside a model is part of it; the quick start puts its report there."""
    return path.suffix != ".json" or path.name == "config.json" or len(path.parts) > 1


def files_fingerprint(root: str | Path, files: Iterable[Path]) -> str:
    """A name for the whole contents of some files: 16 hexadecimal digits.

    Args:
        root: folder that their names are taken below.
        files: which; folders and files that are not there count by their names alone.
    """
    return _digest(Path(root), files, sampled=False)[:16]


def _digest(root: Path, files: Iterable[Path], *, sampled: bool) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{os.path.relpath(path, root)}\n".encode())
        if not path.is_file():
            continue
        size = path.stat().st_size
        digest.update(f"{size}\n".encode())
        with path.open("rb") as file:
            if sampled and size > 2 * _SAMPLE:
                digest.update(file.read(_SAMPLE))
                file.seek(-_SAMPLE, 2)
            for chunk in iter(lambda: file.read(_SAMPLE), b""):
                digest.update(chunk)
    return digest.hexdigest()
