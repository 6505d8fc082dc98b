"""The order of samples: a pure function of (seed, position), whatever the machine looks like.

No state, no shuffled index in memory, no random generator to save: sample number ``n`` of a run is
computed. World size, workers and restarts do not enter, so a run that goes on with another number
of processes sees the same samples, and data sets of 10^9 items cost no memory.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from onellm.errors import ConfigError

_MASK = (1 << 64) - 1
_ROUNDS = 6  # of the Feistel network; 4 are enough for mixing, 6 also for domains of a few items


def stable_hash(*parts: int | str) -> int:
    """Hash numbers and words to 64 bits, the same in every process and on every machine.

    Example:
        >>> stable_hash(0, "image", 3) == stable_hash(0, "image", 3)
        True
    """
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def permute(place: int, size: int, key: int) -> int:
    """Item at a place of a keyed permutation of ``range(size)``, in constant time and memory.

    A Feistel network over the next even number of bits, walked until it lands inside the range.

    Args:
        place: 0 ≤ place < size.
        size: number of items, at least 1.
        key: 64 bits; another key is another permutation.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    keys = [_mix(key + r) for r in range(_ROUNDS)]
    item = place
    while True:
        left, right = item >> half, item & low
        for round_key in keys:
            left, right = right, left ^ (_mix(right ^ round_key) & low)
        item = left << half | right
        if item < size:
            return item


def _mix(x: int) -> int:
    """The finaliser of splitmix64: 64 well mixed bits of 64."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


@dataclass(frozen=True)
class Part:
    """A set of examples that are drawn with one weight.

    Args:
        name: unique in its run, such as ``"audio/caption"``; it seeds the order.
        group: parts of one group may share a block (the modality's name).
        size: number of examples.
        weight: share of the draws, relative to the other parts.
    """

    name: str
    group: str
    size: int
    weight: float = 1.0


@dataclass(frozen=True)
class Draw:
    """One drawn example.

    Args:
        part: index of the part.
        index: which example of the part.
        epoch: how many times the part had been gone through before.
    """

    part: int
    index: int
    epoch: int


SLOTS_PER_GROUP = 100


class _Mixture:
    """Draws from several urns in fixed proportion: a permuted epoch of apportioned slots."""

    def __init__(self, weights: Sequence[float], length: int, *key: int | str) -> None:
        self.counts = apportion(weights, length)
        self.length, self.key = sum(self.counts), key
        self.ends = [sum(self.counts[: i + 1]) for i in range(len(self.counts))]

    def draw(self, n: int) -> tuple[int, int]:
        """Which urn draw number ``n`` takes from, and how often it was taken from before."""
        epoch, place = divmod(n, self.length)
        slot = permute(place, self.length, stable_hash(*self.key, epoch))
        urn = bisect_right(self.ends, slot)
        count = self.counts[urn]
        return urn, epoch * count + slot - (self.ends[urn] - count)


def apportion(weights: Sequence[float], total: int) -> list[int]:
    """Whole numbers in proportion to weights, by largest remainder, at least 1 each.

    Example:
        >>> apportion([2, 1, 1], 10)
        [5, 3, 2]
    """
    share = [w / sum(weights) * total for w in weights]
    counts = [max(1, math.floor(s)) for s in share]
    by_remainder = sorted(range(len(share)), key=lambda i: (math.floor(share[i]) - share[i], i))
    for i in by_remainder[: max(0, total - sum(counts))]:
        counts[i] += 1
    return counts


class Order:
    """Which example stands where in a run over a mixture of parts.

    Within an epoch of a part every example comes once; within an epoch of the mixture every part
    comes as often as its weight says.

    Args:
        parts: what is drawn from.
        seed: another seed is another order.
        batch: samples of one optimiser step, over all devices.
        block: this many draws in a row come from one group; 1 mixes freely.

    Raises:
        ConfigError: no part, an empty part, a weight that is not positive, or blocks that do not
            fill a batch.
    """

    def __init__(self, parts: Sequence[Part], *, seed: int, batch: int, block: int = 1) -> None:
        _check(parts, batch, block)
        self.parts, self.seed, self.batch, self.block = tuple(parts), seed, batch, block
        self.epoch_length = sum(p.size for p in parts)
        groups = list(dict.fromkeys(p.group for p in parts))
        self._members = [[i for i, p in enumerate(parts) if p.group == g] for g in groups]
        weights = [sum(parts[i].weight for i in members) for members in self._members]
        # Whole blocks do not fill an epoch exactly: enough slots that rounding does not favour a
        # group, since the same one would lose every epoch.
        blocks = self.epoch_length
        if block > 1:
            blocks = max(SLOTS_PER_GROUP * len(groups), round(self.epoch_length / block))
        self._blocks = _Mixture(weights, blocks, seed, "blocks")
        self._inner = [
            _Mixture(
                [parts[i].weight for i in members],
                sum(parts[i].size for i in members),
                *(seed, "group", group),
            )
            for group, members in zip(groups, self._members, strict=True)
        ]

    def draw(self, n: int) -> Draw:
        """Draw number ``n`` of the run, counted from 0 over all devices."""
        block, offset = divmod(n, self.block)
        group, before = self._blocks.draw(block)
        member, occurrence = self._inner[group].draw(before * self.block + offset)
        index = self._members[group][member]
        part = self.parts[index]
        epoch, place = divmod(occurrence, part.size)
        key = stable_hash(self.seed, "part", part.name, epoch)
        return Draw(index, permute(place, part.size, key), epoch)

    def global_batch(self, step: int) -> list[Draw]:
        """The draws of optimiser step ``step`` (from 0), over all devices."""
        return [self.draw(n) for n in range(step * self.batch, (step + 1) * self.batch)]

    def rank_batches(
        self, step: int, *, rank: int, world: int, per_device: int
    ) -> list[list[Draw]]:
        """One rank's micro-batches of a step; all ranks together make the global batch.

        Args:
            step: optimiser step, from 0.
            rank: 0 ≤ rank < world.
            world: number of processes.
            per_device: samples of one micro-batch; world x per_device divides the batch.
        """
        draws = self.global_batch(step)
        starts = range(rank * per_device, self.batch, world * per_device)
        return [draws[s : s + per_device] for s in starts]


def _check(parts: Sequence[Part], batch: int, block: int) -> None:
    if not parts:
        raise ConfigError("data: nothing to draw from")
    for part in parts:
        if part.size < 1:
            raise ConfigError(f"data: {part.name} has no examples")
        if not part.weight > 0:
            raise ConfigError(f"data: the weight of {part.name} is {part.weight}, not positive")
    if len({part.name for part in parts}) < len(parts):
        raise ConfigError("data: two parts of one name")
    if batch % block:
        raise ConfigError(f"batch.same_modality {block} does not divide batch.size {batch}")
