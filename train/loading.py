"""What a run reads: its batches in order, its length, and the outputs of frozen parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch

from onellm.data.faults import Faults
from onellm.data.loader import Loader
from onellm.data.order import Order
from onellm.data.sample import Sample
from onellm.data.signal_reader import SignalReader
from onellm.errors import ConfigError
from onellm.model import OneLLM
from onellm.prompts import encode_example
from onellm.spelling import did_you_mean
from onellm.train.cache import CachedStore
from onellm.train.config import TrainConfig
from onellm.train.media import FrozenStore
from onellm.train.metrics import Callback, Progress
from onellm.train.mixture import Drawn
from onellm.train.objectives import Objective


def check_modalities(config: TrainConfig, model: OneLLM) -> None:
    """Make sure that a model has every modality that a stage names.

    Raises:
        ConfigError: it has not; with the nearest spelling.
    """
    copied = config.stage.copy_path
    named = [*config.stage.modalities, *((copied.source, *copied.targets) if copied else ())]
    fitted = config.stage.fit_output
    for name in [*named, *(fitted.modalities if fitted else ())]:
        if name not in model.modalities:
            hint = did_you_mean(name, model.modalities)
            raise ConfigError(f"stage: the model has no modality {name!r}.{hint}")


def build_loader(
    config: TrainConfig,
    model: OneLLM,
    drawn: Drawn,
    reader: SignalReader,
    faults: Faults,
    world: int,
) -> Loader:
    """The batches of a run.

    Args:
        config: the run.
        model: knows the modalities, the prompts and the text tokenizer; its weights do not count.
        drawn: what is drawn from.
        reader: reads media.
        faults: policy for broken samples.
        world: number of processes.

    Raises:
        ConfigError: the model has no text tokenizer, batches do not come out even, or an objective
            that compares the samples of a pass has one to compare.
    """
    if model.text is None:
        raise ConfigError(f"{config.model}: the model has no text tokenizer to train with")
    if config.stage.objective != "lm" and config.batch.split(world)[0] < 2:
        raise ConfigError(
            f"batch: {config.stage.objective} compares the samples of a pass, and a pass on each "
            f"of {world} device(s) has one: raise batch.per_device or batch.size"
        )
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


def run_length(config: TrainConfig, loader: Loader) -> int:
    """Optimiser steps of a run."""
    epochs = config.length.epochs or 1
    return config.length.steps or max(
        1, round(epochs * loader.order.epoch_length / config.batch.size)
    )


def fill_store(
    config: TrainConfig,
    objective: Objective,
    loader: Loader,
    samples: Mapping[str, Sequence[Sample]],
    faults: Faults,
    progress: Callback,
    device: torch.device,
) -> None:
    """Compute outputs of frozen parts once, if the stage wants that.

    Before the engine is built: ZeRO 3 would leave each process with a part of each weight.

    Args:
        config: the run.
        objective: gets the store.
        loader: is told what need not be read any more.
        samples: media by modality.
        faults: policy for broken samples.
        progress: told how many samples are done.
        device: where to compute.
    """
    stage = config.stage
    if stage.frozen == "none":
        return
    for name, child in objective.model.named_children():
        if name != "llm":
            child.to(device)
    views = stage.frozen_views if config.data.augment else 0
    if stage.frozen_folder:
        cached = CachedStore(
            stage.frozen_folder,
            objective.model,
            stage.frozen,
            stage.modalities,
            views=views,
            seed=config.seed,
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
