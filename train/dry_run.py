"""What a run would be: parameters, memory, time and its first batch, without running it.

The model is built without memory for its weights, so this works for 7B on a laptop.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from onellm.checkpoint import TEXT, build_described, read_description
from onellm.data.loader import Batch, Example
from onellm.errors import ConfigError
from onellm.model import OneLLM
from onellm.model_folder import CONFIG, folder_of
from onellm.splice import IGNORED
from onellm.text import load_text_tokenizer
from onellm.train.blocks import apply_compute
from onellm.train.config import TrainConfig
from onellm.train.engine import part_of
from onellm.train.flops import Costs
from onellm.train.launch import open_loader, run_length
from onellm.train.lora import add_lora
from onellm.train.memory import Passes, measure_passes, shapes_of
from onellm.train.trainables import select
from onellm.train.zero import BUCKET

LIVE = 1_000_000_000
"""Weights that ZeRO 3 keeps gathered at most (DeepSpeed's ``stage3_max_live_parameters``)."""


@dataclass(frozen=True)
class Count:
    """Parameters of a part.

    Args:
        all: of the part.
        trained: of them.
    """

    all: int = 0
    trained: int = 0


@dataclass
class DryRun:
    """What a run would be.

    Args:
        config: the run.
        world: number of devices.
        per_device: samples of one pass on one device.
        passes: accumulated for one optimiser step.
        steps: optimiser steps.
        parts: parameters by part of the model.
        memory: bytes on each device by component, at the highest moment.
        host: bytes in the machine's memory for each device, by component.
        flops: operations of one optimiser step over all devices, as computed.
        example_texts: the first pass's samples, decoded, learned text in ``[[ ]]``.
    """

    config: TrainConfig
    world: int
    per_device: int
    passes: int
    steps: int
    parts: dict[str, Count]
    memory: dict[str, float]
    host: dict[str, float]
    flops: float
    example_texts: list[str] = field(default_factory=list)

    @property
    def peak(self) -> float:
        """Bytes on each device at the highest moment."""
        return sum(self.memory.values())

    def seconds(self, tflops: float) -> float:
        """Time of the whole run.

        Args:
            tflops: 10^12 operations per second that each device really does.
        """
        return self.steps * self.flops / (tflops * 1e12 * self.world)


def dry_run(config: TrainConfig, world: int = 1) -> DryRun:
    """Describe a run.

    Args:
        config: the run.
        world: number of devices.

    Raises:
        ConfigError: the configuration does not fit the model, the data or the devices.
        CheckpointError: no such model.
    """
    model = empty_model(config)
    per_device, passes = config.batch.split(world)
    loader = open_loader(config, model)
    first = next(iter(loader.steps(0, 1, rank=0, world=world, per_device=per_device)))
    set_up(model, config)
    costs = Costs(model, config)
    flops = sum(_flops(costs, model, batch) for batch in first) * world
    heaviest = max(first, key=lambda batch: max(_lengths(model, batch)))
    measured = measure_passes(model, config, shapes_of(heaviest), passes)
    return DryRun(
        *(config, world, per_device, passes, run_length(config, loader), count_parts(model)),
        *divide(model, config, measured, world),
        flops,
        [decode(model, example) for example in first[0]],
    )


def empty_model(config: TrainConfig) -> OneLLM:
    """The model that a run starts from, without memory for its weights."""
    folder = folder_of(config.model)
    described = read_description(folder / CONFIG)
    text = load_text_tokenizer(folder / TEXT) if (folder / TEXT).is_dir() else None
    return build_described(described, text)


def set_up(model: OneLLM, config: TrainConfig) -> None:
    """Make an empty model what the training makes of a real one.

    Args:
        model: any parameters of it; it is on the meta device afterwards.
        config: the run.
    """
    stage = config.stage
    model.projector.active_experts = stage.active_experts or model.config.projector.experts
    select(model, stage.trainable, stage.modalities)
    if stage.lora is not None:
        add_lora(model, stage.lora, config.seed)
    apply_compute(model, config.compute)
    model.to(device="meta", dtype=_type(config)).train()
    for part in (model.encoder, model.projector, model.llm):
        if not any(parameter.requires_grad for parameter in part.parameters()):
            part.eval()


def _type(config: TrainConfig) -> torch.dtype:
    """The type that activations have."""
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(config.dtype, torch.float32)


def _lengths(model: OneLLM, batch: Batch) -> list[int]:
    medium = model.config.projector.queries + 2
    return [len(e.ids) + medium * len(e.media) for e in batch]


def _flops(costs: Costs, model: OneLLM, batch: Batch) -> float:
    shapes = shapes_of(batch)
    return costs.batch(shapes.media, _lengths(model, batch), shapes.supervised).hardware


def count_parts(model: nn.Module) -> dict[str, Count]:
    """Parameters by part of the model, the first word of their names."""
    counts: dict[str, Count] = defaultdict(Count)
    for name, p in model.named_parameters():
        old, own = counts[part_of(name)], p.numel()
        counts[part_of(name)] = Count(old.all + own, old.trained + own * p.requires_grad)
    return dict(counts)


def divide(
    model: OneLLM, config: TrainConfig, measured: Passes, world: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Bytes by component on a device and in the host's memory, after ZeRO and offload.

    Args:
        model: as :func:`set_up` leaves it.
        config: the run.
        measured: what the passes take.
        world: number of devices.
    """
    zero = config.deepspeed.zero if config.deepspeed else 0
    counts = count_parts(model).values()
    trained = sum(count.trained for count in counts)
    plain = config.deepspeed is None
    size = 4 if plain and config.compute.llm_bits is None else torch.finfo(_type(config)).bits // 8
    weights = float(sum(count.all for count in counts)) * size
    weights -= _packed(model, config, size)
    share = world if zero >= 1 else 1
    memory: dict[str, float] = {"weights": weights / (world if zero == 3 else 1)}
    optimizer = {"Adam's moments": 8.0 * trained / share}
    if zero:
        optimizer["float32 masters"] = 4.0 * trained / share
    if zero == 3:
        memory["gathered weights"] = min(weights, LIVE * size)
    if zero:
        memory["reduction buffers"] = float(min(BUCKET, trained) * size * 2)
    if zero >= 2:
        passing = {"activations": measured.activations, "gradients": measured.gradients / world}
    else:
        passing = {
            "activations": max(0, measured.together - measured.gradients),
            "gradients": measured.gradients,
        }
    if plain and size == 4 and config.dtype == "bfloat16":
        memory["weights cast by autocast"] = weights / 2
    host: dict[str, float] = {}
    offload = config.deepspeed.offload if config.deepspeed else None
    if offload is not None and offload.parameters != "none":
        moved = memory.pop("weights")
        if offload.parameters == "cpu":
            host["weights"] = moved
    if offload is not None and offload.optimizer != "none":
        if offload.optimizer == "cpu":
            host |= optimizer | {"float32 gradients": 4.0 * trained / share}
    else:
        memory |= optimizer
        # At the update the activations are gone, and float32 gradients are there.
        update = 4.0 * trained / share if zero else 0.0
        if update > passing["activations"]:
            passing["activations"] = update
    return memory | {k: float(v) for k, v in passing.items()}, host


def _packed(model: OneLLM, config: TrainConfig, size: int) -> float:
    """Bytes that 4-bit weights save: half a byte each, and a scale per 64 of them."""
    if config.compute.llm_bits is None:
        return 0.0
    head = model.llm.get_output_embeddings()
    frozen = sum(
        m.weight.numel()
        for n, m in model.llm.named_modules()
        if isinstance(m, nn.Linear) and m is not head and "lora_" not in n and m.bias is None
    )
    return frozen * (size - 0.5 - 1 / 64)


def decode(model: OneLLM, example: Example) -> str:
    """A sample's text with its media in front, and ``[[ ]]`` around what is learned."""
    if model.text is None:
        raise ConfigError("the model has no text tokenizer to train with")
    media = "".join(f"<{medium.modality}>" for medium in example.media)
    pieces = []
    for learned, ids in _runs(example):
        text = model.text.decode(ids)
        pieces.append(f"[[{text}]]" if learned else text)
    return f"{example.id}: {media}{''.join(pieces)}"


def _runs(example: Example) -> Iterator[tuple[bool, list[int]]]:
    """Stretches of ids that are all learned or all not."""
    run: list[int] = []
    before = False
    for token, label in zip(example.ids.tolist(), example.labels.tolist(), strict=True):
        learned = label != IGNORED
        if run and learned != before:
            yield before, run
            run = []
        run.append(token)
        before = learned
    if run:
        yield before, run
