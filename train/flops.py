"""How much arithmetic a step is: MFU and HFU, and times before anything has run.

Two floating-point operations per multiply-add; attention counted in full, without the causal half,
as the usual tables do. MFU counts what the mathematics needs: the forward pass, gradients of
trained weights, and gradients of activations where something in front of them is trained. HFU
counts what is computed again under activation checkpointing, too.

Shape legend: N encoder tokens, M = Q + N projector tokens, Q queries, D width, F hidden width.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from onellm.model import OneLLM
from onellm.projection.experts import hidden_width
from onellm.train.config import TrainConfig
from onellm.train.engine import autocast_type, weight_type
from onellm.train.gpus import known_gpu
from onellm.train.media import is_frozen


@dataclass(frozen=True)
class Work:
    """Operations of a step or a part of it.

    Args:
        model: what the mathematics needs.
        hardware: what is computed, repeated forward passes among it.
    """

    model: float = 0.0
    hardware: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.model + other.model, self.hardware + other.hardware)

    def times(self, count: float) -> Work:
        """So many of them."""
        return Work(self.model * count, self.hardware * count)


class Costs:
    """Operations of media and text in a stage.

    Args:
        model: the model, on any device, with its trained parameters selected.
        config: the run.
    """

    def __init__(self, model: OneLLM, config: TrainConfig) -> None:
        self.config, self.recompute = config, set(config.compute.recompute)
        self._trained = [n for n, p in model.named_parameters() if p.requires_grad]
        self._in_loop = config.stage.objective == "lm"
        self.media = {name: self._medium(model, name) for name in config.stage.modalities}
        self._prepare_llm(model.llm)

    def _has(self, *prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in self._trained)

    def _work(self, part: str, forward: float, *, trained: bool, through: bool) -> Work:
        again = forward if part in self.recompute and (trained or through) else 0.0
        needed = forward * (1 + trained + through)
        return Work(needed, needed + again)

    def _medium(self, model: OneLLM, name: str) -> Work:
        """Operations of one medium in front of the LLM."""
        frozen, stage = self.config.stage.frozen, self.config.stage
        tokenizer = self._has(f"tokenizers.{name}.", f"positions.{name}", "encoder.")
        projector = self._has("projector.experts.", f"projector.proj_in.{name}.")
        encode = encoder_flops(model, name)
        experts = stage.active_experts or model.config.projector.experts
        project = projector_flops(model, name, experts)
        stored = frozen != "none" and is_frozen(model, name, frozen)
        soft = frozen == "soft" and stored
        encoder = self._work(
            "encoder", encode, trained=self._has("encoder."), through=tokenizer
        ).times(0 if stored else 1)
        return encoder + self._work(
            "projector", project, trained=projector, through=projector or tokenizer
        ).times(0 if soft or stage.objective == "clip" else 1)

    def _prepare_llm(self, llm: nn.Module) -> None:
        outside = {id(p) for m in (_embeddings(llm), _head(llm)) if m for p in m.parameters()}
        config = llm.config.get_text_config()  # type: ignore[union-attr,operator]
        self._linear = 2.0 * sum(
            _numel(p)
            for n, p in llm.named_parameters()
            if p.ndim > 1 and id(p) not in outside and "lora_" not in n
        )
        width, layers = config.hidden_size, config.num_hidden_layers
        self._attention = 4.0 * width * layers
        self._head = 2.0 * width * config.vocab_size

    def text(self, positions: float, longest: float, supervised: float, *, media: bool) -> Work:
        """Operations of the LLM.

        Args:
            positions: tokens and media tokens that go through it, without padding.
            longest: how many positions attention spans, on average.
            supervised: positions whose logits are computed.
            media: whether gradients go through it to a medium's path.
        """
        if not self._in_loop:
            return Work()
        lora = self.config.stage.lora is not None
        trained = self._has("llm.") and not lora
        through = trained or lora or (media and self._has("projector.", "tags.", "tokenizers."))
        blocks = positions * (self._linear + self._attention * longest)
        head = self._work("", supervised * self._head, trained=trained, through=True)
        return self._work("llm", blocks, trained=trained, through=through) + head

    def batch(self, media: Mapping[str, int], positions: Iterable[int], supervised: int) -> Work:
        """Operations of a batch.

        Args:
            media: how many of each modality.
            positions: length of each sample in the LLM.
            supervised: learned tokens.
        """
        lengths = list(positions)
        total = sum(lengths)
        longest = sum(n * n for n in lengths) / total if total else 0.0
        work = self.text(total, longest, supervised, media=bool(media))
        for name, count in media.items():
            work += self.media[name].times(count)
        return work


def encoder_tokens(model: OneLLM, name: str) -> int:
    """Tokens of a medium, or of one of its frames, in the encoder, class token included."""
    own = name in model.positions
    return len(model.positions[name] if own else model.encoder.visual.positional_embedding)


def encoder_flops(model: OneLLM, name: str) -> float:
    """Operations of the encoder's forward pass for one medium, all its frames."""
    config, tokens = model.config.encoder, encoder_tokens(model, name)
    modality = model.modality(name)
    frames = len(modality.example()) if modality.frame_axis else 1
    linear = (8 + 4 * config.mlp_ratio) * config.width**2
    return frames * model.encoder.depth * tokens * (linear + 4 * tokens * config.width)


def projector_flops(model: OneLLM, name: str, active: int) -> float:
    """Operations of the projector's forward pass for one medium, last block trimmed."""
    config, width = model.config.projector, model.config.projector.width
    tokens, queries = encoder_tokens(model, name), config.queries
    every, hidden = queries + tokens, hidden_width(width, config.multiple_of)
    full = every * (8 * width**2 + 6 * width * hidden + 4 * every * width)
    last = queries * (4 * width**2 + 6 * width * hidden + 4 * every * width)
    last += every * 4 * width**2
    llm_width = model.tags["start"][name].numel()
    ends = 2 * tokens * model.config.encoder.width * width + 2 * queries * width * llm_width
    return active * ((config.depth - 1) * full + last) + ends


def _numel(parameter: nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _embeddings(llm: nn.Module) -> nn.Module:
    return llm.get_input_embeddings()  # type: ignore[operator,no-any-return]


def _head(llm: nn.Module) -> nn.Module | None:
    return llm.get_output_embeddings()  # type: ignore[operator,no-any-return]


def peak_flops(device: torch.device, config: TrainConfig) -> float:
    """Operations per second that a device can do at best.

    Args:
        device: where the run is.
        config: ``log.peak_tflops`` and the number type.
    """
    if config.log.peak_tflops is not None:
        return config.log.peak_tflops * 1e12
    dtype = product_type(config, device)
    if device.type == "cuda":
        gpu = known_gpu(torch.cuda.get_device_name(device))
        if gpu is not None:
            return gpu.tflops(dtype) * 1e12
    return measured_flops(device, dtype)


def product_type(config: TrainConfig, device: torch.device) -> torch.dtype:
    """The type in which a run's matrix products are computed.

    Args:
        config: the run.
        device: where it is.
    """
    return autocast_type(config, device) or weight_type(config)


@functools.cache
def measured_flops(device: torch.device, dtype: torch.dtype, size: int = 768) -> float:
    """Operations per second of a square matrix product: the best of a few.

    Args:
        device: where.
        dtype: of the matrices.
        size: of their sides.
    """
    a = torch.ones(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(12):  # others may be at work on the machine
        began = time.perf_counter()
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - began)
    return 2.0 * size**3 / best
