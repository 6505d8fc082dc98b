"""What a person sees of a run: what it is before it begins, and every step."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from onellm.data.loader import Loader
from onellm.model import OneLLM
from onellm.progress import follow, watch
from onellm.train.config import TrainConfig
from onellm.train.engine import part_of
from onellm.train.metrics import Callback, Progress, line

FROZEN_EVERY_S = 5.0


def opening(
    config: TrainConfig,
    model: OneLLM,
    loader: Loader,
    steps: int,
    device: torch.device,
    world: int,
) -> str:
    """A run in one line: length, data, what is trained, where.

    Args:
        config: the run.
        model: with its trained parameters selected.
        loader: of the run.
        steps: of the whole run.
        device: of this process.
        world: number of processes.
    """
    trained = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    parts = ", ".join(dict.fromkeys(part_of(name) for name in trained))
    groups: dict[str, int] = {}
    for part in loader.order.parts:
        groups[part.group] = groups.get(part.group, 0) + part.size
    data = ", ".join(f"{group} {count:,}" for group, count in groups.items())
    where = str(device) if world == 1 else f"{world} x {device.type}"
    return (
        f"{steps:,} steps of {config.batch.size} samples out of {data}; trains "
        f"{sum(trained.values()) / 1e6:,.3g} M parameters ({parts}) on {where}, into {config.out}"
    )


def continued(config: TrainConfig, start: int, steps: int) -> str:
    """What becomes of a run that was begun before; empty where it was not.

    Args:
        config: the run.
        start: optimiser steps already done.
        steps: of the whole run.
    """
    if not start:
        return ""
    if start < steps:
        return f"goes on behind step {start:,} of {steps:,}, where it was saved last"
    key = "length.steps" if config.length.steps else "length.epochs"
    return (
        f"has finished before: {start:,} of {steps:,} steps are done. To train longer, raise "
        f"{key}; to train anew, take another folder for out"
    )


class Lines:
    """A callback that writes a run line by line, for logs and pipes.

    Args:
        write: called with each line.
        clock: seconds, rising.
    """

    def __init__(
        self, write: Callable[[str], object], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write, self._clock = write, clock
        self._last = -FROZEN_EVERY_S

    def __call__(self, progress: Progress) -> None:
        """Write a line; of what is computed once only now and then."""
        if progress.phase == "frozen" and progress.done < progress.total:
            now = self._clock()
            if now - self._last < FROZEN_EVERY_S:
                return
            self._last = now
        self._write(line(progress))


@contextmanager
def follow_run() -> Iterator[Callback]:
    """A callback for :func:`onellm.train.launch.run_training`: bars on a terminal, else lines."""
    if not sys.stderr.isatty():
        yield Lines(lambda text: print(text, file=sys.stderr, flush=True))
        return
    with watch() as progress:
        see = follow(progress)

        def show(event: Progress) -> None:
            if event.phase == "note":
                print(line(event), file=sys.stderr)  # rich puts it above its bars
            else:
                see(event)

        yield show
