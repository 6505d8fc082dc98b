"""The training loop: one for every stage, objective and engine."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onellm.data.loader import Batch, Loader
from onellm.data.order import stable_hash
from onellm.errors import TrainingError
from onellm.model import OneLLM
from onellm.train.broken import gather_faults, list_faults
from onellm.train.checkpoint import Checkpoints
from onellm.train.config import TrainConfig
from onellm.train.engine import Engine
from onellm.train.metrics import Callback, MetricsLog, Progress
from onellm.train.schedule import learning_rate


@dataclass
class Run:
    """Everything a run needs, made by :mod:`onellm.train.launch`.

    Args:
        config: the run.
        engine: computes gradients and steps.
        loader: gives batches.
        checkpoints: where it is saved.
        metrics: where it is logged.
        progress: told about every step.
        steps: optimiser steps of the whole run.
    """

    config: TrainConfig
    engine: Engine
    loader: Loader
    checkpoints: Checkpoints
    metrics: MetricsLog
    progress: Callback
    steps: int


def train(run: Run, start: int = 0) -> None:
    """Train from a step to the end, writing metrics and checkpoints on the way.

    Args:
        run: the run.
        start: optimiser steps already done; the engine holds their state.

    Raises:
        BadInput: a broken sample, by the run's policy.
        CheckpointError: a checkpoint cannot be written.
        TrainingError: the loss or its gradient is not finite.
    """
    config, engine = run.config, run.engine
    per_device, _ = config.batch.split(engine.world)
    batches = run.loader.steps(
        *(start, run.steps),
        **{"rank": engine.rank, "world": engine.world, "per_device": per_device},
        ahead=config.data.ahead,
        workers=config.data.workers,
    )
    began = time.perf_counter()
    for step, waited, micro_batches in _timed(batches, start):
        torch.manual_seed(stable_hash(config.seed, "step", step, engine.rank) >> 1)
        record = _step(run, step, micro_batches)
        seconds = time.perf_counter() - began
        began = time.perf_counter()
        record |= {
            "samples_per_second": round(config.batch.size / seconds, 3),
            "data_wait": round(waited / seconds, 4),
        }
        _report(run, step, record)
        if _due(config.checkpoint.every, step + 1) or step + 1 == run.steps:
            save(run)


def _timed(items: Iterator[list[Batch]], start: int) -> Iterator[tuple[int, float, list[Batch]]]:
    """Number items from ``start``, with the seconds spent waiting for each."""
    step = start
    while True:
        began = time.perf_counter()
        try:
            item = next(items)
        except StopIteration:
            return
        yield step, time.perf_counter() - began, item
        step += 1


def _step(run: Run, step: int, micro_batches: list[Batch]) -> dict[str, Any]:
    """One update; returns its line of metrics."""
    engine, objective = run.engine, run.engine.objective
    groups = sorted({part.group for part in run.loader.order.parts})
    # Row by group: sum of losses, number of terms. Losses are divided by the number over all
    # passes and devices, known before the first backward, so that neither changes the update.
    table_G2 = torch.zeros(len(groups), 2, dtype=torch.float64)
    for batch in micro_batches:
        for example, count in zip(batch, objective.counts(batch), strict=True):
            table_G2[groups.index(example.group), 1] += count
    total = float(engine.sum(table_G2[:, 1].sum()[None]))
    for number, batch in enumerate(micro_batches):
        losses = engine.forward(batch)
        engine.backward(losses.total / total, last=number == len(micro_batches) - 1)
        for example, value in zip(batch, losses.sums_B.tolist(), strict=True):
            table_G2[groups.index(example.group), 0] += value
    lr = learning_rate(run.config.optim, step, run.steps)
    norm = engine.step(lr)
    sums_G2 = engine.sum(table_G2)
    loss = float(sums_G2[:, 0].sum() / sums_G2[:, 1].sum())
    _check_finite(run, step, loss, norm)
    return {
        "step": step + 1,
        "loss": loss,
        "losses": _by_group(groups, sums_G2),
        "lr": lr,
        "grad_norm": norm,
    }


def _check_finite(run: Run, step: int, loss: float, norm: float) -> None:
    """Stop before weights that are no numbers get into a checkpoint."""
    scaled = run.config.dtype == "float16"  # its scaler skips steps whose gradient overflows
    if math.isfinite(loss) and (scaled or math.isfinite(norm)):
        return
    raise TrainingError(
        f"stage {run.config.stage.name}, step {step + 1}: the loss is {loss:g} and the gradient's "
        f"norm {norm:g}. Lower optim.lr or optim.grad_clip, and go on from the last checkpoint."
    )


def _by_group(groups: list[str], sums_G2: Tensor) -> dict[str, float]:
    return {
        group: float(sums_G2[g, 0] / sums_G2[g, 1])
        for g, group in enumerate(groups)
        if sums_G2[g, 1] > 0
    }


def _due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0


def _report(run: Run, step: int, record: dict[str, Any]) -> None:
    if _due(run.config.router_every, step + 1):
        record["router"] = router_tables(run.engine.objective.model, run.config.stage.modalities)
    faults = run.loader.faults
    list_faults(faults, Path(run.config.out), run.engine.rank, step + 1)
    groups = {part.group for part in run.loader.order.parts}
    broken = gather_faults(run.engine, faults, {*groups, *run.config.stage.modalities})
    if broken:
        record["faults"] = broken
    run.metrics.write(record)
    run.progress(Progress(run.config.stage.name, "train", step + 1, run.steps, record))


@torch.no_grad()
def router_tables(model: OneLLM, modalities: tuple[str, ...]) -> dict[str, list[list[float]]]:
    """The router's weights, (queries, experts) by modality, five digits."""
    return {
        name: [
            [round(weight, 5) for weight in row]
            for row in model.projector.router_table(name).float().tolist()
        ]
        for name in modalities
    }


def save(run: Run) -> None:
    """Write a checkpoint; gathers from all processes, written by the first."""
    state = run.engine.state()
    if run.engine.rank == 0:
        run.checkpoints.save(state, run.config)
    run.engine.barrier()
