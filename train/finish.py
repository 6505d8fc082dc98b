"""What becomes of a stage when it is done: a model like any other, with the stage in its history.

The same from the running training and from a checkpoint on disk, whichever engine wrote it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from onellm.additions import save_additions
from onellm.checkpoint import describe, save_pretrained, write_model
from onellm.config import parse
from onellm.errors import CheckpointError, ConfigError, plain_reason
from onellm.model import OneLLM
from onellm.train.blocks import restore
from onellm.train.checkpoint import Checkpoint, Checkpoints, check_same_run
from onellm.train.config import TrainConfig
from onellm.train.engine import Engine
from onellm.train.lora import add_lora, has_lora, merge_lora
from onellm.train.provenance import CONFIG
from onellm.train.state import Saved


def finish(engine: Engine, config: TrainConfig, out: Path | None) -> None:
    """Leave the trained model as any other, and write it; every process must call it.

    Args:
        engine: holds the model.
        config: the stage.
        out: folder to write to; None to write nothing.
    """
    model = engine.objective.model
    restore(model, config.compute)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    record_stage(model, config.stage.name, trained)
    model.projector.active_experts = model.config.projector.experts
    model.eval()
    if config.stage.lora is not None:
        if engine.rank == 0:
            _finish_lora(model, config, out)
    elif out is not None:
        weights = engine.weights()
        if weights is not None:
            write_model(out, describe(model), weights, model.text)
    engine.barrier()


def _finish_lora(model: OneLLM, config: TrainConfig, out: Path | None) -> None:
    """Merge a LoRA, or write it alone where it lies over 4-bit weights."""
    if config.compute.llm_bits is None:
        merge_lora(model)
        if out is not None:
            save_pretrained(model, out)
    elif out is not None:
        save_additions(model, out, config.stage.modalities, lora=True)


def record_stage(model: OneLLM, stage: str, trained: Iterable[str]) -> None:
    """Note a finished stage in what is saved with the model.

    Args:
        model: the model; a stage run again, or prolonged, is noted once, as the last.
        stage: its name.
        trained: names of the parameters that it trained.
    """
    model.history = [entry for entry in model.history if entry["stage"] != stage]
    model.history.append({"stage": stage, "trained": sorted(trained)})


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
    put_trained(model, config, checkpoints.load(newest))
    return True


@torch.no_grad()
def put_trained(model: OneLLM, config: TrainConfig, saved: Saved) -> None:
    """Make a stage's starting model the trained one.

    Args:
        model: as the stage began with it.
        config: the stage.
        saved: its checkpoint.

    Raises:
        CheckpointError: a trained parameter that the model does not have.
    """
    stage = config.stage
    if stage.copy_path is not None:
        model.copy_path(stage.copy_path.source, stage.copy_path.targets)
    if stage.lora is not None:
        add_lora(model, stage.lora, config.seed)
    own, trained = dict(model.named_parameters()), []
    for key in saved.shapes:
        kind, _, name = key.partition("/")
        if kind != "parameter" or name.startswith("head."):
            continue
        if name not in own:
            raise CheckpointError(f"step {saved.step}: trained {name}, which the model has not")
        own[name].copy_(saved.whole(key))
        trained.append(name)
    record_stage(model, stage.name, trained)
    if has_lora(model.llm):
        merge_lora(model)


def export_run(
    run: str | Path,
    out: str | Path,
    *,
    step: int | None = None,
    model: str | Path | None = None,
    dtype: torch.dtype | None = None,
) -> Checkpoint:
    """Write the model of a run's checkpoint, from any ZeRO stage, without GPU or DeepSpeed.

    Args:
        run: folder of the run.
        out: folder of the model, to be read with ``OneLLM.from_pretrained``.
        step: of the checkpoint; left out, the newest.
        model: the model that the run started from; left out, what its configuration says.
        dtype: of the weights; left out, that of the starting model.

    Returns:
        the checkpoint that was taken.

    Raises:
        CheckpointError: no run, no such checkpoint, or a damaged one.
    """
    folder = Path(run)
    config = read_run(folder)
    checkpoints = Checkpoints(folder, config.checkpoint.keep)
    checkpoint = checkpoints.newest() if step is None else checkpoints.at(step)
    if checkpoint is None:
        raise CheckpointError(f"{folder / 'checkpoints'}: expected a checkpoint; found none")
    saved = checkpoints.load(checkpoint)
    start = OneLLM.from_pretrained(model or config.model, dtype=dtype)
    put_trained(start, config, saved)
    save_pretrained(start.eval(), out)
    return checkpoint


def read_run(folder: Path) -> TrainConfig:
    """The configuration of a run.

    Raises:
        CheckpointError: the folder is not of a run.
    """
    file = folder / CONFIG
    try:
        plain: Any = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{folder}: expected the folder of a run; {CONFIG} in it cannot be read "
            f"({plain_reason(error)})"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{file}: expected JSON; found a damaged file ({error})") from error
    try:
        return parse(TrainConfig, plain, where=str(file))
    except ConfigError as error:
        raise CheckpointError(f"{file}: not of this version ({error})") from error
