"""Shards that lie elsewhere: found by a pattern, fetched when they are wanted, kept for a while."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from stat import S_ISREG
from typing import TypeVar
from urllib.parse import urlparse

from onellm.data.fetching import FETCHABLE, FetchConfig, OutOfReach, fetch
from onellm.data.tars import LISTING
from onellm.errors import BadInput, ConfigError

T = TypeVar("T")

KEPT = "kept"
_ROUNDS = 10


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
        own: list[str] = []
        for one in [path] if path.startswith("pipe:") and "{" not in path else braceexpand(path):
            if is_address(one):
                own.append(one)
            elif Path(one).is_dir():
                own += sorted(map(str, Path(one).glob("*.tar")))
            elif any(c in one for c in "*?["):
                own += sorted(str(p) for p in Path(one).parent.glob(Path(one).name))
            else:
                own.append(one)
        if not own:
            raise BadInput(path, expected="tar files", found=_instead(Path(path)))
        found += own
    return found


def _instead(folder: Path) -> str:
    """What a folder without tars holds."""
    names = sorted(p.name for p in folder.iterdir())[:5] if folder.is_dir() else []
    return ", ".join(names) or ("an empty folder" if folder.is_dir() else "none")


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
        text = shelf.read(place, partial(Path.read_text, encoding="utf-8"))
    except OutOfReach:  # there may well be one
        raise
    except (BadInput, OSError):
        return {}
    try:
        return {name: int(one["samples"]) for name, one in json.loads(text)["shards"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(place, expected="a listing of shards", found=f"{error!r}") from error


class Shelf:
    """A folder for fetched files, shared by the processes of a machine.

    Args:
        folder: made when the first file is fetched.
        gigabytes: 10^9 bytes; the files used longest ago make room for new ones.
        fetching: tries and patience.
    """

    def __init__(
        self,
        folder: str | Path,
        gigabytes: float = 100.0,
        fetching: FetchConfig | None = None,
    ) -> None:
        self.folder, self.bytes = Path(folder), gigabytes * 1e9
        self.fetching = fetching or FetchConfig()

    def read(self, place: str, read: Callable[[Path], T]) -> T:
        """What is read from a file, which is fetched if it is not there.

        Args:
            place: a path or an address.
            read: opens the file of a path. Another process may need the file's room at any time;
                what is open can still be read.

        Raises:
            BadInput: it cannot be fetched, or ``read`` refuses it.
            ConfigError: the folder cannot be used.
        """
        if not is_address(place):
            return read(Path(place))
        for _ in range(_ROUNDS):
            path = self.path(place)
            try:
                return read(path)
            except FileNotFoundError:
                continue  # another process took its room between the two lines above
            except BadInput as error:
                if error.found == "no such file":
                    continue
                hint = f"Fetched to {path}: remove that if it has been mended since. {error.hint}"
                raise BadInput(
                    place, expected=error.expected, found=error.found, hint=hint.strip()
                ) from error
        raise ConfigError(
            f"data.shelf: {self.folder}: expected room for the shards that are being read; found "
            f"other processes taking it away ({_ROUNDS} times for {place}). Raise "
            f"data.shelf_gigabytes, which is {self.bytes / 1e9:g}."
        )

    def path(self, place: str, *, keep: bool = False) -> Path:
        """A local file for a path or address, fetched if it is not there yet.

        Args:
            place: a path or an address.
            keep: it does not make room for others; for what is read all through a run.

        Raises:
            BadInput: it cannot be fetched.
            ConfigError: the folder cannot be used.
        """
        if not is_address(place):
            return Path(place)
        # Not the whole address, which may hold a key that should not stand in a file name.
        name = Path(urlparse(place).path).name if not place.startswith("pipe:") else ""
        name = re.sub(r"[^A-Za-z0-9._-]", "_", name)[-60:]
        folder = self.folder / KEPT if keep else self.folder
        file = folder / f"{_digest(place)}-{name}"
        if not _touched(file):
            with self._usable():
                folder.mkdir(parents=True, exist_ok=True)
                self._fetched(place, file)
        return file

    def count(self, place: str, count: Callable[[Path], int]) -> int:
        """A number found in a fetched file, which is kept when the file makes room for others.

        Args:
            place: the address.
            count: finds it; one process of a machine does, once.

        Raises:
            BadInput: it cannot be fetched, or ``count`` refuses it.
            ConfigError: the folder cannot be used.
        """
        note = self.folder / f".{_digest(place)}.count"
        with self._usable():
            self.folder.mkdir(parents=True, exist_ok=True)
            with _locked(note.with_suffix(".counting")):
                try:
                    return int(note.read_text(encoding="utf-8"))
                except (OSError, ValueError):
                    found = self.read(place, count)
                temporary = note.with_suffix(".tmp")
                temporary.write_text(str(found), encoding="utf-8")
                temporary.replace(note)
        return found

    @contextmanager
    def _usable(self) -> Iterator[None]:
        """Say of an error of the file system that it is the shelf's, and what to do."""
        try:
            yield
        except OSError as error:
            where = f"data.shelf: {self.folder}: expected a folder that can be written"
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ConfigError(
                    f"{where}; found the disk full. Free some of it, lower data.shelf_gigabytes "
                    f"({self.bytes / 1e9:g}), or set data.shelf to a folder on a larger disk."
                ) from error
            reason = error.strerror or f"{error}"
            raise ConfigError(
                f"{where}; found: {reason.lower()}. Set data.shelf to another folder."
            ) from error

    def _fetched(self, place: str, file: Path) -> None:
        """Fetch a file, unless another process has done so meanwhile, or has failed to."""
        began = time.time_ns()
        failed = self.folder / f".{_digest(place)}.failed"
        with _locked(self.folder / f".{_digest(place)}.lock"):  # the others wait for the first
            if _touched(file):
                return
            _raise_later_than(failed, place, began)
            temporary = file.with_name(f".{file.name}.tmp")
            try:
                fetch(place, temporary, self.fetching)
            except BadInput as error:
                temporary.unlink(missing_ok=True)
                passing = isinstance(error, OutOfReach)
                failed.write_text(json.dumps([passing, error.found]), encoding="utf-8")
                raise
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            failed.unlink(missing_ok=True)
            size = temporary.stat().st_size
            temporary.replace(file)
            if file.parent == self.folder:
                self._make_room(file, size)

    def _make_room(self, newest: Path, size: int) -> None:
        facts = []
        for path in self.folder.iterdir():
            if path.name.startswith(".") or path == newest:
                continue
            with suppress(FileNotFoundError):  # others make room, too
                facts.append((path.stat(), path))
        files = sorted((f.st_mtime_ns, f.st_size, p) for f, p in facts if S_ISREG(f.st_mode))
        excess = size + sum(size for _, size, _ in files) - self.bytes
        for _, size, path in files:
            if excess <= 0:
                return
            path.unlink(missing_ok=True)  # whoever has it open can still read it
            excess -= size


def _digest(place: str) -> str:
    return hashlib.blake2b(place.encode(), digest_size=8).hexdigest()


def _touched(file: Path) -> bool:
    """Whether a file is there; it is now the one used last."""
    now = time.time_ns()  # finer than what the system takes for now
    try:
        os.utime(file, ns=(now, now))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # of another user, or on a disk that cannot be written: it can be read
        return file.is_file()
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _raise_later_than(note: Path, place: str, began: int) -> None:
    """Pass on a failure from the time in which this process waited.

    Otherwise each of the many processes of a machine would go through all tries, one by one.
    """
    with suppress(FileNotFoundError):
        if note.stat().st_mtime_ns >= began:
            passing, found = json.loads(note.read_text(encoding="utf-8"))
            raise (OutOfReach if passing else BadInput)(place, expected=FETCHABLE, found=found)
