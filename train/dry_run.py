"""What a run would be: parameters, memory, time and its first batch, without running it.

The model is built without memory for its weights, so this works for 7B on a laptop.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

from onellm.checkpoint import TEXT, build_described, read_description
from onellm.data.faults import Faults
from onellm.data.loader import Example, Loader
from onellm.data.signal_reader import SignalReader
from onellm.errors import ConfigError
from onellm.model import OneLLM
from onellm.model_folder import CONFIG
from onellm.splice import IGNORED
from onellm.text import load_text_tokenizer
from onellm.train.blocks import apply_compute
from onellm.train.budget import Bytes, Count, count_parts, divide, stored_bytes
from onellm.train.compute import ComputeConfig
from onellm.train.config import TrainConfig
from onellm.train.engine import weight_type
from onellm.train.fetched import Fetched, addresses
from onellm.train.flops import Costs
from onellm.train.loading import build_loader, check_modalities, run_length
from onellm.train.lora import add_lora
from onellm.train.memory import Passes, measure_passes
from onellm.train.miniature import foresee_packing
from onellm.train.mixture import open_data
from onellm.train.packaged import starting_folder
from onellm.train.remedies import Estimate
from onellm.train.shapes import LOOKED_AT, Shapes, dearest, planned_steps
from onellm.train.trainables import select
from onellm.train.zero import deepspeed_json


@dataclass
class DryRun:
    """What a run would be.

    Args:
        config: the run.
        world: number of devices.
        per_device: samples of one pass on one device; in packed rows, on average.
        passes: accumulated for one optimiser step; the most, where rows are filled.
        steps: optimiser steps.
        parts: parameters by part of the model.
        memory: bytes on each device by component, at the highest moment.
        host: bytes in the machine's memory for each device, by component.
        flops: operations of one optimiser step over all devices, as computed, on average.
        padding: share of the LLM's positions that are padding.
        looked_at: optimiser steps that the figures are drawn from.
        estimate: tells :attr:`peak` of the same run under other settings, by the pass that is the
            dearest under these.
        example_texts: the first pass's samples, decoded, learned text in ``[[ ]]``.
        notes: what is to be known of it, a line each.
    """

    config: TrainConfig
    world: int
    per_device: float
    passes: int
    steps: int
    parts: dict[str, Count]
    memory: Bytes
    host: Bytes
    flops: float
    padding: float
    looked_at: int
    estimate: Estimate = field(repr=False)
    example_texts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

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
    if config.deepspeed is not None:
        deepspeed_json(config, world)  # refuses what does not come out even
    elif world > 1:
        raise ConfigError(f"{world} devices need a deepspeed section in the configuration")
    model = empty_model(config)
    check_modalities(config, model)
    notes = [foresee_packing(model.llm, config.compute)] if config.batch.pack else []
    remote = bool(addresses(config.data))
    fetched = Fetched(config.data)
    drawn = open_data(config.data, model.modalities, config.stage.modalities)
    reader, layout = SignalReader(model.modalities), config.batch.layout(world)
    loader = build_loader(config, model, drawn, reader, Faults(config.data.faults), world)
    length = run_length(config, loader)
    looked = 1 if remote else LOOKED_AT  # samples of further steps may lie in further shards
    steps = planned_steps(loader, layout, length, looked)
    shown = [loader.example(draw) for draw in loader.plan(0, layout)[0][0]]
    empty = copy.deepcopy(model)
    set_up(model, config)
    look = _Look(model, config, steps)
    measured = look.measure()
    stored = stored_bytes(model, config, drawn.samples)
    notes += [fetched.line()] if remote else []
    notes += [_few_compared(config, world)]
    if stored > config.stage.frozen_gigabytes * 1e9:
        raise ConfigError(
            f"stage.frozen: the outputs take {stored / 1e9:.1f} GB, and stage.frozen_gigabytes "
            f"allows {config.stage.frozen_gigabytes:g}; raise it or set stage.frozen=none"
        )
    passes = max(len(step) for step in steps)
    memory, host = divide(model, config, measured, world, stored)
    return DryRun(
        config=config,
        world=world,
        per_device=config.batch.size / (world * passes),
        passes=passes,
        steps=length,
        parts=count_parts(model),
        memory=memory,
        host=host,
        flops=look.flops,
        padding=look.padding,
        looked_at=len(steps),
        estimate=partial(_peak, empty, loader, length, looked, look.highest, world, stored),
        example_texts=[decode(model, example) for example in shown],
        notes=[said for said in notes if said],
    )


def _few_compared(config: TrainConfig, world: int) -> str:
    """A line where an objective that compares the samples of a pass has few of them."""
    count, _ = config.batch.split(world)
    if config.stage.objective == "lm" or count >= FEW:
        return ""
    return (
        f"batch: {config.stage.objective} tells each sample from the others of its pass on its "
        f"device, and there are {count - 1}: raise batch.size and batch.same_modality with the "
        "number of devices, as the --hardware presets do"
    )


FEW = 16
"""Samples of a pass below which a comparison teaches little; the packaged warm-up has 32."""


class _Look:
    """What some steps cost.

    Args:
        model: as :func:`set_up` leaves it.
        config: the run.
        steps: their shapes, for each pass and device.
    """

    def __init__(self, model: OneLLM, config: TrainConfig, steps: list[list[list[Shapes]]]) -> None:
        self.model, self.config, self.several = model, config, max(map(len, steps))
        self.passes = [
            shapes for step in steps for devices in step for shapes in devices if shapes.lengths
        ]
        if not self.passes:
            raise ConfigError("data: no sample that can be read")
        self.costs = Costs(model, config)
        self.cost = [self._flops(shapes) for shapes in self.passes]
        self.flops = sum(self.cost) / len(steps)
        medium, pack = self._medium, config.batch.pack
        room = sum(shapes.room(medium, pack=pack) for shapes in self.passes)
        self.padding = 1 - sum(sum(shapes.positions(medium)) for shapes in self.passes) / room

    @property
    def _medium(self) -> int:
        return self.model.config.projector.queries + 2

    def _flops(self, shapes: Shapes) -> float:
        """Operations of a pass, those on padding and across packed samples among them."""
        lengths = shapes.positions(self._medium)
        if not self.config.batch.pack:
            lengths = [max(lengths)] * len(lengths)
        elif self.config.compute.attention != "flash_attention_2":
            lengths = [sum(lengths)]  # a mask hides what is computed all the same
        return self.costs.batch(shapes.media, lengths, shapes.supervised).hardware

    def measure(self) -> Passes:
        """What the dearest passes take at most; :attr:`highest` is of what the one is that does."""
        tried = dearest(self.passes, self.cost)
        found = [measure_passes(self.model, self.config, shapes, self.several) for shapes in tried]
        together = [passes.together for passes in found]
        self.highest = frozenset(tried[together.index(max(together))].media)
        return Passes(max(together), max(p.activations for p in found), found[0].gradients)


def _peak(
    empty: OneLLM,
    loader: Loader,
    length: int,
    looked: int,
    kind: frozenset[str],
    world: int,
    stored: float,
    config: TrainConfig,
) -> float:
    """Bytes on each device at the highest moment, with samples of some modalities alone.

    Raises:
        ConfigError: the configuration does not fit the model, the data or the devices.
    """
    if config.deepspeed is not None:
        deepspeed_json(config, world)
    steps = planned_steps(loader, config.batch.layout(world), length, looked)
    own = [[[s for s in devices if frozenset(s.media) == kind] for devices in n] for n in steps]
    model = copy.deepcopy(empty)
    set_up(model, config)
    measured = _Look(model, config, own if any(map(any, own)) else steps).measure()
    return sum(divide(model, config, measured, world, stored)[0].values())


def empty_model(config: TrainConfig) -> OneLLM:
    """The model that a run starts from, without memory for its weights."""
    folder = starting_folder(config)
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
    apply_compute(model, _traceable(config.compute))
    model.to(device="meta", dtype=weight_type(config)).train()
    for name, parameter in model.named_parameters():
        if "lora_" in name and config.deepspeed is None:  # DeepSpeed has one type for all
            parameter.data = parameter.data.float()
    for part in (model.encoder, model.projector, model.llm):
        if not any(parameter.requires_grad for parameter in part.parameters()):
            part.eval()


def _traceable(compute: ComputeConfig) -> ComputeConfig:
    """The same mathematics without what needs a device of its own; SDPA stands for all kernels."""
    fused = compute.attention == "flash_attention_2"
    attention = "sdpa" if fused else compute.attention
    return compute.model_copy(update={"compile": (), "attention": attention})


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
