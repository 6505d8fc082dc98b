"""Data sets of tar shards: how many samples they hold, and of which modalities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlparse

from onellm.data.faults import Lost, stop
from onellm.data.lists import joined, outline
from onellm.data.loader import group_of
from onellm.data.sample import Sample
from onellm.data.streams import Shelf, find_shards, is_address, listed_sizes
from onellm.data.tars import TarSamples, index_tar
from onellm.data.translate import Translator
from onellm.errors import BadInput
from onellm.modality import Modality


def open_tars(
    paths: Iterable[str],
    title: str,
    translator: Translator,
    shelf: Shelf,
    *,
    modality: str = "",
    nominal: int = 0,
    lost: Lost = stop,
) -> tuple[dict[str, Sequence[Sample]], list[str]]:
    """Open shards; each holds samples of one set of modalities.

    Args:
        paths: of shards, as the user wrote them.
        title: of the data set.
        translator: knows the modalities.
        shelf: fetches addresses.
        modality: of all media; "" goes by names and members.
        nominal: about how many samples a shard under an address has, if its number is not known.
        lost: is told of a shard that cannot be opened, which is then left out.

    Returns:
        samples by the modalities of their media, and what members are taken for.

    Raises:
        BadInput: a shard is missing or damaged, or cannot be fetched; by ``lost``.
    """
    shards = find_shards(paths)
    sizes = listed_sizes(shards, shelf)
    inside: dict[str, str] = {}  # folder of addresses → what its first shard holds

    def samples(own: list[str], modality: str) -> TarSamples:
        declared = modality if modality in translator.modalities else ""
        return TarSamples(own, sizes, title, translator, declared, shelf.read, nominal=nominal)

    def group_of_shard(shard: str) -> tuple[str, bool]:
        """Modalities of a shard, and whether its name or the data set tells them."""
        far = is_address(shard)
        if shard not in sizes and not (far and nominal):  # what is at hand is counted
            count = shelf.count if far else shelf.read
            sizes[shard] = count(shard, lambda path: len(index_tar(path)))
        group = modality or group_in_name(shard, translator.modalities)
        if group:
            return group, True
        # Of shards on a disk each is looked into. To fetch all of a folder for that would take
        # hours: its first tells of them all, and a sample that differs is refused when it is drawn.
        folder = shard.rpartition("/")[0] if far else shard
        if folder not in inside:
            inside[folder] = _group_inside(samples([shard], ""))
        return inside[folder], False

    lists: dict[tuple[str, bool], list[str]] = {}
    for shard in shards:
        try:
            lists.setdefault(group_of_shard(shard), []).append(shard)
        except BadInput as error:
            lost(error)
    groups: dict[str, list[Sequence[Sample]]] = {}
    notes: list[str] = []
    for (group, named), own in lists.items():
        found = samples(own, group if named else "")
        groups.setdefault(group, []).append(found)
        if not is_address(own[0]):  # nothing is fetched for it
            notes.append(f"{title}/{group}: {found.account()}")
    return {group: joined(parts) for group, parts in groups.items()}, notes


def group_in_name(shard: str, modalities: Mapping[str, Modality]) -> str:
    """The modalities that a shard's name tells, joined by ``+``, or ``"text"``; "" if none.

    Args:
        shard: a path or an address.
        modalities: known modalities by name.

    Example:
        >>> group_in_name("https://host/audio+image-000.tar?key=1", {"audio": ..., "image": ...})
        'audio+image'
    """
    address = is_address(shard) and not shard.startswith("pipe:")
    name = unquote(urlparse(shard).path) if address else shard
    head = Path(name).name.partition("-")[0]
    return head if head == "text" or all(n in modalities for n in head.split("+")) else ""


def _group_inside(samples: TarSamples) -> str:
    """Modalities of a shard's first sample that can be read.

    Raises:
        BadInput: none can; it is the first one's.
    """
    first: BadInput | None = None
    for index in range(len(samples)):
        try:
            return group_of(outline(samples, index))
        except BadInput as error:  # it will be told of, or passed over, when it is drawn
            first = first or error
    raise first or BadInput(samples.shards[0], expected="samples", found="none")
