"""Start a training run: in this process, or as one of several under a launcher.

``python -m onellm.train.launch CONFIG key=value …`` trains in one process;
``deepspeed --module onellm.train.launch CONFIG key=value …`` on every GPU of the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from onellm.data.faults import Faults
from onellm.data.loader import Loader, SignalReader
from onellm.data.order import Order
from onellm.data.sample import Sample
from onellm.errors import CheckpointError, ConfigError, OneLLMError
from onellm.model import OneLLM
from onellm.prompts import encode_example
from onellm.spelling import did_you_mean
from onellm.train.cache import CachedStore
from onellm.train.checkpoint import Checkpoints, check_same_run
from onellm.train.config import TrainConfig, read_config
from onellm.train.engine import Engine, Place, build_engine
from onellm.train.loop import Run, train
from onellm.train.media import FrozenStore
from onellm.train.metrics import Callback, MetricsLog, Progress
from onellm.train.mixture import Drawn, open_data
from onellm.train.objectives import Objective, build_objective
from onellm.train.regression import fit_output
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
    """
    place = place_from_environment()
    model = model or OneLLM.from_pretrained(config.model, dtype=torch.float32)
    run, start = prepare(config, model, place, progress if place.rank == 0 else None)
    out = Path(config.out)
    if place.rank == 0:
        _write_config(out, config)
    train(run, start)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    record_stage(model, config.stage.name, trained)
    if place.rank == 0:
        finished = run.engine.objective.model
        finished.projector.active_experts = finished.config.projector.experts
        finished.eval()
        if export:
            finished.save_pretrained(out)
    run.engine.barrier()
    run.engine.close()
    return out


def load_finished(config: TrainConfig, model: OneLLM) -> bool:
    """Put a finished stage's trained parameters into a model, in place of training it again.

    Args:
        config: the run.
        model: the model as the stage would have begun with it.

    Returns:
        False where the stage has not been finished; the model is then untouched.

    Raises:
        CheckpointError: the checkpoint is damaged, or was written under other settings.
    """
    checkpoints = Checkpoints(config.out, config.checkpoint.keep)
    newest = checkpoints.newest()
    if newest is None or newest.step != config.length.steps:
        return False
    check_same_run(newest, config)
    if config.stage.copy_path is not None:
        model.copy_path(config.stage.copy_path.source, config.stage.copy_path.targets)
    tensors = checkpoints.load(newest).tensors
    own = dict(model.named_parameters())
    trained = []
    with torch.no_grad():
        for key, value in tensors.items():
            kind, _, name = key.partition("/")
            if kind == "parameter" and name in own:
                own[name].copy_(value)
                trained.append(name)
    record_stage(model, config.stage.name, trained)
    return True


def record_stage(model: OneLLM, stage: str, trained: Iterable[str]) -> None:
    """Note a finished stage in what is saved with the model.

    Args:
        model: the model; a stage run again, or prolonged, is noted once, as the last.
        stage: its name.
        trained: names of the parameters that it trained.
    """
    model.history = [entry for entry in model.history if entry["stage"] != stage]
    model.history.append({"stage": stage, "trained": sorted(trained)})


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
    _check_modalities(config, model)
    if stage.copy_path is not None:
        model.copy_path(stage.copy_path.source, stage.copy_path.targets)
    model.projector.active_experts = stage.active_experts or model.config.projector.experts
    model.train()
    select(model, stage.trainable, stage.modalities)
    drawn = open_data(config.data, model.modalities, stage.modalities)
    checkpoints = Checkpoints(config.out, config.checkpoint.keep)
    reader = SignalReader(model.modalities, config.data.keep_megabytes)
    faults = Faults(config.data.faults)
    # What is gone through once is so by every process alike, and told by the first.
    before = faults if place.rank == 0 else Faults(config.data.faults)
    if stage.fit_output is not None and checkpoints.newest() is None:
        views = stage.frozen_views if config.data.augment else 0
        fit_output(
            *(model, stage.fit_output, drawn.samples, reader, before), views=views, seed=config.seed
        )
    texts = [] if stage.objective == "lm" else drawn.texts()
    objective = build_objective(model, stage, texts, config.seed, pack=config.batch.pack)
    engine = build_engine(objective, config, place)
    loader = _loader(config, model, drawn, reader, faults, place.world)
    _fill_store(config, objective, loader, drawn.samples, before, progress)
    for part in (model.encoder, model.projector, model.llm):
        if not any(parameter.requires_grad for parameter in part.parameters()):
            part.eval()  # dropout would only blur what cannot learn from it
    steps = config.length.steps or max(
        1, round((config.length.epochs or 1) * loader.order.epoch_length / config.batch.size)
    )
    start = _resume(config, engine, checkpoints)
    try:
        metrics = MetricsLog(Path(config.out) / "metrics.jsonl", start, enabled=place.rank == 0)
    except OSError as error:
        raise CheckpointError(f"{config.out}: cannot be written ({error})") from error
    return Run(config, engine, loader, checkpoints, metrics, progress, steps), start


def _silent(progress: Progress) -> None:
    """Nobody is watching."""


def _check_modalities(config: TrainConfig, model: OneLLM) -> None:
    copied = config.stage.copy_path
    named = [*config.stage.modalities, *((copied.source, *copied.targets) if copied else ())]
    fitted = config.stage.fit_output
    for name in [*named, *(fitted.modalities if fitted else ())]:
        if name not in model.modalities:
            hint = did_you_mean(name, model.modalities)
            raise ConfigError(f"stage: the model has no modality {name!r}.{hint}")


def _loader(
    config: TrainConfig,
    model: OneLLM,
    drawn: Drawn,
    reader: SignalReader,
    faults: Faults,
    world: int,
) -> Loader:
    if model.text is None:
        raise ConfigError(f"{config.model}: the model has no text tokenizer to train with")
    order = Order(
        drawn.parts, seed=config.seed, batch=config.batch.size, block=config.batch.same_modality
    )
    return Loader(
        drawn.kept,
        order,
        partial(encode_example, model.text, model.config.prompt_format),
        reader,
        faults=faults,
        augment=config.data.augment,
        max_tokens=config.data.max_tokens,
        layout=config.batch.layout(world),
        medium_tokens=model.config.projector.queries + 2,
    )


def _fill_store(
    config: TrainConfig,
    objective: Objective,
    loader: Loader,
    samples: Mapping[str, Sequence[Sample]],
    faults: Faults,
    progress: Callback,
) -> None:
    """Compute outputs of frozen parts once, if the stage wants that."""
    stage = config.stage
    if stage.frozen == "none":
        return
    views = stage.frozen_views if config.data.augment else 0
    if stage.frozen_folder:
        cached = CachedStore(
            *(stage.frozen_folder, objective.model, stage.frozen, stage.modalities),
            **{"views": views, "seed": config.seed},
        )
        objective.store, loader.frozen, loader.views = cached, cached.holds, views
        return
    store = FrozenStore(
        objective.model,
        stage.frozen,
        stage.modalities,
        stage.frozen_gigabytes,
        views=views,
        seed=config.seed,
    )
    store.fill(
        samples,
        loader.reader,
        faults,
        progress=lambda done, total: progress(Progress(stage.name, "frozen", done, total)),
    )
    objective.store = store
    loader.frozen, loader.views = store.holds, views


def _resume(config: TrainConfig, engine: Engine, checkpoints: Checkpoints) -> int:
    newest = checkpoints.newest()
    _check_same_everywhere(engine, 0 if newest is None else newest.step, checkpoints.folder)
    if newest is None:
        return 0
    if not config.checkpoint.resume:
        raise ConfigError(
            f"{newest.folder} is there and checkpoint.resume is false: remove it, or take "
            "another folder for 'out'"
        )
    check_same_run(newest, config)
    engine.load(checkpoints.load(newest))
    return newest.step


def _check_same_everywhere(engine: Engine, step: int, folder: Path) -> None:
    """Processes that begin at different steps would wait for each other for ever."""
    seen = torch.tensor([step, step**2], dtype=torch.float64)  # equal sums of both: equal steps
    if not torch.equal(engine.sum(seen), engine.world * seen):
        raise CheckpointError(
            f"{folder}: process {engine.rank} sees a checkpoint of step {step}, others see "
            "another; 'out' must be a folder that all machines share"
        )


def _write_config(out: Path, config: TrainConfig) -> None:
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config.model_dump(mode="json"), indent=1)
    (out / "train.json").write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of this module; returns the exit code.

    Args:
        arguments: ``CONFIG key=value …``; the process's own if left out.
    """
    parser = argparse.ArgumentParser(prog="onellm.train.launch", description=__doc__)
    parser.add_argument("config", help="a YAML file, or the name of a packaged stage")
    parser.add_argument("overrides", nargs="*", help="a.b.c=value")
    # DeepSpeed's launcher adds it; LOCAL_RANK in the environment says the same.
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        run_training(read_config(options.config, options.overrides), _print)
    except OneLLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _print(progress: Progress) -> None:
    """One line a step, for logs of batch systems."""
    line = f"{progress.stage} {progress.phase} {progress.done}/{progress.total}"
    shown = {k: v for k, v in progress.metrics.items() if k in ("loss", "lr", "grad_norm")}
    print(line, *(f"{key} {value:.4g}" for key, value in shown.items()), flush=True)


if __name__ == "__main__":
    sys.exit(main())
