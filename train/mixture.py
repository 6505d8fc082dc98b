"""What a run draws from, by its configuration: folders of shards, or data sets of any format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from onellm.data.datasets import mixture, open_dataset
from onellm.data.loader import group_of
from onellm.data.order import Part
from onellm.data.packaged import starter_folder
from onellm.data.sample import Sample
from onellm.data.shards import read_folder
from onellm.data.streams import Shelf
from onellm.data.targets import examples
from onellm.errors import ConfigError
from onellm.modality import Modality
from onellm.train.config import DataConfig

MANY_TEXTS = 20_000


@dataclass(frozen=True)
class Drawn:
    """What a run draws from.

    Args:
        parts: what is drawn with one weight each.
        kept: the samples of each part.
        samples: media by modality, for what is computed once.
    """

    parts: list[Part]
    kept: list[Sequence[Sample]]
    samples: dict[str, Sequence[Sample]]

    def texts(self) -> list[str]:
        """Texts that stand for all: of each part at most 20 000, evenly from its whole."""
        found = []
        for samples in self.kept:
            step = max(1, len(samples) // MANY_TEXTS)
            turns = (samples[i].turns for i in range(0, len(samples), step))
            found += [said[-1][1] for said in turns if said]
        return found


def open_data(
    config: DataConfig, modalities: Mapping[str, Modality], names: Sequence[str]
) -> Drawn:
    """Open what a run draws from.

    Args:
        config: where it is.
        modalities: known modalities by name.
        names: those of the stage.

    Raises:
        BadInput: data that cannot be read.
        ConfigError: data of a modality that the stage does not name, or that fit no target.
    """
    if not config.datasets:
        samples = read_samples(config, modalities, names)
        return Drawn(*build_parts(config, modalities, samples), dict(samples))
    shelf = shelf_of(config)
    collections = [open_dataset(one, modalities, shelf) for one in config.datasets]
    parts, kept = mixture(collections, media=config.media)
    _check_groups(parts, names)
    by_modality: dict[str, list[Sequence[Sample]]] = {}
    for part, part_samples in zip(parts, kept, strict=True):
        for name in names_in(part.group):
            by_modality.setdefault(name, []).append(part_samples)
    return Drawn(parts, kept, {name: Chained(own) for name, own in by_modality.items()})


def shelf_of(config: DataConfig) -> Shelf:
    """Where fetched shards are kept."""
    folder = Path(config.shelf) if config.shelf else Path.home() / ".cache" / "onellm" / "shards"
    return Shelf(folder, config.shelf_gigabytes)


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


class Chained(Sequence[Sample]):
    """Several lists of samples, one behind the other."""

    def __init__(self, parts: Sequence[Sequence[Sample]]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # never a slice
        for part in self.parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)


def read_samples(
    config: DataConfig, modalities: Mapping[str, Modality], names: Sequence[str]
) -> dict[str, list[Sample]]:
    """Read the samples of a folder of shards.

    Args:
        config: where they are.
        modalities: known modalities by name.
        names: of those to read.
    """
    folder = starter_folder() if config.folder == "starter" else Path(config.folder)
    return read_folder(folder, config.split, modalities, names)


def build_parts(
    config: DataConfig, modalities: Mapping[str, Modality], samples: Mapping[str, list[Sample]]
) -> tuple[list[Part], list[Sequence[Sample]]]:
    """One part for each modality and target that has examples.

    Args:
        config: targets, balance and weights.
        modalities: known modalities, for their caption prompts.
        samples: by modality.

    Raises:
        ConfigError: a target that no sample has, or a modality without any target.
    """
    parts: list[Part] = []
    kept: list[Sequence[Sample]] = []
    for name, found in samples.items():
        by_target = {
            target: examples(found, target, modalities[name].caption_prompt)
            for target in config.targets
        }
        by_target = {target: made for target, made in by_target.items() if made}
        if not config.media:
            by_target = {t: [replace(s, media=()) for s in m] for t, m in by_target.items()}
        if not by_target:
            raise ConfigError(f"data: no sample of {name} has any of {list(config.targets)}")
        share = sum(config.targets[target] for target in by_target)
        for target, made in by_target.items():
            size = len(found) if config.balance == "size" else 1
            weight = config.targets[target] / share * size * config.weights.get(name, 1.0)
            parts.append(Part(f"{name}/{target}", group_of(made[0]), len(made), weight))
            kept.append(made)
    unused = set(config.targets) - {part.name.split("/")[1] for part in parts}
    if unused:
        raise ConfigError(f"data.targets: no sample has {', '.join(sorted(unused))}")
    return parts, kept
