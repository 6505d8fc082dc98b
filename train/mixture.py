"""What a run draws from, by its configuration: folders of shards, or data sets of any format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path

from onellm.data.datasets import mixture, open_dataset
from onellm.data.faults import Faults, Lost, stop
from onellm.data.lists import WithoutMedia, by_target, joined, outline, pieces_of
from onellm.data.order import Part
from onellm.data.packaged import starter_folder
from onellm.data.sample import Sample
from onellm.data.shards import read_folder
from onellm.data.streams import Shelf
from onellm.errors import BadInput, ConfigError
from onellm.modality import Modality
from onellm.train.config import DataConfig

MANY_TEXTS = 20_000
MANY_FILES = 16


@dataclass(frozen=True)
class Drawn:
    """What a run draws from.

    Args:
        parts: what is drawn with one weight each.
        kept: the samples of each part.
        samples: media by modality, for what is computed once.
        notes: what the fields of data sets are taken for.
    """

    parts: list[Part]
    kept: list[Sequence[Sample]]
    samples: dict[str, Sequence[Sample]]
    notes: Sequence[str] = ()

    def texts(self, faults: Faults) -> list[str]:
        """Texts that stand for all: of each part some 20 000, evenly from its whole.

        Of a part of many files, evenly from :data:`MANY_FILES` of them, since each file may have to
        be fetched.

        Args:
            faults: policy for samples that cannot be read; skipped ones are left out.

        Raises:
            BadInput: by the policy, or because no sample has a text.
        """
        found = []
        for part, samples in zip(self.parts, self.kept, strict=True):
            places, read = _spread(samples), partial(outline, samples)
            said = (sample.turns for _, sample in faults.each(read, places, part.group))
            found += [turns[-1][1] for turns in said if turns]
        if not found:
            raise BadInput("the run's data", expected="samples with a text", found="none")
        return found


def _spread(samples: Sequence[Sample]) -> list[int]:
    """Evenly chosen places of a list, in evenly chosen files of it."""
    pieces = pieces_of(samples) or (len(samples),)
    ends = list(accumulate(pieces))
    files = range(0, len(pieces), max(1, -(-len(pieces) // MANY_FILES)))
    step = max(1, sum(pieces[n] for n in files) // MANY_TEXTS)
    return [place for n in files for place in range(ends[n] - pieces[n], ends[n], step)]


def open_data(
    config: DataConfig,
    modalities: Mapping[str, Modality],
    names: Sequence[str],
    faults: Faults | None = None,
    lost: Lost = stop,
) -> Drawn:
    """Open what a run draws from.

    Args:
        config: where it is.
        modalities: known modalities by name.
        names: those of the stage.
        faults: policy and counts of samples that are gone through on the way; the policy of
            ``config`` if left out.
        lost: is told of a file that cannot be opened, which is then left out.

    Raises:
        BadInput: data that cannot be read, samples by the policy.
        ConfigError: data of a modality that the stage does not name, or that fit no target.
    """
    faults = faults or Faults(config.faults)
    if not config.datasets:
        samples = read_samples(config, modalities, names, faults, lost)
        return Drawn(*build_parts(config, modalities, samples, faults), samples)
    shelf = shelf_of(config)
    only = names[0] if len(names) == 1 else ""
    collections = [
        open_dataset(one, modalities, shelf, faults, only, lost) for one in config.datasets
    ]
    parts, kept = mixture(collections, media=config.media)
    _check_groups(parts, names)
    by_modality: dict[str, list[Sequence[Sample]]] = {}
    for part, part_samples in zip(parts, kept, strict=True):
        for name in names_in(part.group):
            by_modality.setdefault(name, []).append(part_samples)
    notes = [note for collection in collections for note in collection.notes]
    return Drawn(parts, kept, {name: joined(own) for name, own in by_modality.items()}, notes)


def shelf_of(config: DataConfig) -> Shelf:
    """Where fetched shards are kept."""
    folder = Path(config.shelf) if config.shelf else Path.home() / ".cache" / "onellm" / "shards"
    return Shelf(folder, config.shelf_gigabytes, config.fetch)


def names_in(group: str) -> list[str]:
    """The modalities of a group.

    Example:
        >>> names_in("audio+image"), names_in("text")
        (['audio', 'image'], [])
    """
    return [] if group == "text" else group.split("+")


def _check_groups(parts: Iterable[Part], names: Sequence[str]) -> None:
    for part in parts:
        strangers = sorted(set(names_in(part.group)) - set(names))
        if strangers:
            raise ConfigError(
                f"data.datasets: {part.name} has media of {', '.join(strangers)}, which "
                "stage.modalities does not name"
            )


def read_samples(
    config: DataConfig,
    modalities: Mapping[str, Modality],
    names: Sequence[str],
    faults: Faults | None = None,
    lost: Lost = stop,
) -> dict[str, Sequence[Sample]]:
    """Find the samples of a folder of shards.

    Args:
        config: where they are.
        modalities: known modalities by name.
        names: of those to read.
        faults: policy for broken samples; the first is an error if left out.
        lost: is told of a shard that cannot be opened, which is then left out.
    """
    folder = starter_folder() if config.folder == "starter" else Path(config.folder)
    return read_folder(folder, config.split, modalities, names, faults, lost)


def build_parts(
    config: DataConfig,
    modalities: Mapping[str, Modality],
    samples: Mapping[str, Sequence[Sample]],
    faults: Faults,
) -> tuple[list[Part], list[Sequence[Sample]]]:
    """One part for each modality and target that has examples.

    Args:
        config: targets, balance and weights.
        modalities: known modalities, for their caption prompts.
        samples: by modality.
        faults: policy for samples without readable texts.

    Raises:
        BadInput: by the policy.
        ConfigError: a target that no sample has, or a modality without any target.
    """
    shares: dict[str, float] = {str(target): share for target, share in config.targets.items()}
    parts: list[Part] = []
    kept: list[Sequence[Sample]] = []
    for name, found in samples.items():
        prompt = modalities[name].caption_prompt
        lists = by_target(found, list(shares), prompt, faults, name)
        if not lists:
            raise ConfigError(f"data: no sample of {name} has any of {list(shares)}")
        whole = sum(shares[target] for target in lists)
        for target, made in lists.items():
            size = len(found) if config.balance == "size" else 1
            weight = shares[target] / whole * size * config.weights.get(name, 1.0)
            group = name if config.media else "text"
            parts.append(Part(f"{name}/{target}", group, len(made), weight))
            kept.append(made if config.media else WithoutMedia(made))
    unused = set(shares) - {part.name.split("/")[1] for part in parts}
    if unused:
        raise ConfigError(f"data.targets: no sample has {', '.join(sorted(unused))}")
    return parts, kept
