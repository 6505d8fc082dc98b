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

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from onellm.errors import BadInput

Source = Any

_STAMPED = 1 << 16


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


def file_key(source: Source) -> str:
    """What tells a source of files from others: paths and facts; "" where data are in memory.

    Example:
        >>> file_key({"data": "walk.npy", "window_start": 2.0})
        'walk.npy?window_start=2.0'
    """
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, Mapping) and "data" in source:
        facts = "&".join(f"{k}={v}" for k, v in sorted(source.items()) if k != "data")
        inner = file_key(source["data"])
        return f"{inner}?{facts}" if inner and facts else inner
    if isinstance(source, tuple | list):
        parts = [file_key(part) for part in source]
        return "+".join(parts) if all(parts) else ""
    return ""


def stamp_of(source: Source) -> str:
    """A hash by which a source's data are known again, wherever its files lie.

    Of files, the size and the first and last 64 KiB are looked at.

    Args:
        source: any source.

    Raises:
        BadInput: a file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=12)
    _stamp(source, digest)
    return digest.hexdigest()


def _stamp(source: Source, digest: Any) -> None:
    if isinstance(source, Mapping):
        for key, value in sorted(source.items()):
            digest.update(f"{key}=".encode())
            _stamp(value, digest)
    elif isinstance(source, tuple | list):
        for part in source:
            _stamp(part, digest)
    elif isinstance(source, Blob):
        digest.update(source.data)
    elif isinstance(source, str | Path) and Path(source).is_file():
        try:
            with Path(source).open("rb") as file:
                size = file.seek(0, io.SEEK_END)
                digest.update(f"{size} ".encode())
                for start in (0, max(0, size - _STAMPED)):
                    file.seek(start)
                    digest.update(file.read(_STAMPED))
        except OSError as error:
            found = f"an unreadable file ({error.strerror or error})"
            raise BadInput(source, expected="a file", found=found) from error
    elif hasattr(source, "tobytes"):  # an array or a picture
        digest.update(source.tobytes())
    else:
        digest.update(repr(source).encode())


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
        found = f"an unreadable file ({error.strerror or error})"
        raise BadInput(name, expected=expected, found=found) from error
