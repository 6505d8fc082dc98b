"""What a way of making batches would make of samples of given lengths, before a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
from torch import Tensor

from onellm.data.loader import Encode
from onellm.data.plan import Layout, padding_share, plan
from onellm.data.surveying import Reading
from onellm.errors import ConfigError

SIZE, PER_DEVICE = 128, 4
"""Samples of a step and of a pass where nobody says."""


class BatchSettings(Protocol):
    """What is looked at of a run's ``batch`` section."""

    @property
    def size(self) -> int:
        """Samples of a step."""

    @property
    def per_device(self) -> int | None:
        """Samples of a pass on a device; None for all."""

    @property
    def arrange(self) -> str:
        """See :class:`Layout`."""

    @property
    def pack(self) -> bool:
        """See :class:`Layout`."""

    @property
    def tokens(self) -> int | None:
        """See :class:`Layout`; None sets no limit."""


@dataclass(frozen=True)
class Batching:
    """Samples of one step, divided into passes of a device.

    Args:
        size: samples of a step.
        layout: how it is divided; samples are taken to be of one modality.
        told: the settings in words.
    """

    size: int
    layout: Layout
    told: str = ""

    @classmethod
    def of(
        cls, stage: BatchSettings | None, size: int | None = None, per_device: int | None = None
    ) -> Batching:
        """The batching of a stage, or the usual one, under what was asked for.

        Args:
            stage: the stage's settings.
            size: samples of a step, over the stage's.
            per_device: samples of a pass on a device, over the stage's.
        """
        if stage is None:
            return cls(size or SIZE, Layout(per_device=per_device or PER_DEVICE))
        whole = size or stage.size
        one_pass = min(whole, per_device or stage.per_device or whole)
        told = [
            f"size {whole}" + (" by --batch" if size else ""),
            f"per_device {one_pass}" + (" by --per-device" if per_device else ""),
            f"arrange {stage.arrange}",
            f"pack {str(stage.pack).lower()}",
        ]
        told += [f"tokens {stage.tokens}"] if stage.tokens else []
        layout = Layout(1, one_pass, stage.arrange, stage.pack, stage.tokens or 0)
        return cls(whole, layout, ", ".join(told))

    def passes(self, lengths: Sequence[int], seed: int = 0) -> list[list[list[int]]]:
        """The lengths in each pass of each step, of samples in random order.

        Args:
            lengths: positions of each sample.
            seed: of the order.

        Raises:
            ConfigError: a sample is longer than a row may be.
        """
        shuffled = np.random.default_rng(seed).permutation(lengths).tolist()
        whole = len(shuffled) - len(shuffled) % self.size or len(shuffled)
        steps = [shuffled[start : start + self.size] for start in range(0, whole, self.size)]
        return [[devices[0] for devices in plan(step, step, self.layout)] for step in steps]

    def padding(self, lengths: Sequence[int], arrange: str) -> float:
        """Share of positions that are padding where samples are not packed.

        Args:
            lengths: positions of each sample.
            arrange: ``"order"`` or ``"length"``.
        """
        plain = replace(self, layout=Layout(per_device=self.layout.per_device, arrange=arrange))
        return padding_share([group for step in plain.passes(lengths) for group in step])

    def padding_line(self, lengths: Sequence[int]) -> str:
        """What each way of making passes would pad, in words.

        Args:
            lengths: positions of each sample.
        """
        return (
            f"padding in passes of {self.layout.per_device}, batches of {self.size}: "
            f"{self.padding(lengths, 'order'):.1%} as samples come, "
            f"{self.padding(lengths, 'length'):.1%} by length (batch.arrange), none packed "
            "(batch.pack)"
        )

    def own_line(self, lengths: Sequence[int]) -> str:
        """What a stage's own settings make of the samples, in words.

        Args:
            lengths: positions of each sample.
        """
        head = f"has batch: {self.told}:"
        if not self.layout.pack:
            return f"{head} {self.padding(lengths, self.layout.arrange):.1%} padding"
        try:
            steps = self.passes(lengths)
        except ConfigError as error:
            return f"{head} {error}"
        rows = [sum(row) for step in steps for row in step]
        return (
            f"{head} no padding; rows of {sum(rows) / len(rows):,.0f} positions on average and "
            f"{max(rows):,} at most, {len(rows) / len(steps):.3g} of them a step over all devices"
        )


def cut_texts(reading: Reading, most: int) -> Reading:
    """Read texts as a run does that cuts them off.

    Args:
        reading: how they are read.
        most: tokens that are kept.
    """
    return replace(reading, encode=partial(_cut, reading.encode, most))


def _cut(encode: Encode, most: int, turns: Sequence[tuple[str, str]]) -> tuple[Tensor, Tensor]:
    ids, labels = encode(turns)
    return ids[:most], labels[:most]
