"""Where the samples of a tar are, by its headers alone."""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from onellm.errors import BadInput

_BLOCK = 1 << 20

Member = tuple[int, int]
"""First byte and number of bytes."""


@dataclass(frozen=True)
class Entry:
    """One sample of a tar.

    Args:
        key: what its members' names have in common.
        members: suffix without its first dot → where it is.
    """

    key: str
    members: Mapping[str, Member]


def entries_of(path: Path, descriptor: int) -> list[Entry]:
    """Find the samples of an open tar.

    Args:
        path: for error messages.
        descriptor: of the open file.

    Raises:
        BadInput: compressed, damaged, cut off, empty, or with one key in two places.
    """
    entries: list[Entry] = []
    try:
        with (
            os.fdopen(os.dup(descriptor), "rb") as stream,
            tarfile.open(fileobj=stream, mode="r:") as tar,
        ):
            _check_end(path, stream)
            for member in tar:
                if member.isfile():
                    _put(path, entries, member)
                elif member.islnk() or member.issym():  # as tar writes a file's second name
                    found = f"the link {member.name!r}"
                    hint = "Write the tar with --hard-dereference or -h."
                    raise BadInput(path, expected="files", found=found, hint=hint)
            _check_rest(path, stream, tar.offset)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        head = os.pread(descriptor, 16, 0)
        hint = "Compressed tars cannot be read at any place: unpack them." if _packed(head) else ""
        expected = "a readable tar file"
        found = getattr(error, "strerror", None) or f"{error}; it begins with {head!r}"
        raise BadInput(path, expected=expected, found=found, hint=hint) from error
    if not entries:
        raise BadInput(path, expected="a tar of samples", found="no sample in it")
    key, times = Counter(entry.key for entry in entries).most_common(1)[0]
    if times > 1:
        found = f"{key!r} in {times} places"
        raise BadInput(path, expected="members of a sample next to each other", found=found)
    return entries


def _put(path: Path, entries: list[Entry], member: tarfile.TarInfo) -> None:
    folder, _, file = member.name.rpartition("/")
    stem, dot, suffix = file.partition(".")
    if not dot or not stem:  # notes of the author, hidden files
        return
    key = f"{folder}/{stem}" if folder else stem
    if not entries or entries[-1].key != key:
        entries.append(Entry(key, {}))
    members: Any = entries[-1].members
    if suffix.lower() in members:
        found = f"{member.name!r} twice"
        raise BadInput(path, expected="members of a sample with different suffixes", found=found)
    members[suffix.lower()] = (member.offset_data, member.size)


def _packed(head: bytes) -> bool:
    return head[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7", b"\x28\xb5")


def _check_end(path: Path, stream: BinaryIO) -> None:
    """Find a tar that was cut off between two members, which reads like a shorter one."""
    stream.seek(max(0, stream.seek(0, os.SEEK_END) - 1024))
    if stream.read().strip(b"\0"):  # every tar ends with two blocks of zeros
        found = "one without its end mark: it is cut off"
        raise BadInput(path, expected="a readable tar file", found=found)


def _check_rest(path: Path, stream: BinaryIO, end: int) -> None:
    """Find what lies behind the end mark, where nobody would read it."""
    stream.seek(end)
    while block := stream.read(_BLOCK):
        if block.strip(b"\0"):
            found = "more behind its end mark: tars that were put one behind the other"
            hint = "Put them together with tar --concatenate, or name them one by one."
            raise BadInput(path, expected="one tar", found=found, hint=hint)
