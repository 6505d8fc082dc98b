"""Where a signal comes from: a path, a file held in memory, or an array.

A *source* is one of

* ``str`` or ``pathlib.Path``: a file;
* :class:`Blob`: a file held in memory (a member of a tar shard);
* a NumPy array, a tensor or a Pillow picture: the data themselves;
* a mapping ``{"data": source, **facts}``: a source with facts that the file does not hold
  (``rate_hz`` of an IMU recording, say);
* a pair ``(rgb, map)`` for modalities that take two aligned pictures.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from onellm.errors import BadInput

Source = Any


@dataclass(frozen=True)
class Blob:
    """A file held in memory.

    Args:
        name: file name with suffix; it stands in error messages and picks the reader.
        data: the bytes of the file.
    """

    name: str
    data: bytes

    def __repr__(self) -> str:
        return f"Blob({self.name!r}, {len(self.data)} bytes)"


def source_name(source: Source) -> str:
    """Name a source in an error message: its path, or what kind of array it is."""
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, Blob):
        return source.name
    if isinstance(source, Mapping):
        return source_name(source.get("data"))
    if isinstance(source, tuple | list):
        return " + ".join(source_name(part) for part in source)
    shape = getattr(source, "shape", None)
    kind = type(source).__name__
    return f"<{kind} of shape {tuple(shape)}>" if shape is not None else f"<{kind}>"


def is_file(source: Source) -> bool:
    """True for a path or a :class:`Blob`, False for data already in memory."""
    return isinstance(source, str | Path | Blob)


def suffix_of(source: Source) -> str:
    """Lower-case suffix of a file source, ``.nii.gz`` kept whole."""
    name = source_name(source).lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def open_file(
    source: Source, *, suffixes: Sequence[str], expected: str, max_megabytes: float
) -> BinaryIO:
    """Open a file source after the checks every reader needs.

    Args:
        source: a path or a :class:`Blob`.
        suffixes: lower-case suffixes the reader understands.
        expected: what the file should hold, for the error message.
        max_megabytes: refuse larger files (10^6 bytes).

    Returns:
        A binary file positioned at its start; the caller closes it.

    Raises:
        BadInput: missing, not a file, unreadable, empty, too large, or of a foreign type.
    """
    name, suffix = source_name(source), suffix_of(source)
    if suffix not in suffixes:
        what = f"a file of type {suffix!r}" if suffix else "a file without a suffix"
        raise BadInput(name, expected=f"{expected} ({', '.join(suffixes)})", found=what)
    if isinstance(source, Blob):
        size = len(source.data)
    else:
        path = Path(source)
        try:
            if not path.exists():
                raise BadInput(name, expected=expected, found="no such file")
            if not path.is_file():
                raise BadInput(name, expected=expected, found="a folder")
            size = path.stat().st_size
        except OSError as error:  # a name too long for the file system, a folder without access
            found = f"an unreadable file ({error.strerror})"
            raise BadInput(name, expected=expected, found=found) from error
    if size == 0:
        raise BadInput(name, expected=expected, found="an empty file")
    if size > max_megabytes * 1e6:
        raise BadInput(
            name,
            expected=f"{expected} of at most {max_megabytes:g} MB",
            found=f"{size / 1e6:.1f} MB",
            hint="Cut it into pieces or raise max_megabytes of the modality.",
        )
    if isinstance(source, Blob):
        return io.BytesIO(source.data)
    try:
        return Path(source).open("rb")
    except OSError as error:
        raise BadInput(name, expected=expected, found=f"an unreadable file ({error})") from error
