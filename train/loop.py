"""The training loop: one for every stage, objective and engine."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
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
from onellm.train.engine import Engine, Update
from onellm.train.flops import Costs, Work
from onellm.train.meter import Meter, Tally
from onellm.train.metrics import Callback, MetricsLog, Progress
from onellm.train.recovery import fault_facts
from onellm.train.schedule import learning_rate
from onellm.train.signals import StopFlag, Stopped, stop_flag


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
        costs: operations of media and text.
        meter: turns counts and seconds into rates.
        skipped: updates left out so far, and in a row.
    """

    config: TrainConfig
    engine: Engine
    loader: Loader
    checkpoints: Checkpoints
    metrics: MetricsLog
    progress: Callback
    steps: int
    costs: Costs
    meter: Meter
    skipped: Counter[str] = field(default_factory=Counter)


def train(run: Run, start: int = 0) -> None:
    """Train from a step to the end, writing metrics and checkpoints on the way.

    Args:
        run: the run.
        start: optimiser steps already done; the engine holds their state.

    Raises:
        BadInput: a broken sample, by the run's policy.
        CheckpointError: a checkpoint cannot be written.
        TrainingError: too many updates in a row were not finite.
        Stopped: a signal asked for it; what was done is saved.
    """
    config, engine = run.config, run.engine
    per_device, _ = config.batch.split(engine.world)
    batches = run.loader.steps(
        *(start, run.steps),
        **{"rank": engine.rank, "world": engine.world, "per_device": per_device},
        ahead=config.data.ahead,
        workers=config.data.workers,
        share=engine.share if engine.world > 1 else None,
    )
    began = time.perf_counter()
    with stop_flag() as flag:
        for step, waited, micro_batches in _timed(batches, start):
            torch.manual_seed(stable_hash(config.seed, "step", step, engine.rank) >> 1)
            record, tally = _step(run, step, micro_batches, flag)
            seconds = time.perf_counter() - began
            began = time.perf_counter()
            record |= run.meter.rates(tally, seconds, waited, run.steps - step - 1)
            _report(run, step, record)
            last = step + 1 == run.steps
            if last or tally.stop or _due(config.checkpoint.every, step + 1):
                save(run)
            if tally.stop and not last:
                raise Stopped(
                    f"stage {config.stage.name}: stopped by a signal after step {step + 1} of "
                    f"{run.steps}, which is saved; the same command goes on from there"
                )


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


def _step(
    run: Run, step: int, micro_batches: list[Batch], flag: StopFlag
) -> tuple[dict[str, Any], Tally]:
    """One update; its line of metrics, and what was done for it on all devices."""
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
    update = engine.step(lr)
    own = _tally(run, micro_batches, flag)
    summed = engine.sum(torch.cat([table_G2.flatten(), own.as_tensor()]))
    sums_G2, tally = summed[: table_G2.numel()].view_as(table_G2), Tally.of(summed[-len(own) :])
    loss = float(sums_G2[:, 0].sum() / sums_G2[:, 1].sum())
    _guard(run, step, loss, update)
    record = {
        "step": step + 1,
        "loss": loss,
        "losses": _by_group(groups, sums_G2),
        "lr": lr,
        "grad_norm": update.norm,
        "grad_norms": {part: float(f"{norm:.5g}") for part, norm in update.norms.items()},
    }
    if run.skipped["total"]:
        record["skipped"] = run.skipped["total"]
    return record, tally


def _tally(run: Run, micro_batches: list[Batch], flag: StopFlag) -> Tally:
    """What this device has done for a step."""
    work, positions, padded = Work(), 0, 0
    for batch in micro_batches:
        lengths, room = run.engine.objective.positions(batch)
        media = Counter(medium.modality for example in batch for medium in example.media)
        work += run.costs.batch(media, lengths, sum(example.supervised for example in batch))
        positions, padded = positions + sum(lengths), padded + room
    return Tally(positions, padded, work.model, work.hardware, float(flag.asked))


def _guard(run: Run, step: int, loss: float, update: Update) -> None:
    """Count updates that were left out, and stop before the run is only made of them."""
    if update.made and math.isfinite(loss):
        run.skipped["row"] = 0
        return
    run.skipped.update(total=1, row=1)
    scaled = run.config.dtype == "float16"  # its scaler looks for the largest scale by trying
    if not update.made and (scaled or run.skipped["row"] <= run.config.optim.max_skipped):
        return
    raise TrainingError(
        f"stage {run.config.stage.name}, step {step + 1}: the loss is {loss:g} and the gradient's "
        f"norm {update.norm:g}; {run.skipped['row']} update(s) in a row could not be made. Lower "
        "optim.lr or optim.grad_clip, and go on from the last checkpoint; or let single ones be "
        "left out: optim.max_skipped."
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
        model = run.engine.objective.model
        parts = (model.projector.queries, model.projector.routers)
        with run.engine.gathered(p for part in parts for p in part.parameters()):
            record["router"] = router_tables(model, run.config.stage.modalities)
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
    """Write a checkpoint: every process its share."""
    engine = run.engine
    state = engine.state()
    faults = engine.share(fault_facts(run.loader.faults))
    state.facts |= {"skipped": run.skipped["total"], "faults": faults}
    run.checkpoints.save(state, run.config, engine.rank, engine.share)
    engine.barrier()
