"""From samples to batches: signals read, augmented and cached, conversations encoded.

Shape legend: S text tokens of one sample, ``…`` a signal's own axes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from onellm.data.faults import Faults
from onellm.data.order import Draw, Order, stable_hash
from onellm.data.prefetch import prefetch
from onellm.data.sample import Sample
from onellm.errors import BadInput
from onellm.modality import Modality
from onellm.source import Source
from onellm.splice import IGNORED

Encode = Callable[[Sequence[tuple[str, str]]], tuple[Tensor, Tensor]]
"""Turns → ids (S,) with BOS first, and labels (S,), −100 where nothing is learned."""


@dataclass(frozen=True)
class Medium:
    """One medium of a sample in a batch.

    Args:
        modality: its modality's name.
        key: what its frozen features are stored under.
        signal: shape (…), float32; None where frozen features stand in for it.
    """

    modality: str
    key: str
    signal: Tensor | None


@dataclass(frozen=True)
class Example:
    """One sample, ready for the model.

    Args:
        id: the sample's id.
        group: its modalities joined by ``+``, or ``"text"``; losses are reported by group.
        media: in the order they enter the prompt.
        ids: (S,) int64, BOS first.
        labels: (S,) int64, −100 where nothing is learned.
        answer: text of the last turn.
    """

    id: str
    group: str
    media: tuple[Medium, ...]
    ids: Tensor
    labels: Tensor
    answer: str

    @property
    def supervised(self) -> int:
        """Number of learned tokens. BOS, the first, has nothing in front to predict it."""
        return int((self.labels[1:] != IGNORED).sum())


Batch = list[Example]


def group_of(sample: Sample) -> str:
    """Under which name a sample's loss is reported.

    Example:
        >>> group_of(Sample("a", (("audio", "a.wav"), ("image", "a.jpg")), ()))
        'audio+image'
    """
    return "+".join(dict.fromkeys(name for name, _ in sample.media)) or "text"


def medium_key(sample: Sample, position: int) -> str:
    """Name of one medium, unique within a folder of shards."""
    return f"{sample.media[position][0]}/{sample.id}/{position}"


def view_key(key: str, view: int) -> str:
    """Name of one stored version of a medium: 0 the plain one, then its variations."""
    return f"{key}@{view}"


class SignalReader:
    """Reads media through their modalities and keeps signals in memory up to a limit.

    Args:
        modalities: known modalities by name.
        megabytes: 10^6 bytes of signals kept; what comes when it is full is read each time.
    """

    def __init__(self, modalities: Mapping[str, Modality], megabytes: float = 0.0) -> None:
        self.modalities = modalities
        self._room = megabytes * 1e6
        self._kept: dict[str, Tensor] = {}

    def read(self, name: str, source: Source, key: str) -> Tensor:
        """The signal of a medium, as its modality loads it.

        Raises:
            BadInput: names the file, what was expected and what was found.
        """
        if key in self._kept:
            return self._kept[key]
        signal = self.modalities[name].load(source)
        size = signal.numel() * signal.element_size()
        if size <= self._room:
            self._room -= size
            self._kept[key] = signal
        return signal


class Loader:
    """Batches of a run, in the run's order.

    Args:
        parts: the samples of each part of the order.
        order: which sample stands where.
        encode: turns → ids and labels.
        reader: reads media.
        faults: policy and counts of broken samples.
        augment: vary signals, seeded by (seed, part, epoch, index).
        max_tokens: text beyond this is cut off.
        frozen: whether frozen features are stored for a medium, so that its signal is not needed.
        views: how many variations of it are stored beside the plain one.
    """

    def __init__(
        self,
        parts: Sequence[Sequence[Sample]],
        order: Order,
        encode: Encode,
        reader: SignalReader,
        *,
        faults: Faults | None = None,
        augment: bool = False,
        max_tokens: int = 2048,
        frozen: Callable[[str], bool] = lambda key: False,
        views: int = 0,
    ) -> None:
        self.parts, self.order, self.encode, self.reader = parts, order, encode, reader
        self.faults = faults or Faults()
        self.augment, self.max_tokens = augment, max_tokens
        self.frozen, self.views = frozen, views

    def steps(
        self, first: int, last: int, *, rank: int, world: int, per_device: int, ahead: int = 0
    ) -> Iterator[list[Batch]]:
        """The micro-batches of one rank, one list per optimiser step.

        Args:
            first: first optimiser step, from 0.
            last: the step behind the last one.
            rank: 0 ≤ rank < world.
            world: number of processes.
            per_device: samples of one micro-batch.
            ahead: steps read ahead in a thread; 0 for none.

        Raises:
            BadInput: a broken sample, by the policy of ``faults``.
        """
        made = (
            [
                [self.example(draw) for draw in draws]
                for draws in self.order.rank_batches(
                    step, rank=rank, world=world, per_device=per_device
                )
            ]
            for step in range(first, last)
        )
        yield from prefetch(made, ahead)

    def example(self, draw: Draw) -> Example:
        """Make one drawn sample ready, or under ``skip`` the next one that can be read."""
        samples = self.parts[draw.part]
        group = group_of(samples[draw.index])
        return self.faults.read(
            lambda index: self._example(replace(draw, index=index)),
            draw.index,
            len(samples),
            group,
        )

    def _example(self, draw: Draw) -> Example:
        sample = self.parts[draw.part][draw.index]
        ids, labels = self.encode(sample.turns)
        example = Example(
            id=sample.id,
            group=group_of(sample),
            media=tuple(self._medium(sample, i, draw) for i in range(len(sample.media))),
            ids=ids[: self.max_tokens],
            labels=labels[: self.max_tokens],
            answer=sample.turns[-1][1],
        )
        if not example.supervised:
            raise BadInput(
                sample.id,
                expected=f"an answer to learn within {self.max_tokens} tokens",
                found=f"{len(ids)} tokens, {int((labels != IGNORED).sum())} of them learned",
            )
        return example

    def _medium(self, sample: Sample, position: int, draw: Draw) -> Medium:
        name, source = sample.media[position]
        key = medium_key(sample, position)
        part = self.order.parts[draw.part].name
        seed = stable_hash(self.order.seed, part, draw.epoch, draw.index, position)
        if self.frozen(key):
            return Medium(name, view_key(key, seed % (self.views + 1)), None)
        signal = self.reader.read(name, source, key)
        if self.augment:
            generator = torch.Generator().manual_seed(seed >> 1)  # manual_seed takes 63 bits
            signal = self.reader.modalities[name].augment(signal, generator)
        return Medium(name, key, signal)
