"""From samples to batches: signals read, augmented and cached, conversations encoded.

Shape legend: S text tokens of one sample, ``…`` a signal's own axes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from onellm.data.faults import Fault, Faults
from onellm.data.lists import beyond, name_of, outline
from onellm.data.order import Draw, Order, stable_hash
from onellm.data.plan import Layout, plan
from onellm.data.prefetch import make_ahead, prefetch
from onellm.data.sample import Sample
from onellm.data.signal_reader import SignalReader
from onellm.data.workers import PATIENCE, in_processes
from onellm.errors import BadInput
from onellm.source import Source, file_key
from onellm.splice import IGNORED

T = TypeVar("T")

Encode = Callable[[Sequence[tuple[str, str]]], tuple[Tensor, Tensor]]
"""Turns → ids (S,) with BOS first, and labels (S,), −100 where nothing is learned."""
Share = Callable[[list[int]], list[list[int]]]
"""This process's numbers → those of all processes, by rank. Every process calls it in turn."""


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
        broken: samples that were to stand here and could not be read.
    """

    id: str
    group: str
    media: tuple[Medium, ...]
    ids: Tensor
    labels: Tensor
    answer: str
    broken: tuple[Fault, ...] = ()

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
    """Name of one medium of a run: of its file, or else of its place in its sample.

    A file that many samples ask about is read, encoded and stored once.

    Example:
        >>> medium_key(Sample("a", (("audio", "clips/dog.wav"),), ()), 0)
        'audio/clips/dog.wav'
    """
    name, source = sample.media[position]
    return f"{name}/{file_key(source) or f'{sample.id}/{position}'}"


def merged(shares: Sequence[Sequence[int]]) -> list[int]:
    """One list again of every n-th item of it, counted from the first, the second … the n-th.

    Example:
        >>> merged([[0, 3, 6], [1, 4], [2, 5]])
        [0, 1, 2, 3, 4, 5, 6]
    """
    whole = [0] * sum(map(len, shares))
    for first, share in enumerate(shares):
        whole[first :: len(shares)] = share
    return whole


def view_key(key: str, view: int) -> str:
    """Name of one stored version of a medium: 0 the plain one, then its variations."""
    return f"{key}@{view}"


def _never(key: str, source: Source) -> bool:
    return False


class Loader:
    """Batches of a run, in the run's order.

    Args:
        parts: the samples of each part of the order.
        order: which sample stands where.
        encode: turns → ids and labels.
        reader: reads media.
        faults: policy and counts of broken samples, of those that :meth:`steps` has handed out.
        augment: vary signals, seeded by (seed, part, epoch, index).
        max_tokens: text beyond this is cut off.
        frozen: whether frozen features are stored for a medium, so that its signal is not needed.
        views: how many variations of it are stored beside the plain one.
        layout: how a step is laid out over passes; devices and samples of a pass are told to
            :meth:`steps`.
        medium_tokens: positions that a medium takes in the LLM, its tags included.

    Attributes:
        patience: seconds to wait for what a worker process reads; 0 waits for ever.
    """

    patience = PATIENCE

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
        frozen: Callable[[str, Source], bool] = _never,
        views: int = 0,
        layout: Layout | None = None,
        medium_tokens: int = 0,
    ) -> None:
        self.parts, self.order, self.encode, self.reader = parts, order, encode, reader
        self.faults = faults or Faults()
        self.augment, self.max_tokens = augment, max_tokens
        self.frozen, self.views = frozen, views
        self.layout, self.medium_tokens = layout or Layout(), medium_tokens

    def steps(
        self,
        first: int,
        last: int,
        *,
        rank: int,
        world: int,
        per_device: int,
        ahead: int = 0,
        workers: int = 0,
        share: Share | None = None,
    ) -> Iterator[list[Batch]]:
        """The micro-batches of one rank, one list per optimiser step.

        Args:
            first: first optimiser step, from 0.
            last: the step behind the last one.
            rank: 0 ≤ rank < world.
            world: number of processes.
            per_device: samples of one micro-batch; in packed rows, on average.
            ahead: steps read ahead in a thread; 0 for none.
            workers: processes that read media; 0 reads in the thread.
            share: tells the other processes the lengths that this one has measured, and the other
                way round; it is called in the caller's thread, in every process equally often.
                Without it each process measures all.

        Raises:
            BadInput: a broken sample, by the policy of ``faults``.
        """
        layout = replace(self.layout, world=world, per_device=per_device)
        plans = self._plans(range(first, last), layout, rank, share, max(ahead, min(workers, 1)))
        made = self._in_workers(plans, workers) if workers else make_ahead(self._step, plans, ahead)
        for batches in made:
            # Here, and not where they are read, so that what was only read ahead does not count.
            for batch in batches:
                broken = [fault for example in batch for fault in example.broken]
                self.faults.add(broken, len(batch) + len(broken))
            yield batches

    def _step(self, passes: list[list[int]]) -> list[Batch]:
        return [[self._numbered(number) for number in numbers] for numbers in passes]

    def _numbered(self, number: int) -> Example:
        return self.example(self.order.draw(number))

    def _in_workers(self, plans: Iterator[list[list[int]]], workers: int) -> Iterator[list[Batch]]:
        """Micro-batches from other processes."""
        passes: deque[int] = deque()

        def jobs() -> Iterator[list[int]]:
            for step_plan in plans:
                passes.append(len(step_plan))
                yield from step_plan

        def name(number: int) -> str:
            draw = self.order.draw(number)
            return name_of(self.parts[draw.part], draw.index)

        batches = in_processes(
            *(self._numbered, jobs(), workers), patience=self.patience, name=name
        )
        step: list[Batch] = []
        for batch in batches:
            step.append(batch)
            if len(step) == passes[0]:
                yield step
                passes.popleft()
                step = []

    def _plans(
        self, steps: range, layout: Layout, rank: int, share: Share | None, ahead: int
    ) -> Iterator[list[list[int]]]:
        """The numbers of this process's draws in each step, for each pass.

        With ``share`` a process measures one in ``world`` of a step's samples. Besides the time,
        that keeps plans equal where one process finds a sample broken and another does not. What
        is drawn is left to who reads it: the loop's thread has better to do.
        """
        every = range(self.order.batch)
        own = every[rank :: layout.world] if share else every
        lengths_of = (self._lengths(step, own, layout) for step in steps)
        measured = prefetch(lengths_of, ahead if layout.needs_lengths else 0)
        with closing(measured):
            for step, mine in zip(steps, measured, strict=True):
                lengths = merged(share(mine)) if share and layout.needs_lengths else mine
                first = step * len(every)
                passes = plan(every, lengths, layout)
                yield [[first + place for place in devices[rank]] for devices in passes]

    def plan(self, step: int, layout: Layout) -> list[list[list[Draw]]]:
        """The draws of a step for each pass and device.

        Args:
            step: optimiser step, from 0.
            layout: devices, samples of a pass, and how they are put together.
        """
        every = range(self.order.batch)
        passes = plan(every, self._lengths(step, every, layout), layout)
        return [
            [[self._drawn(step, place) for place in places] for places in devices]
            for devices in passes
        ]

    def _lengths(self, step: int, places: range, layout: Layout) -> list[int]:
        if not layout.needs_lengths:
            return []
        return [self.length(self._drawn(step, place)) for place in places]

    def _drawn(self, step: int, place: int) -> Draw:
        return self.order.draw(step * self.order.batch + place)

    def length(self, draw: Draw) -> int:
        """Positions that a drawn sample takes in the LLM.

        Media are not read for it, so that each device can look at the samples of all: see
        :meth:`outline`. That of a sample whose medium turns out to be broken is its own.
        """
        try:
            sample, ids, _ = self.outline(draw)
        except BadInput:  # it will be told of when it is its turn
            return 1
        return len(ids) + self.medium_tokens * len(sample.media)

    def outline(self, draw: Draw) -> tuple[Sample, Tensor, Tensor]:
        """A drawn sample without what its media hold, its ids (S,) and its labels (S,).

        Of a sample without a readable text it is what will stand in its place under ``skip``.

        Raises:
            BadInput: by the policy.
        """

        def look(own: Draw) -> tuple[Sample, Tensor, Tensor]:
            sample = outline(self.parts[own.part], own.index)
            _, ids, labels = self._text(sample, own)
            return sample, ids, labels

        return self._read(draw, look)[0]

    def example(self, draw: Draw) -> Example:
        """Make one drawn sample ready, or under ``skip`` the next one that can be read."""
        example, broken = self._read(draw, self._example)
        return replace(example, broken=tuple(broken)) if broken else example

    def _read(self, draw: Draw, make: Callable[[Draw], T]) -> tuple[T, list[Fault]]:
        """What is made of a draw or, by the policy, of the next; and what was broken before it."""
        one = Faults(self.faults.config.model_copy(update={"share": 1.0}))
        samples = self.parts[draw.part]
        made = one.read(
            lambda index: make(replace(draw, index=index)),
            *(draw.index, len(samples), self.order.parts[draw.part].group),
            beyond=partial(beyond, samples),
        )
        return made, one.found

    def _example(self, draw: Draw) -> Example:
        sample = self.parts[draw.part][draw.index]
        turns, ids, labels = self._text(sample, draw)
        return Example(
            id=sample.id,
            group=self.order.parts[draw.part].group,
            media=tuple(self._medium(sample, i, draw) for i in range(len(sample.media))),
            ids=ids,
            labels=labels,
            answer=turns[-1][1],
        )

    def _text(self, sample: Sample, draw: Draw) -> tuple[Sequence[tuple[str, str]], Tensor, Tensor]:
        """Turns, ids and labels of a sample, if it can be learned from."""
        self._check_group(sample, draw)
        turns = sample.said(draw.epoch)
        if not turns:
            raise BadInput(sample.id, expected="a text or a conversation", found="neither")
        ids, labels = self.encode(turns)
        cut = labels[: self.max_tokens]
        if not (cut[1:] != IGNORED).any():  # BOS, the first, has nothing in front to predict it
            raise BadInput(
                sample.id,
                expected=f"an answer to learn within {self.max_tokens} tokens",
                found=f"{len(ids)} tokens, {int((labels != IGNORED).sum())} of them learned",
            )
        return turns, ids[: self.max_tokens], cut

    def _check_group(self, sample: Sample, draw: Draw) -> None:
        """A sample has the modalities of its part; other devices count on them."""
        group, found = self.order.parts[draw.part].group, group_of(sample)
        if set(found.split("+")) != set(group.split("+")):
            raise BadInput(
                sample.id,
                expected=f"media of {group}, as in the rest of its shard or table",
                found=found,
                hint="onellm data convert puts samples apart by their modalities.",
            )

    def _medium(self, sample: Sample, position: int, draw: Draw) -> Medium:
        name, source = sample.media[position]
        key = medium_key(sample, position)
        part = self.order.parts[draw.part].name
        seed = stable_hash(self.order.seed, part, draw.epoch, draw.index, position)
        if self.frozen(key, source):
            return Medium(name, view_key(key, seed % (self.views + 1)), None)
        signal = self.reader.read(name, source, key)
        if self.augment:
            generator = torch.Generator().manual_seed(seed >> 1)  # manual_seed takes 63 bits
            signal = self.reader.modalities[name].augment(signal, generator)
        return Medium(name, key, signal)
