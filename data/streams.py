"""Shards that lie elsewhere: found by a pattern, fetched when they are wanted, kept for a while."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shlex
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import urlparse

from onellm.data.tars import LISTING
from onellm.errors import BadInput

_BLOCK = 1 << 20


def is_address(path: str) -> bool:
    """Whether a path is for fetching: ``https://…``, ``s3://…``, ``pipe:COMMAND`` and the like."""
    return path.startswith("pipe:") or bool(re.match(r"[a-z][a-z0-9+]+://", path))


def find_shards(paths: Iterable[str]) -> list[str]:
    """Expand folders, ``*`` patterns and ``{000..099}`` ranges into shards.

    Args:
        paths: of shards, as the user wrote them.

    Raises:
        BadInput: one of them leads to nothing.
    """
    from braceexpand import braceexpand  # webdataset's own

    found: list[str] = []
    for path in paths:
        for one in [path] if path.startswith("pipe:") and "{" not in path else braceexpand(path):
            if is_address(one):
                found.append(one)
            elif Path(one).is_dir():
                found += sorted(map(str, Path(one).glob("*.tar")))
            elif any(c in one for c in "*?["):
                found += sorted(str(p) for p in Path(one).parent.glob(Path(one).name))
            else:
                found.append(one)
        if not found:
            raise BadInput(path, expected="tar files", found="none")
    return found


def listed_sizes(shards: Iterable[str], shelf: Shelf) -> dict[str, int]:
    """Numbers of samples that the ``shards.json`` beside shards tells; {} where there is none.

    Args:
        shards: paths and addresses.
        shelf: fetches the listing of addresses.
    """
    sizes: dict[str, int] = {}
    listings: dict[str, dict[str, int]] = {}
    for shard in shards:
        base, slash, name = shard.rpartition("/")
        if shard.startswith("pipe:"):
            continue
        if base not in listings:
            listings[base] = _listing(f"{base}{slash}{LISTING}", shelf)
        if name in listings[base]:
            sizes[shard] = listings[base][name]
    return sizes


def _listing(place: str, shelf: Shelf) -> dict[str, int]:
    try:
        text = shelf.path(place).read_text(encoding="utf-8")
    except (BadInput, OSError):
        return {}
    try:
        return {name: int(one["samples"]) for name, one in json.loads(text)["shards"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(place, expected="a listing of shards", found=f"{error!r}") from error


_CURL = {
    6: "no such host",
    7: "no connection",
    18: "it was cut off",
    22: "the server refused it: no such file, or no right to it",
    28: "the time ran out",
    60: "the server's certificate is not trusted",
}


def _reason(place: str, error: Exception) -> str:
    """Why a file could not be fetched, in words; the tools tell an exit code among much else."""
    match = re.search(r"exit (\d+)", str(error))
    if match is None:
        return f"{error}"
    code = int(match.group(1))
    if re.match(r"https?:|ftps:|sftp:|scp:", place):
        return _CURL.get(code, f"curl ended with code {code}")
    return f"its command ended with code {code}"


class Shelf:
    """A folder for fetched files, shared by the processes of a machine.

    Args:
        folder: made when the first file is fetched.
        gigabytes: 10^9 bytes; the files used longest ago make room for new ones.
    """

    def __init__(self, folder: str | Path, gigabytes: float = 100.0) -> None:
        self.folder, self.bytes = Path(folder), gigabytes * 1e9

    def path(self, place: str) -> Path:
        """A local file for a path or address, fetched if it is not there yet.

        Raises:
            BadInput: it cannot be fetched.
        """
        if not is_address(place):
            return Path(place)
        # Not the whole address, which may hold a key that should not stand in a file name.
        name = Path(urlparse(place).path).name if not place.startswith("pipe:") else ""
        digest = hashlib.blake2b(place.encode(), digest_size=8).hexdigest()
        file = self.folder / f"{digest}-{re.sub(r'[^A-Za-z0-9._-]', '_', name)[-60:]}"
        if not file.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / f".{digest}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # one process fetches, the others wait for it
                if not file.is_file():
                    self._fetch(place, file)
                    self._make_room(file)
        now = time.time_ns()  # finer than what the system takes for now
        os.utime(file, ns=(now, now))
        return file

    def count(self, place: str, count: Callable[[Path], int]) -> int:
        """A number found in a fetched file, which is kept when the file makes room for others.

        Args:
            place: the address.
            count: finds it; one process of a machine does, once.

        Raises:
            BadInput: it cannot be fetched, or ``count`` refuses it.
        """
        digest = hashlib.blake2b(place.encode(), digest_size=8).hexdigest()
        self.folder.mkdir(parents=True, exist_ok=True)
        note = self.folder / f".{digest}.count"
        with (self.folder / f".{digest}.counting").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                return int(note.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                found = count(self.path(place))
            temporary = note.with_suffix(".tmp")
            temporary.write_text(str(found), encoding="utf-8")
            temporary.replace(note)
        return found

    def _fetch(self, place: str, file: Path) -> None:
        from webdataset.gopen import gopen, gopen_schemes

        opened = place
        if place.startswith("s3://") and "s3" not in gopen_schemes:
            opened = f"pipe:aws s3 cp {shlex.quote(place)} -"
        temporary = file.with_name(f".{file.name}.tmp")
        try:
            with gopen(opened, "rb", bufsize=_BLOCK) as stream, temporary.open("wb") as out:
                while block := stream.read(_BLOCK):
                    out.write(block)
        except Exception as error:  # curl's and the cloud tools' own kinds
            temporary.unlink(missing_ok=True)
            found, expected = _reason(place, error), "a file that can be fetched"
            raise BadInput(place, expected=expected, found=found) from error
        if not temporary.stat().st_size:
            temporary.unlink()
            raise BadInput(place, expected="a file that can be fetched", found="nothing")
        temporary.replace(file)

    def _make_room(self, newest: Path) -> None:
        files = [p for p in self.folder.iterdir() if not p.name.startswith(".") and p != newest]
        facts = sorted((p.stat().st_mtime, p.stat().st_size, p) for p in files)
        excess = sum(size for _, size, _ in facts) + newest.stat().st_size - self.bytes
        for _, size, path in facts:
            if excess <= 0:
                return
            path.unlink(missing_ok=True)  # whoever has it open can still read it
            excess -= size
