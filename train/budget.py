"""Bytes of a run by component, on each device and in its machine's memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from onellm.data.lists import outline, pieces_of
from onellm.data.loader import medium_key
from onellm.data.sample import Sample
from onellm.errors import BadInput
from onellm.model import OneLLM
from onellm.train.config import TrainConfig
from onellm.train.engine import part_of, weight_type
from onellm.train.lora import NF4_BLOCK
from onellm.train.media import is_frozen
from onellm.train.memory import Passes
from onellm.train.zero import BUCKET

LIVE = 1_000_000_000
"""Weights that ZeRO 3 keeps gathered at most (DeepSpeed's ``stage3_max_live_parameters``)."""
COUNTED = 20_000
"""Samples whose media are looked at for how many of them are the same file."""

Bytes = dict[str, float]


@dataclass(frozen=True)
class Count:
    """Parameters of a part.

    Args:
        all: of the part.
        trained: of them.
    """

    all: int = 0
    trained: int = 0


def count_parts(model: nn.Module) -> dict[str, Count]:
    """Parameters by part of the model, the first word of their names."""
    counts: dict[str, Count] = defaultdict(Count)
    for name, p in model.named_parameters():
        old, own = counts[part_of(name)], p.numel()
        counts[part_of(name)] = Count(old.all + own, old.trained + own * p.requires_grad)
    return dict(counts)


def divide(
    model: OneLLM, config: TrainConfig, measured: Passes, world: int, stored: float = 0.0
) -> tuple[Bytes, Bytes]:
    """Bytes by component on a device and in the host's memory, after ZeRO and offload.

    Args:
        model: on the meta device, in the types in which it is trained.
        config: the run.
        measured: what the passes take.
        world: number of devices.
        stored: bytes of outputs of frozen parts.
    """
    zero = config.deepspeed.zero if config.deepspeed else 0
    trained = sum(count.trained for count in count_parts(model).values())
    size = weight_type(config).itemsize
    weights = float(sum(p.numel() * p.element_size() for p in model.parameters()))
    saved, unpacked = _packed(model, config, size)
    weights -= saved
    share = world if zero >= 1 else 1
    memory: Bytes = {"weights": weights / (world if zero == 3 else 1)}
    optimizer = {"Adam's moments": 8.0 * trained / share}
    if zero:
        optimizer["float32 masters"] = 4.0 * trained / share
    if zero == 3:
        memory["gathered weights"] = min(weights, LIVE * size)
    if zero:
        memory["reduction buffers"] = float(min(BUCKET, trained) * size * 2)
    if unpacked:
        memory["a layer's weights unpacked"] = unpacked
    if stored:
        memory["outputs of frozen parts"] = stored
    if zero >= 2:
        passing = {"activations": measured.activations, "gradients": measured.gradients / world}
    else:
        passing = {
            "activations": max(0, measured.together - measured.gradients),
            "gradients": measured.gradients,
        }
    host: Bytes = {}
    if config.data.keep_megabytes:
        host["decoded signals"] = config.data.keep_megabytes * 1e6
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


def _packed(model: OneLLM, config: TrainConfig, size: int) -> tuple[float, float]:
    """Bytes that 4-bit weights save, half a byte each and a scale per block; those of a layer."""
    if config.compute.llm_bits is None:
        return 0.0, 0.0
    head = model.llm.get_output_embeddings()
    frozen = [
        m.weight.numel()
        for n, m in model.llm.named_modules()
        if isinstance(m, nn.Linear) and m is not head and "lora_" not in n and m.bias is None
    ]
    return sum(frozen) * (size - 0.5 - 1 / NF4_BLOCK), float(max(frozen, default=0) * size)


def stored_bytes(
    model: OneLLM, config: TrainConfig, samples: Mapping[str, Sequence[Sample]]
) -> float:
    """Bytes of outputs of frozen parts that a run keeps on each device.

    Args:
        model: with its trained parameters selected.
        config: the run.
        samples: media by modality.
    """
    level, stage = config.stage.frozen, config.stage
    if level == "none" or stage.frozen_folder:
        return 0.0
    views = stage.frozen_views if config.data.augment else 0
    total = 0.0
    for name, own in samples.items():
        if name in stage.modalities and is_frozen(model, name, level):
            total += _media(own, name) * (views + 1) * _numbers(model, name, level)
    return total * weight_type(config).itemsize


def _numbers(model: OneLLM, name: str, level: str) -> int:
    """Numbers of one medium's outputs."""
    if level == "soft":
        width: int = model.llm.get_input_embeddings().weight.shape[1]
        return model.config.projector.queries * width
    own = name in model.positions
    table_ND = model.positions[name] if own else model.encoder.visual.positional_embedding
    frames = len(model.frames[name]) if name in model.frames else 1
    return frames * table_ND.numel()


def _media(samples: Sequence[Sample], name: str) -> float:
    """How many different media of a modality there are, from the first samples on."""
    seen: set[str] = set()
    # Of files that may have to be fetched one alone.
    looked = min(len(samples), COUNTED, *pieces_of(samples)[:1])
    for index in range(looked):
        try:
            sample = outline(samples, index)
        except BadInput:  # the run will tell of it
            continue
        for place, (modality, _) in enumerate(sample.media):
            if modality == name:
                seen.add(medium_key(sample, place))
    return len(seen) * len(samples) / looked if looked else 0.0
