"""Samples in tar shards of webdataset's layout, found by place: any one can be read at once.

A sample is the members of one tar that share a key: ``0001.json``, ``0001.jpg``, ``0001.wav`` …
Shards are files, or addresses that are fetched when one of their samples is wanted.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

from onellm.data.fetching import OutOfReach
from onellm.data.lists import SampleList
from onellm.data.locate import check_listed
from onellm.data.sample import Sample
from onellm.data.tar_index import Entry, entries_of
from onellm.data.translate import Translator
from onellm.errors import BadInput
from onellm.source import Blob, Source

LISTING = "shards.json"
_TEXTS = ("json", "txt")
_AGAIN = 600.0  # seconds after which a shard that was out of reach is asked for once more
_TRIED = 100  # samples that are looked into for what all of them have
_OPEN = 16  # shards whose places are kept in memory, and whose files are kept open


def index_tar(path: Path) -> list[Entry]:
    """Find the samples of a tar by its headers.

    Raises:
        BadInput: missing, compressed, damaged, cut off, empty, or with one key in two places.
    """
    return Shard(path).entries


class Shard:
    """An open tar.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.__setstate__((path, []))
        # The same open file: another process may take this one's room on the shelf.
        self.entries = entries_of(path, self._file)

    def __getstate__(self) -> tuple[Path, list[Entry]]:
        return self.path, self.entries  # each process opens the file itself

    def __setstate__(self, state: tuple[Path, list[Entry]]) -> None:
        self.path, self.entries = state
        try:
            self._file: int = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            gone = isinstance(error, FileNotFoundError)
            found = "no such file" if gone else f"an unreadable file ({error.strerror})"
            raise BadInput(self.path, expected="a tar file", found=found) from error

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def read(self, index: int, *, media: bool = True) -> tuple[str, dict[str, bytes]]:
        """Key and members of a sample. Several processes and threads may read at once.

        Args:
            index: of the sample.
            media: false leaves all members but the texts empty.
        """
        entry = self.entries[index]
        try:
            files = {
                suffix: os.pread(self._file, size, start) if media or suffix in _TEXTS else b""
                for suffix, (start, size) in entry.members.items()
            }
        except OSError as error:  # a disk, or the network in front of one, that fails
            found = f"an unreadable file ({error.strerror})"
            expected = "a member of a tar"
            raise BadInput(f"{self.path}/{entry.key}", expected=expected, found=found) from error
        return entry.key, files


def _at_hand(place: str, read: Callable[[Path], Shard]) -> Shard:
    return read(Path(place))


class TarSamples(SampleList):
    """The samples of several shards.

    Args:
        shards: paths or addresses.
        sizes: numbers of samples; those left out are counted, for which a shard must be read.
        name: of the data set; begins the samples' ids.
        translator: knows the modalities, and what the fields of ``.json`` members mean.
        modality: of the media, where the members do not tell; "" leaves it to them.
        fetch: (path or address, what opens the path of a file) → the open shard.
        nominal: taken for the number of samples of shards that are not in ``sizes``, which then
            need not be read; 0 counts them.
    """

    def __init__(
        self,
        shards: Sequence[str],
        sizes: Mapping[str, int],
        name: str,
        translator: Translator,
        modality: str = "",
        fetch: Callable[[str, Callable[[Path], Shard]], Shard] = _at_hand,
        *,
        nominal: int = 0,
    ) -> None:
        self.shards, self.name, self.translator = list(shards), name, translator
        self.modality, self.fetch = modality, fetch
        self._open: OrderedDict[int, Shard] = OrderedDict()
        self._lost: dict[int, tuple[BadInput, float]] = {}  # with the time of the next try
        self._exact = [not nominal or s in sizes for s in self.shards]
        self.sizes = [
            sizes[s] if s in sizes else nominal or len(self._shard(n).entries)
            for n, s in enumerate(self.shards)
        ]
        self._ends = list(accumulate(self.sizes))

    @property
    def pieces(self) -> tuple[int, ...]:
        """Numbers of samples of the shards."""
        return tuple(self.sizes)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_open": OrderedDict(), "_lost": {}}  # open files do not travel

    def beyond(self, index: int) -> int:
        """See :func:`onellm.data.lists.beyond`."""
        number = bisect_right(self._ends, index)
        return index + (self.sizes[number] if number in self._lost else 1)

    def _shard(self, number: int) -> Shard:
        """An open shard. Lengths are measured in one thread and media read in another.

        There is no lock, which a forked process would inherit held: each line is one step.
        """
        error, again = self._lost.get(number, (None, 0.0))
        if error is not None and time.monotonic() < again:  # each took all tries to fail
            raise error.with_traceback(None)  # that of each time before would be kept with it
        shard = self._open.get(number)
        if shard is None:
            try:
                shard = self._opened(number)
            except BadInput as error:
                passing = isinstance(error, OutOfReach)
                self._lost[number] = error, time.monotonic() + _AGAIN if passing else math.inf
                raise
            self._lost.pop(number, None)
        self._open[number] = shard
        with suppress(KeyError):  # made room for already
            self._open.move_to_end(number)
            while len(self._open) > _OPEN:
                self._open.popitem(last=False)
        return shard

    def _opened(self, number: int) -> Shard:
        shard = self.fetch(self.shards[number], Shard)
        wanted = self.sizes[number] if hasattr(self, "sizes") else len(shard.entries)
        if self._exact[number] and len(shard.entries) != wanted:
            raise BadInput(
                self.shards[number],
                expected=f"{wanted} samples, as {LISTING} or an earlier count says",
                found=f"{len(shard.entries)}",
                hint=f"Mend {LISTING}; counts are in data.shelf, as are old copies.",
            )
        return shard

    def _read(self, index: int, *, whole: bool) -> Sample:
        # The whole path: shards of several folders often have the same names.
        place, files = self._files(index, whole=whole)
        return self._sample(f"{self.name}/{place}", place, files)

    def _files(self, index: int, *, whole: bool) -> tuple[str, dict[str, bytes]]:
        """Shard and key of a sample, and its members."""
        number = bisect_right(self._ends, index)
        place = index - (self._ends[number] - self.sizes[number])
        opened = self._shard(number)
        key, files = opened.read(place % len(opened.entries), media=whole)
        return f"{self.shards[number]}/{key}", files

    def account(self) -> str:
        """What the members of the first sample that can be read are taken for."""
        for index in range(min(len(self), _TRIED)):
            with suppress(BadInput):
                _, files = self._files(index, whole=False)
                return _account(self.outline(index), list(files))
        return "nothing"

    def _sample(self, name: str, place: str, files: dict[str, bytes]) -> Sample:
        record = read_meta(f"{place}.json", files.pop("json")) if "json" in files else {}
        caption = files.pop("txt", None)
        if caption is not None:
            record.setdefault("caption", _decoded(f"{place}.txt", caption).strip())
        if self.translator.plain:
            return self.translator.told(record, name, ())
        if "media" in record:
            listed = check_listed(record.pop("media"), place, self.translator.modalities)
            media = [(kind, _members(source, files, place)) for kind, source in listed]
        elif self.modality:
            modality = self.translator.modalities[self.modality]
            media = [(self.modality, modality.from_shard(files, record, place))]
        else:
            media = _by_suffix(files, record, place, self.translator)
        return self.translator.told(record, name, media)


def _account(sample: Sample, suffixes: Sequence[str]) -> str:
    """Which members of a sample are read as what, for the user."""
    read: list[str] = []
    used = {"json", "txt"} & set(suffixes)
    for name, source in sample.media:
        own = [s for s in suffixes if any(blob.name.endswith(f".{s}") for blob in _blobs(source))]
        used |= set(own)
        read.append(f"{name} from {' and '.join(f'.{s}' for s in own)}")
    told = " or ".join(f".{s}" for s in ("json", "txt") if s in suffixes)
    read += [f"text from {told}"] if sample.turns and told else []
    idle = ", ".join(f".{s}" for s in suffixes if s not in used)
    return (", ".join(read) or "nothing") + (f"; not read: {idle}" if idle else "")


def _blobs(source: Source) -> list[Blob]:
    if isinstance(source, Mapping):
        return _blobs(source.get("data"))
    if isinstance(source, tuple | list):
        return [blob for part in source for blob in _blobs(part)]
    return [source] if isinstance(source, Blob) else []


def _decoded(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(name, expected="a text in UTF-8", found=f"{error}") from error


def read_meta(name: str, data: bytes) -> dict[str, Any]:
    """Parse the ``.json`` of a sample.

    Args:
        name: for error messages.
        data: the member.

    Raises:
        BadInput: not an object in JSON.
    """
    try:
        meta = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadInput(name, expected="valid JSON", found=f"{error}") from error
    if not isinstance(meta, dict):
        raise BadInput(name, expected="a JSON object", found=type(meta).__name__)
    return meta


def _members(source: Any, files: Mapping[str, bytes], place: str) -> Source:
    """A source as :mod:`onellm.data.convert` wrote it: names of members as leaves."""
    if isinstance(source, list):
        return tuple(_members(part, files, place) for part in source)
    if isinstance(source, dict) and "data" in source:
        return source | {"data": _members(source["data"], files, place)}
    if not isinstance(source, str) or source not in files:
        found = ", ".join(sorted(files)) or "no member"
        raise BadInput(place, expected=f"the member {source!r} that its .json names", found=found)
    return Blob(f"{place}.{source}", files[source])


def _by_suffix(
    files: Mapping[str, bytes],
    meta: Mapping[str, Any],
    place: str,
    translator: Translator,
) -> list[tuple[str, Source]]:
    """Media of a sample that says nothing about them.

    ``<modality>.<suffix>`` names its modality, also with a number (``image1.jpg``) and with
    further parts (``depth.rgb.jpg``); otherwise a suffix must belong to one modality alone, or
    the run be of one that reads it.
    """
    modalities = translator.modalities
    media: list[tuple[str, Source]] = []
    named: dict[tuple[str, str], dict[str, bytes]] = {}
    for suffix, data in files.items():
        head, _, rest = suffix.partition(".")
        match = re.fullmatch(r"(.*?)[-_]?(\d*)", head)
        if rest and match and match.group(1) in modalities:
            named.setdefault((match.group(1), match.group(2)), {})[rest] = data
            continue
        readers = [m.name for m in modalities.values() if f".{suffix}" in m.suffixes]
        if translator.only is not None and translator.only.name in readers:
            readers = [translator.only.name]
        if len(readers) > 1:
            raise BadInput(
                place,
                expected=f"one modality that reads .{suffix}",
                found=" and ".join(readers),
                hint="Set 'modality' of the data set, or call members <modality>.<suffix>.",
            )
        if readers:
            media.append((readers[0], Blob(f"{place}.{suffix}", data)))
    if files and not media and not named:
        raise BadInput(
            place,
            expected="a member with a suffix that a modality reads",
            found=", ".join(f".{suffix}" for suffix in sorted(files)),
            hint="Set 'modality' of the data set, or call members <modality>.<suffix>; with "
            "'modality: text' their texts alone are read.",
        )
    for (name, number), own in named.items():
        key = f"{place}.{name}{number}"
        media.append((name, modalities[name].from_shard(own, meta, key)))
    return media
