"""The passes of a run before anything is read for them: how many media, how long, what is learned.

Whole steps are planned from texts alone, so that a dry run sees the dearest pass of many steps and
all devices, and not only the first that comes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from onellm.data.loader import Example, Loader
from onellm.data.order import Draw
from onellm.data.plan import Layout
from onellm.errors import BadInput
from onellm.splice import IGNORED

LOOKED_AT = 2000
"""Samples whose texts are read for a dry run on this machine's disks."""


@dataclass(frozen=True)
class Shapes:
    """A pass without its numbers.

    Args:
        media: how many of each modality.
        lengths: text tokens of each sample.
        media_of: number of media of each sample.
        supervised: learned tokens.
    """

    media: Mapping[str, int]
    lengths: tuple[int, ...]
    media_of: tuple[int, ...]
    supervised: int

    def positions(self, medium: int) -> list[int]:
        """Positions of each sample in the LLM.

        Args:
            medium: positions of one medium, its tags included.
        """
        both = zip(self.lengths, self.media_of, strict=True)
        return [length + medium * count for length, count in both]

    def room(self, medium: int, *, pack: bool) -> int:
        """Positions that are computed, padding among them.

        Args:
            medium: positions of one medium, its tags included.
            pack: whether the samples lie in one row.
        """
        positions = self.positions(medium)
        return sum(positions) if pack else max(positions, default=0) * len(positions)


def shapes_of(batch: Iterable[Example]) -> Shapes:
    """The shapes of a micro-batch of examples."""
    examples = list(batch)
    return Shapes(
        dict(Counter(m.modality for e in examples for m in e.media)),
        tuple(len(e.ids) for e in examples),
        tuple(len(e.media) for e in examples),
        sum(e.supervised for e in examples),
    )


def planned_steps(
    loader: Loader, layout: Layout, steps: int, most: int = LOOKED_AT
) -> list[list[list[Shapes]]]:
    """The shapes of a run's first steps, for each pass and device.

    Args:
        loader: of the run; no media are read.
        layout: devices, and how passes are made up.
        steps: of the whole run.
        most: samples to look at; one step at least.
    """
    size = max(1, len(loader.order.global_batch(0)))
    count = max(1, min(steps, most // size))
    return [
        [[_planned(loader, draws) for draws in devices] for devices in loader.plan(step, layout)]
        for step in range(count)
    ]


def _planned(loader: Loader, draws: Iterable[Draw]) -> Shapes:
    media: Counter[str] = Counter()
    lengths, media_of, supervised = [], [], 0
    for draw in draws:
        try:
            sample, ids, labels = loader.outline(draw)
        except BadInput:  # the run will tell of it
            continue
        media.update(name for name, _ in sample.media)
        lengths.append(len(ids))
        media_of.append(len(sample.media))
        supervised += int((labels[1:] != IGNORED).sum())
    return Shapes(dict(media), tuple(lengths), tuple(media_of), supervised)


def dearest(passes: Sequence[Shapes], cost: Sequence[float], most: int = 8) -> list[Shapes]:
    """The dearest pass of each mixture of modalities, at most so many.

    Which of several modalities takes the most memory is not told by arithmetic alone.

    Args:
        passes: to choose from.
        cost: of each, such as its operations.
        most: how many to give; those of the dearest mixtures.
    """
    best: dict[frozenset[str], tuple[float, Shapes]] = {}
    for shapes, own in zip(passes, cost, strict=True):
        kind = frozenset(shapes.media)
        if kind not in best or own > best[kind][0]:
            best[kind] = own, shapes
    ranked = sorted(best.values(), key=lambda found: -found[0])
    return [shapes for _, shapes in ranked[:most]]
