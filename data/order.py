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
from functools import lru_cache
from itertools import accumulate

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
        repeats: how often an epoch of the mixture goes through it, for the length of that epoch.
        pieces: numbers of examples of the files it is made of, where only a few of them are at
            hand at a time; () for examples that are all within reach.
    """

    name: str
    group: str
    size: int
    weight: float = 1.0
    repeats: float = 1.0
    pieces: tuple[int, ...] = ()


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
POOL = 8
"""Pieces whose examples are shuffled into each other: what is at hand at a time, and the next."""
ROUND = 256
"""Draws of a mixture that are shuffled into each other, where parts have many pieces."""


def shuffled(place: int, part: Part, key: int) -> int:
    """Example at a place of a part's epoch.

    Examples of a part of many pieces are not shuffled over all of it: the pieces are, and then the
    examples within every :data:`POOL` of them, so that each piece is fetched once an epoch.

    Args:
        place: 0 ≤ place < part.size.
        part: what is drawn from.
        key: 64 bits; another key is another order.
    """
    if len(part.pieces) <= POOL:
        return permute(place, part.size, key)
    pools, ends = _pools(part.pieces, key)
    number = bisect_right(ends, place)
    pool = pools[number]
    size = sum(count for _, count in pool)
    place = permute(place - (ends[number] - size), size, stable_hash(key, number))
    for start, count in pool:
        if place < count:
            return start + place
        place -= count
    raise AssertionError("a place lies inside its pool")


@lru_cache(maxsize=64)
def _pools(pieces: tuple[int, ...], key: int) -> tuple[list[list[tuple[int, int]]], list[int]]:
    """Pieces in the order of an epoch, a pool at a time: (first example, number), and pool ends."""
    starts = [0, *accumulate(pieces)]
    order = [permute(i, len(pieces), key) for i in range(len(pieces))]
    pools = [
        [(starts[i], pieces[i]) for i in order[first : first + POOL]]
        for first in range(0, len(order), POOL)
    ]
    return pools, list(accumulate(sum(count for _, count in pool) for pool in pools))


class _Mixture:
    """Draws from several urns in fixed proportion: a permuted epoch of apportioned slots.

    In several rounds, each has its share of every urn's slots and is permuted by itself, so that
    an urn's slots come in order but for the round they are in.
    """

    def __init__(
        self, weights: Sequence[float], length: int, *key: int | str, rounds: int = 1
    ) -> None:
        self.counts = apportion(weights, length)
        self.length, self.key, self.rounds = sum(self.counts), key, rounds

    def draw(self, n: int) -> tuple[int, int]:
        """Which urn draw number ``n`` takes from, and how often it was taken from before."""
        if self.rounds > 1 and len(self.counts) == 1:
            return 0, n
        epoch, place = divmod(n, self.length)
        number = place * self.rounds // self.length
        while sum(self._before(number)) > place:
            number -= 1
        while sum(self._before(number + 1)) <= place:
            number += 1
        before = self._before(number)
        sizes = [b - a for a, b in zip(before, self._before(number + 1), strict=True)]
        key = stable_hash(*self.key, epoch * self.rounds + number)
        slot = permute(place - sum(before), sum(sizes), key)
        ends = list(accumulate(sizes))
        urn = bisect_right(ends, slot)
        occurrence = before[urn] + slot - (ends[urn] - sizes[urn])
        return urn, epoch * self.counts[urn] + occurrence

    def _before(self, number: int) -> list[int]:
        """Slots of each urn in front of a round."""
        return [number * count // self.rounds for count in self.counts]


def apportion(weights: Sequence[float], total: int) -> list[int]:
    """Whole numbers in proportion to weights, by largest remainder, at least 1 each.

    Example:
        >>> apportion([2, 1, 1], 10)
        [5, 3, 2]
    """
    share = [w * total / sum(weights) for w in weights]
    counts = [max(1, math.floor(s)) for s in share]
    # One that was raised to 1 has had its part of what is left over.
    by_remainder = sorted(range(len(share)), key=lambda i: (counts[i] - share[i], i))
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
        self.epoch_length = sum(round(p.size * p.repeats) for p in parts)
        groups = list(dict.fromkeys(p.group for p in parts))
        self._members = [[i for i, p in enumerate(parts) if p.group == g] for g in groups]
        weights = [sum(parts[i].weight for i in members) for members in self._members]
        # Whole blocks do not fill an epoch exactly: enough slots that rounding does not favour a
        # group, since the same one would lose every epoch.
        blocks = self.epoch_length
        if block > 1:
            blocks = max(SLOTS_PER_GROUP * len(groups), round(self.epoch_length / block))
        # Parts of which only some pieces are at hand must be gone through in order.
        near = any(len(part.pieces) > POOL for part in parts)
        self._blocks = _Mixture(weights, blocks, seed, "blocks", rounds=_rounds(blocks, near))
        self._inner = []
        for group, members in zip(groups, self._members, strict=True):
            length = sum(round(parts[i].size * parts[i].repeats) for i in members)
            shares, rounds = [parts[i].weight for i in members], _rounds(length, near)
            self._inner.append(_Mixture(shares, length, seed, "group", group, rounds=rounds))

    def draw(self, n: int) -> Draw:
        """Draw number ``n`` of the run, counted from 0 over all devices."""
        block, offset = divmod(n, self.block)
        group, before = self._blocks.draw(block)
        member, occurrence = self._inner[group].draw(before * self.block + offset)
        index = self._members[group][member]
        part = self.parts[index]
        epoch, place = divmod(occurrence, part.size)
        key = stable_hash(self.seed, "part", part.name, epoch)
        return Draw(index, shuffled(place, part, key), epoch)

    def global_batch(self, step: int) -> list[Draw]:
        """The draws of optimiser step ``step`` (from 0), over all devices."""
        return [self.draw(n) for n in range(step * self.batch, (step + 1) * self.batch)]


def _rounds(length: int, near: bool) -> int:
    return max(1, length // ROUND) if near else 1


def _check(parts: Sequence[Part], batch: int, block: int) -> None:
    if not parts:
        raise ConfigError("data: nothing to draw from")
    for part in parts:
        if part.size < 1:
            raise ConfigError(f"data: {part.name} has no examples")
        if part.pieces and sum(part.pieces) != part.size:
            raise ConfigError(f"data: {part.name} has {part.size} examples, not those of its files")
        if not part.weight > 0:
            raise ConfigError(f"data: the weight of {part.name} is {part.weight}, not positive")
    if len({part.name for part in parts}) < len(parts):
        raise ConfigError("data: two parts of one name")
    if batch % block:
        raise ConfigError(
            f"batch.same_modality {block} does not divide batch.size {batch}; set it to a number "
            "that does, or to 1 to mix modalities freely"
        )
