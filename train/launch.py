"""Start a training run: in this process, or as one of several under a launcher.

``python -m onellm.train.launch CONFIG key=value …`` trains in one process;
``deepspeed --module onellm.train.launch CONFIG key=value …`` on every GPU of the machine.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from onellm.data.faults import Faults
from onellm.data.signal_reader import SignalReader
from onellm.errors import CheckpointError, ConfigError, OneLLMError, plain_reason
from onellm.model import OneLLM
from onellm.quiet import hush
from onellm.train.agreement import check_same_data, check_same_step
from onellm.train.allocator import keep_freed_memory
from onellm.train.blocks import apply_compute, restore
from onellm.train.broken import forget_later
from onellm.train.checkpoint import Checkpoints, check_same_run
from onellm.train.config import TrainConfig
from onellm.train.engine import Engine, Place, build_engine, pick_device, weight_type
from onellm.train.finish import finish
from onellm.train.flops import Costs, peak_flops
from onellm.train.loading import build_loader, check_modalities, fill_store, run_length
from onellm.train.loop import Run, train
from onellm.train.lora import add_lora, quantize_frozen
from onellm.train.meter import Meter
from onellm.train.metrics import Callback, MetricsLog, Progress, note
from onellm.train.mixture import open_data
from onellm.train.objectives import build_objective
from onellm.train.packaged import read_config, starting_folder
from onellm.train.provenance import write_provenance
from onellm.train.recovery import restore_faults
from onellm.train.regression import fit_output
from onellm.train.signals import Stopped
from onellm.train.sinks import open_sinks
from onellm.train.telling import Lines, continued, opening
from onellm.train.trainables import select


def run_training(
    config: TrainConfig,
    progress: Callback | None = None,
    model: OneLLM | None = None,
    *,
    export: bool = True,
) -> Path:
    """Run one stage to its end, going on from its newest checkpoint if there is one.

    Args:
        config: the run.
        progress: called with a :class:`~onellm.train.metrics.Progress` after every step, on the
            first process.
        model: start from this model in place of the saved ``config.model``; it is trained in
            place.
        export: write the trained model; without it, its trained parameters are in the last
            checkpoint alone.

    Returns:
        ``config.out``, which then holds the trained model, to be read with
        ``OneLLM.from_pretrained``; ``metrics.jsonl``, ``train.json`` and ``checkpoints/``.

    Raises:
        ConfigError: the configuration does not fit the model or the data.
        BadInput: data that cannot be read.
        CheckpointError: a model or checkpoint that cannot be read, written or continued.
        TrainingError: too many updates in a row were not finite.
        Stopped: a signal asked for it; what was done is saved.
    """
    place = place_from_environment()
    model = model or OneLLM.from_pretrained(starting_folder(config), dtype=weight_type(config))
    run, start = prepare(config, model, place, progress if place.rank == 0 else None)
    out = Path(config.out)
    if place.rank == 0:
        write_provenance(out, config)
    if start:
        run.progress(note(config.stage.name, continued(config, start, run.steps)))
    try:
        train(run, start)
        finish(run.engine, config, out if export else None)
    finally:
        run.metrics.close()
        restore(model, config.compute)  # of a run that was stopped, too: its caller has the model
    run.engine.close()
    return out


def place_from_environment() -> Place:
    """This process among the others, from what launchers set; alone without them."""
    return Place(
        rank=int(os.environ.get("RANK", 0)),
        world=int(os.environ.get("WORLD_SIZE", 1)),
        local_rank=int(os.environ.get("LOCAL_RANK", 0)),
    )


def prepare(
    config: TrainConfig, model: OneLLM, place: Place, progress: Callback | None = None
) -> tuple[Run, int]:
    """Build everything a run needs and restore its newest checkpoint.

    Args:
        config: the run.
        model: the model it starts from.
        place: this process among the others.
        progress: called after every step.

    Returns:
        the run, and how many optimiser steps are already done.
    """
    stage, progress = config.stage, progress or _silent
    check_modalities(config, model)
    if stage.copy_path is not None:
        model.copy_path(stage.copy_path.source, stage.copy_path.targets)
    model.projector.active_experts = stage.active_experts or model.config.projector.experts
    model.train()
    select(model, stage.trainable, stage.modalities)
    device = pick_device(place.local_rank)
    if device.type == "cpu":
        keep_freed_memory()
    if stage.lora is not None:
        add_lora(model, stage.lora, config.seed)
        if config.compute.llm_bits is not None:
            quantize_frozen(model.llm, device)
    checkpoints = Checkpoints(config.out, config.checkpoint.keep, config.checkpoint.keep_every)
    reader = SignalReader(model.modalities, config.data.keep_megabytes)
    faults = Faults(config.data.faults)
    # What is gone through once is so by every process alike, and told by the first.
    # A run that goes on has counted it already.
    first = place.rank == 0 and checkpoints.newest() is None
    before = faults if first else Faults(config.data.faults)
    drawn = open_data(config.data, model.modalities, stage.modalities, before)
    if stage.fit_output is not None and checkpoints.newest() is None:
        views = stage.frozen_views if config.data.augment else 0
        progress(note(stage.name, "fits the last projection to word embeddings (fit_output)"))
        fit_output(
            *(model, stage.fit_output, drawn.samples, reader, before), views=views, seed=config.seed
        )
    texts = drawn.texts(before) if stage.objective == "contrastive" else []
    objective = build_objective(model, stage, texts, config.seed, pack=config.batch.pack)
    loader = build_loader(config, model, drawn, reader, faults, place.world)
    loader.patience = config.data.patience
    steps = run_length(config, loader)
    progress(note(stage.name, opening(config, model, loader, steps, device, place.world)))
    fill_store(config, objective, loader, drawn.samples, before, progress, device)
    apply_compute(model, config.compute)
    costs = Costs(model, config)
    engine = build_engine(objective, config, place)
    for part in (model.encoder, model.projector, model.llm):
        if not any(parameter.requires_grad for parameter in part.parameters()):
            part.eval()  # dropout would only blur what cannot learn from it
    check_same_data(engine, drawn.parts)
    start, skipped = _resume(config, engine, checkpoints, faults)
    try:
        if place.rank == 0:  # the others append after the first step, which waits for this process
            forget_later(Path(config.out), start)
        metrics = MetricsLog(
            Path(config.out) / "metrics.jsonl",
            start,
            enabled=place.rank == 0,
            sinks=open_sinks(config, start) if place.rank == 0 else (),
        )
    except OSError as error:
        reason = plain_reason(error)
        raise CheckpointError(f"{config.out}: cannot be written ({reason})") from error
    meter = Meter(config.batch.size, place.world, peak_flops(device, config), device)
    run = Run(
        *(config, engine, loader, checkpoints, metrics, progress, steps, costs, meter),
        skipped=Counter(total=skipped),
    )
    return run, start


def _silent(progress: Progress) -> None:
    """Nobody is watching."""


def _resume(
    config: TrainConfig, engine: Engine, checkpoints: Checkpoints, faults: Faults
) -> tuple[int, int]:
    """Steps done, and updates left out among them."""
    newest = checkpoints.newest()
    check_same_step(engine, 0 if newest is None else newest.step, checkpoints.folder)
    if newest is None:
        return 0, 0
    if not config.checkpoint.resume:
        raise ConfigError(
            f"{newest.folder} is there and checkpoint.resume is false: remove it, or take "
            "another folder for 'out'"
        )
    check_same_run(newest, config)
    saved = checkpoints.load(newest)
    engine.load(saved)
    restore_faults(faults, saved.facts.get("faults", ()), engine.rank)
    return newest.step, int(saved.facts.get("skipped", 0))


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of this module; returns the exit code.

    Args:
        arguments: ``CONFIG key=value …``; the process's own if left out.
    """
    parser = argparse.ArgumentParser(prog="onellm.train.launch", description=__doc__)
    parser.add_argument("config", help="a YAML file, or the name of a packaged stage")
    parser.add_argument("overrides", nargs="*", help="a.b.c=value")
    parser.add_argument("--hardware", help="a packaged preset such as 8x80gb, or a YAML file")
    # DeepSpeed's launcher adds it; LOCAL_RANK in the environment says the same.
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    hush()
    try:
        config = read_config(options.config, options.overrides, options.hardware)
        run_training(config, Lines(partial(print, flush=True)))
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return STOPPED
    except OneLLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


STOPPED = 143  # as of a process that SIGTERM ended


if __name__ == "__main__":
    sys.exit(main())
