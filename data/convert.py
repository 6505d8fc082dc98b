"""Any format to tar shards, from which samples are read without opening millions of files.

Each shard holds samples of one set of modalities, so that a run can draw passes of one modality.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from onellm.data.faults import Faults, Skipped
from onellm.data.loader import group_of
from onellm.data.sample import Sample
from onellm.data.tars import LISTING
from onellm.errors import BadInput, ConfigError, plain_reason
from onellm.modality import Modality
from onellm.source import Blob, Source, source_name, suffix_of


@dataclass
class Written:
    """What was written.

    Args:
        shards: file name → ``{"samples": …, "bytes": …}``.
        samples: how many, by modalities.
    """

    shards: dict[str, dict[str, int]] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)


def convert(
    parts: Sequence[Sequence[Sample]],
    modalities: Mapping[str, Modality],
    folder: Path,
    *,
    faults: Faults | None = None,
    megabytes: float = 500.0,
    advance: Callable[[], None] = lambda: None,
) -> Written:
    """Write samples as shards ``<modalities>-<number>.tar`` and a listing ``shards.json``.

    Args:
        parts: lists of samples.
        modalities: known modalities by name.
        folder: a new or empty folder.
        faults: policy for samples whose files cannot be read.
        megabytes: 10^6 bytes after which the next shard begins.
        advance: called after each sample.

    Raises:
        ConfigError: the folder holds files already.
        BadInput: a file that cannot be read, by the policy.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(
            f"{folder}: expected a new or empty folder; found files in it (of a copy that was cut "
            "off, if there is no shards.json: remove them)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    written, faults = Written(), faults or Faults()
    writers: dict[str, _Shards] = {}
    try:
        for samples in parts:
            for index in range(len(samples)):
                advance()
                _one(samples, index, modalities, folder, faults, megabytes, writers)
    finally:
        for writer in writers.values():
            writer.close()
    for group, writer in writers.items():
        written.shards |= writer.done
        written.samples[group] = sum(one["samples"] for one in writer.done.values())
    temporary = folder / f".{LISTING}.tmp"
    temporary.write_text(json.dumps({"shards": written.shards}, indent=1), encoding="utf-8")
    temporary.replace(folder / LISTING)  # last: a folder with a listing is complete
    return written


def _one(
    samples: Sequence[Sample],
    index: int,
    modalities: Mapping[str, Modality],
    folder: Path,
    faults: Faults,
    megabytes: float,
    writers: dict[str, _Shards],
) -> None:
    try:
        sample, members = faults.attempt(lambda: _members(samples[index], modalities), "data")
    except Skipped:
        return
    group = group_of(sample)
    if group not in writers:
        writers[group] = _Shards(folder, group, megabytes * 1e6)
    try:
        writers[group].write(members)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({plain_reason(error)})") from error


def _members(sample: Sample, modalities: Mapping[str, Modality]) -> tuple[Sample, dict[str, bytes]]:
    """Suffix → bytes of a sample; the ``.json`` says which member is what."""
    files: dict[str, bytes] = {}
    media = []
    for position, (name, source) in enumerate(sample.media):
        source = modalities[name].excerpt(source)
        media.append([name, _put(source, str(position), files, modalities[name])])
    turns = [list(turn) for turn in sample.turns]
    record = {k: v for k, v in sample.meta.items() if _is_plain(v)}
    record |= {"id": sample.id, "media": media}
    if [role for role, _ in turns] == ["assistant"]:
        record["caption"] = [turns[0][1], *sample.captions]
    else:
        record["turns"] = turns
    return sample, {"json": json.dumps(record, ensure_ascii=False).encode()} | files


def _put(source: Source, name: str, files: dict[str, bytes], modality: Modality) -> Any:
    """Add the files of a source; what stands for it in the ``.json``."""
    if isinstance(source, Mapping) and "data" in source:
        facts = {k: v for k, v in source.items() if k != "data" and _is_plain(v)}
        return {"data": _put(source["data"], name, files, modality), **facts}
    if isinstance(source, tuple | list):
        return [_put(part, f"{name}-{i}", files, modality) for i, part in enumerate(source)]
    suffix, data = _encoded(source, modality)
    files[f"{name}{suffix}"] = data
    return f"{name}{suffix}"


def _encoded(source: Source, modality: Modality) -> tuple[str, bytes]:
    if isinstance(source, Blob):
        return suffix_of(source), source.data
    if isinstance(source, str | Path):
        expected = f"a file of {modality.name}"
        if suffix_of(source) not in modality.suffixes:  # nothing else on this machine is copied
            known = f"{expected} ({', '.join(modality.suffixes)})"
            raise BadInput(source, expected=known, found=f"a file of type {suffix_of(source)!r}")
        try:
            return suffix_of(source), Path(source).read_bytes()
        except FileNotFoundError as error:
            raise BadInput(source, expected=expected, found="no such file") from error
        except (OSError, ValueError) as error:  # a name too long, or with a zero byte
            raise BadInput(source, expected=expected, found=f"{error}") from error
    out = io.BytesIO()
    if hasattr(source, "save") and hasattr(source, "size"):  # a Pillow picture
        source.save(out, "PNG")
        return ".png", out.getvalue()
    try:
        np.save(out, np.asarray(source), allow_pickle=False)
    except (ValueError, TypeError) as error:
        expected = "a file, a picture or an array"
        raise BadInput(source_name(source), expected=expected, found=f"{error}") from error
    return ".npy", out.getvalue()


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


class _Shards:
    """The shards of one group, written one after the other, each under a temporary name."""

    def __init__(self, folder: Path, group: str, limit: float) -> None:
        self.folder, self.group, self.limit = folder, group, limit
        self.done: dict[str, dict[str, int]] = {}
        self._file: BinaryIO | None = None
        self._writer: Any = None
        self._count = self._key = 0

    @property
    def _name(self) -> str:
        return f"{self.group}-{len(self.done):06d}.tar"

    def write(self, members: Mapping[str, bytes]) -> None:
        from webdataset import TarWriter

        size = sum(map(len, members.values()))
        if self._file is not None and self._file.tell() + size > self.limit:
            self.close()
        if self._file is None:
            self._file = (self.folder / f".{self._name}.tmp").open("wb")
            # No times, so that the same data give the same bytes.
            self._writer = TarWriter(self._file, encoder=False, mtime=0)
        self._writer.write({"__key__": f"{self._key:09d}", **members})
        self._count += 1
        self._key += 1

    def close(self) -> None:
        if self._file is None:
            return
        self._writer.close()
        self._file.close()
        temporary, name = self.folder / f".{self._name}.tmp", self._name
        self.done[name] = {"samples": self._count, "bytes": temporary.stat().st_size}
        temporary.replace(self.folder / name)
        self._file, self._count = None, 0
