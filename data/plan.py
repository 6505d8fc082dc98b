"""Which samples of a step go through the LLM together, so that little of it is padding.

A plan is a pure function of the step's samples and their lengths. Every device makes the same one,
so nothing has to be agreed on, and all of them make the same number of passes.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from onellm.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Layout:
    """How a step's samples are laid out over devices and passes.

    Args:
        world: number of devices.
        per_device: samples of one pass on one device; with ``pack``, on average.
        arrange: ``"order"`` takes the samples as they come; ``"length"`` puts samples of similar
            length together or, packed, makes rows of equal length.
        pack: whether the samples of a pass are put into one row.
        tokens: longest packed row in positions; shorter rows mean more passes. 0 sets no limit.
        block: so many samples in a row of the step are planned by themselves, because they are of
            one modality; 0 plans the whole step.
    """

    world: int = 1
    per_device: int = 1
    arrange: str = "order"
    pack: bool = False
    tokens: int = 0
    block: int = 0

    @property
    def needs_lengths(self) -> bool:
        """Whether :func:`plan` looks at lengths."""
        return self.arrange == "length"


def plan(items: Sequence[T], lengths: Sequence[int], layout: Layout) -> list[list[list[T]]]:
    """Divide a step's samples among passes and devices.

    Args:
        items: the samples of the step, over all devices.
        lengths: positions that each takes in the LLM; not looked at for ``arrange="order"``.
        layout: how.

    Returns:
        for each pass and device its samples, in the order of the step; every device has at least
        one in every pass.

    Raises:
        ConfigError: a sample is longer than ``layout.tokens``.
    """
    size = layout.per_device * layout.world
    if not layout.needs_lengths:
        return [
            [
                list(items[start + rank * layout.per_device :][: layout.per_device])
                for rank in range(layout.world)
            ]
            for start in range(0, len(items), size)
        ]
    passes = []
    block = layout.block or len(items)
    for start in range(0, len(items), block):
        places = list(range(start, min(start + block, len(items))))
        groups = (
            _rows(places, lengths, layout) if layout.pack else _neighbours(places, lengths, layout)
        )
        # Devices wait for each other: groups of one pass should cost the same.
        groups.sort(key=lambda group: -sum(lengths[i] for i in group))
        for first in range(0, len(groups), layout.world):
            passes.append(groups[first : first + layout.world])
    return [[[items[i] for i in sorted(group)] for group in devices] for devices in passes]


def _neighbours(places: list[int], lengths: Sequence[int], layout: Layout) -> list[list[int]]:
    """Groups of ``per_device`` samples of similar length."""
    by_length = sorted(places, key=lambda i: (-lengths[i], i))
    return [
        by_length[i : i + layout.per_device] for i in range(0, len(by_length), layout.per_device)
    ]


def _rows(places: list[int], lengths: Sequence[int], layout: Layout) -> list[list[int]]:
    """As few rows as hold all samples, of lengths as equal as can be."""
    longest = max(places, key=lambda i: lengths[i])
    if layout.tokens and lengths[longest] > layout.tokens:
        raise ConfigError(
            f"batch.tokens: a sample of {lengths[longest]} positions does not fit into a row of "
            f"{layout.tokens}; raise it, or lower data.max_tokens"
        )
    passes = max(1, len(places) // (layout.per_device * layout.world))
    most = len(places) // layout.world
    if layout.tokens:
        total = sum(lengths[i] for i in places)
        passes = min(most, max(1, -(-total // (layout.tokens * layout.world))))
    while True:
        rows = _even(places, lengths, passes * layout.world)
        fullest = max(sum(lengths[i] for i in row) for row in rows)
        if not layout.tokens or fullest <= layout.tokens or passes >= most:
            return rows
        passes += 1


def _even(places: list[int], lengths: Sequence[int], count: int) -> list[list[int]]:
    """Divide samples into rows: the longest first, each into the row that is shortest so far."""
    rows: list[list[int]] = [[] for _ in range(count)]
    heap = [(0, row) for row in range(count)]
    for i in sorted(places, key=lambda i: (-lengths[i], i)):
        filled, row = heapq.heappop(heap)
        rows[row].append(i)
        heapq.heappush(heap, (filled + lengths[i], row))
    return rows


def padding_share(groups: Sequence[Sequence[int]], *, pack: bool = False) -> float:
    """Share of positions that are padding when each group of lengths is one pass.

    Args:
        groups: lengths of the samples of each pass.
        pack: whether a pass is one row.

    Example:
        >>> padding_share([[10, 6], [4, 4]])
        0.14285714285714285
    """
    real = sum(sum(group) for group in groups)
    slots = real if pack else sum(len(group) * max(group) for group in groups)
    return 1 - real / slots if slots else 0.0
