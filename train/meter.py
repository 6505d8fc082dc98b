"""From counts and seconds to the rates that a run is judged by."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tally:
    """What was done for one optimiser step.

    Args:
        positions: of the LLM that held a token or a medium's token.
        room: positions that were computed, padding among them.
        flops: operations that the mathematics needs.
        hardware_flops: operations that were computed, repeated ones among them.
        stop: how many processes were asked to stop.
    """

    positions: float
    room: float
    flops: float
    hardware_flops: float
    stop: float

    def __len__(self) -> int:
        return len(fields(self))

    def as_tensor(self) -> Tensor:
        """The five numbers, float64, to be summed over processes."""
        return torch.tensor(astuple(self), dtype=torch.float64)

    @classmethod
    def of(cls, numbers: Tensor) -> Tally:
        """Inverse of :meth:`as_tensor`."""
        return cls(*numbers.tolist())


class Meter:
    """Rates of a run.

    Args:
        samples: of one optimiser step.
        world: number of devices.
        peak: operations per second that one of them can do at best.
        device: whose memory is told.
    """

    def __init__(self, samples: int, world: int, peak: float, device: torch.device) -> None:
        self.samples, self.peak, self.device = samples, peak * world, device
        self._seconds: float | None = None

    def rates(self, tally: Tally, seconds: float, waited: float, left: int) -> dict[str, Any]:
        """A step's rates, for its line of metrics.

        Args:
            tally: what was done, over all devices.
            seconds: the step took.
            waited: seconds of them for data.
            left: optimiser steps still to come.
        """
        # A running mean over some ten steps: single ones vary with what they draw.
        past = seconds if self._seconds is None else self._seconds
        self._seconds = 0.9 * past + 0.1 * seconds
        rates: dict[str, Any] = {
            "samples_per_second": round(self.samples / seconds, 3),
            "data_wait": round(waited / seconds, 4),
            "memory_gb": round(memory_gb(self.device), 3),
            "seconds_left": round(self._seconds * left, 1),
        }
        if tally.room:
            rates["tokens_per_second"] = round(tally.positions / seconds, 1)
            rates["padding"] = round(1 - tally.positions / tally.room, 4)
        if tally.flops:
            rates["mfu"] = round(tally.flops / seconds / self.peak, 4)
            rates["hfu"] = round(tally.hardware_flops / seconds / self.peak, 4)
        return rates


def memory_gb(device: torch.device) -> float:
    """Most memory taken so far, 10^9 bytes: of a GPU by tensors, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return process_bytes() / 1e9


def process_bytes() -> float:
    """Most memory that this process has had."""
    with suppress(OSError):  # getrusage would count what the process had that started this one
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM"):
                return float(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
