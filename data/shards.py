"""Tar shards in the layout of webdataset: one tar per modality and split.

``<modality>-<split>.tar`` holds, for each sample, ``<key>.<suffix>`` (the medium, in one or more
files) and ``<key>.json`` with ``text`` (a caption), ``label`` and ``qa`` (a list of ``question``
and ``answer``), each of them optional.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from onellm.data.faults import Faults, Lost, stop
from onellm.data.lists import SampleList
from onellm.data.sample import Sample
from onellm.data.tars import Shard, read_meta
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
    faults: Faults | None = None,
    lost: Lost = stop,
) -> dict[str, Sequence[Sample]]:
    """Find the samples of a split, media still encoded as in their files.

    Args:
        folder: folder of shards.
        split: ``"train"`` or ``"test"``.
        modalities: known modalities by name.
        names: which to read; None reads every known modality that the folder has.
        faults: policy for broken samples; the first is an error if left out.
        lost: is told of a shard that cannot be opened, which is then left out.

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
    found: dict[str, Sequence[Sample]] = {}
    for name in wanted:
        try:
            found[name] = read_shard(shards[name], modalities[name], faults)
        except BadInput as error:
            lost(error)
    return found


class ShardSamples(SampleList):
    """The samples of a tar of one modality; media are read when they are asked for.

    Args:
        shard: the tar.
        modality: of its media.
        places: which of its samples.
    """

    def __init__(self, shard: Shard, modality: Modality, places: Sequence[int]) -> None:
        self.shard, self.modality, self.places = shard, modality, places

    def __len__(self) -> int:
        return len(self.places)

    def _read(self, index: int, *, whole: bool) -> Sample:
        key, files = self.shard.read(self.places[index], media=whole)
        return _sample(self.shard.path, key, files, self.modality)


def read_shard(
    path: str | Path, modality: Modality, faults: Faults | None = None
) -> Sequence[Sample]:
    """Find the samples of one tar of one modality; their texts are gone through.

    Args:
        path: the tar.
        modality: of its media.
        faults: policy for samples without a readable ``.json`` or without a medium; the first is
            an error if left out.

    Returns:
        samples with one medium each; a caption, where there is one, is their only turn, and the
        parsed ``.json`` is their ``meta``.

    Raises:
        BadInput: the tar is missing, broken or empty, a sample has no ``.json`` or no medium (by
            the policy), or two samples have one id.
    """
    shard, faults = Shard(Path(path)), faults or Faults()
    every = ShardSamples(shard, modality, range(len(shard.entries)))
    ids = {n: one.id for n, one in faults.each(every.outline, every.places, modality.name)}
    if not ids:
        raise BadInput(path, expected="a readable sample", found=f"{len(every)} broken ones")
    name, times = Counter(ids.values()).most_common(1)[0]
    if times > 1:  # signals and frozen features are kept by id
        found = f"{times} samples with the id {name!r}"
        raise BadInput(path, expected="samples with different ids", found=found)
    return ShardSamples(shard, modality, list(ids))


def _sample(path: Path, key: str, files: dict[str, bytes], modality: Modality) -> Sample:
    name = f"{path}/{key}"
    if "json" not in files:
        expected = "a description of the sample"
        raise BadInput(f"{name}.json", expected=expected, found="no such member")
    meta = read_meta(f"{name}.json", files.pop("json"))
    text = meta.get("text")
    return Sample(
        id=str(meta.get("id", key)),
        media=((modality.name, modality.from_shard(files, meta, name)),),
        turns=(("assistant", text),) if text else (),
        meta=meta,
    )
