"""Tar shards in the layout of webdataset: one tar per modality and split.

``<modality>-<split>.tar`` holds, for each sample, ``<key>.<suffix>`` (the medium, in one or more
files) and ``<key>.json`` with ``text`` (a caption), ``label`` and ``qa`` (a list of ``question``
and ``answer``), each of them optional.
"""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from onellm.data.sample import Sample
from onellm.errors import BadInput
from onellm.modality import Modality


def shards_of(folder: str | Path, split: str) -> dict[str, Path]:
    """The shards of a folder by modality name.

    Args:
        folder: folder with ``<modality>-<split>.tar`` files.
        split: ``"train"`` or ``"test"``.

    Raises:
        BadInput: no such folder, or no shard of that split in it.
    """
    root, pattern = Path(folder), f"*-{split}.tar"
    if not root.is_dir():
        found = "a file" if root.exists() else "no such folder"
        raise BadInput(root, expected=f"a folder of <modality>-{split}.tar files", found=found)
    tail = len(f"-{split}.tar")
    shards = {path.name[:-tail]: path for path in sorted(root.glob(pattern))}
    if not shards:
        names = ", ".join(sorted(p.name for p in root.iterdir())[:5]) or "an empty folder"
        raise BadInput(root, expected=f"<modality>-{split}.tar files", found=names)
    return shards


def read_folder(
    folder: str | Path,
    split: str,
    modalities: Mapping[str, Modality],
    names: Iterable[str] | None = None,
) -> dict[str, list[Sample]]:
    """Read the samples of a split, media still encoded as in their files.

    Args:
        folder: folder of shards.
        split: ``"train"`` or ``"test"``.
        modalities: known modalities by name.
        names: which to read; None reads every known modality that the folder has.

    Returns:
        samples by modality name, in the order of the shards.

    Raises:
        BadInput: see :func:`shards_of` and :func:`read_shard`; or a named modality has no shard.
    """
    shards = shards_of(folder, split)
    wanted = [n for n in modalities if n in shards] if names is None else list(names)
    missing = [n for n in wanted if n not in shards]
    if missing or not wanted:
        raise BadInput(
            folder,
            expected=", ".join(f"{n}-{split}.tar" for n in missing or modalities),
            found=", ".join(path.name for path in shards.values()),
        )
    return {name: read_shard(shards[name], modalities[name]) for name in wanted}


def read_shard(path: str | Path, modality: Modality) -> list[Sample]:
    """Read one tar of one modality.

    Returns:
        samples with one medium each; a caption, where there is one, is their only turn, and the
        parsed ``.json`` is their ``meta``.

    Raises:
        BadInput: the tar is missing, broken or empty, a sample has no ``.json`` or no medium, or
            two samples have one id.
    """
    samples = [_sample(Path(path), record, modality) for record in _records(Path(path))]
    if not samples:
        raise BadInput(path, expected="a tar of samples", found="no sample in it")
    name, times = Counter(sample.id for sample in samples).most_common(1)[0]
    if times > 1:  # signals and frozen features are kept by id
        found = f"{times} samples with the id {name!r}"
        raise BadInput(path, expected="samples with different ids", found=found)
    return samples


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """Members grouped by key, through webdataset."""
    import webdataset

    if not path.is_file():
        raise BadInput(path, expected="a tar file", found="no such file")
    _check_end(path)
    try:
        # A list keeps braces in a path from being expanded; every process reads every sample,
        # since the order of the run says who takes which.
        yield from webdataset.WebDataset(
            [str(path)], shardshuffle=False, nodesplitter=None, empty_check=False
        )
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise BadInput(path, expected="a readable tar file", found=f"{error}") from error


def _check_end(path: Path) -> None:
    """Find a tar that was cut off between two members, which reads like a shorter one."""
    with path.open("rb") as file:
        if file.read(262)[257:] != b"ustar":  # compressed, or no tar at all: its reader will say
            return
        file.seek(max(0, path.stat().st_size - 1024))
        if file.read().strip(b"\0"):  # every tar ends with two blocks of zeros
            found = "one without its end mark: it is cut off"
            raise BadInput(path, expected="a readable tar file", found=found)


def _sample(path: Path, record: Mapping[str, Any], modality: Modality) -> Sample:
    key = str(record["__key__"])
    files = {k: v for k, v in record.items() if not k.startswith("__")}
    meta = _meta(f"{path}/{key}.json", files.pop("json", None))
    source = modality.from_shard(files, meta, f"{path}/{key}")
    text = meta.get("text")
    return Sample(
        id=str(meta.get("id", key)),
        media=((modality.name, source),),
        turns=(("assistant", text),) if text else (),
        meta=meta,
    )


def _meta(name: str, data: bytes | None) -> dict[str, Any]:
    if data is None:
        raise BadInput(name, expected="a description of the sample", found="no such member")
    try:
        meta = json.loads(data)
    except ValueError as error:
        raise BadInput(name, expected="valid JSON", found=f"{error}") from error
    if not isinstance(meta, dict):
        raise BadInput(name, expected="a JSON object", found=type(meta).__name__)
    return meta
