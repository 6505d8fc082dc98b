"""How much memory a step takes, found by running it on tensors that have a shape and no numbers.

The model is on PyTorch's meta device, so a 7B model costs nothing. Its own blocks run forward and
backward there while every tensor that is made and freed is counted; only what looks at numbers
(reading signals, splicing, choosing supervised positions) is replaced by its shapes.

Shape legend: B batch, N encoder tokens, Q queries, T positions, S supervised positions, D width.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from onellm.model import OneLLM
from onellm.sequence import TokenSeq
from onellm.train import packed_attention
from onellm.train.config import TrainConfig
from onellm.train.engine import autocast_type, pick_device
from onellm.train.lm_head import CHUNK, chunked_cross_entropy
from onellm.train.media import is_frozen
from onellm.train.meta_kernels import META, real_kernels
from onellm.train.shapes import Shapes


@dataclass(frozen=True)
class Passes:
    """Bytes that forward and backward passes take at most, beside weights and optimiser.

    Args:
        together: gradients of the trained parameters among them, as plain PyTorch keeps them.
        activations: without those.
        gradients: of all trained parameters.
    """

    together: int
    activations: int
    gradients: int


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made within it, for as long as each lives.

    What kernels allocate for themselves alone does not show.

    Args:
        device: type of device whose tensors count.

    Attributes:
        now: bytes alive.
        peak: most bytes that were alive at a time.
    """

    def __init__(self, device: str = "meta") -> None:
        super().__init__()
        self.device = device
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def know(self, tensors: Iterable[Tensor]) -> None:
        """Leave out tensors that were there before."""
        self._seen |= {t.untyped_storage()._cdata for t in tensors}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.device.type == self.device:
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def measure_passes(model: OneLLM, config: TrainConfig, shapes: Shapes, passes: int) -> Passes:
    """Run a step's passes on the meta device.

    Args:
        model: on the meta device, in the type it is computed in, set up as for training.
        config: the run.
        shapes: of a micro-batch.
        passes: of an optimiser step; from the second on gradients are there from the beginning.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = sum(p.numel() * p.element_size() for p in trained)
    autocast = autocast_type(config, pick_device())
    with LiveBytes() as live, real_kernels(autocast):
        live.know([*model.parameters(), *model.buffers()])
        for _ in range(min(passes, 2)):
            _pass(model, config, shapes)
    for parameter in trained:
        parameter.grad = None
    with LiveBytes() as alone, real_kernels(autocast), _dropping(trained):
        alone.know([*model.parameters(), *model.buffers()])
        _pass(model, config, shapes)
    return Passes(live.peak, alone.peak, gradients)


@contextmanager
def _dropping(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Forget each gradient as soon as it is there."""

    def drop(parameter: Tensor) -> None:
        parameter.grad = None

    hooks = [p.register_post_accumulate_grad_hook(drop) for p in parameters]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _pass(model: OneLLM, config: TrainConfig, shapes: Shapes) -> None:
    soft = [
        (name, _soften(model, config, name, count)) for name, count in sorted(shapes.media.items())
    ]
    if config.stage.objective == "lm":
        loss = _language(model, config, shapes, soft)
    else:
        loss = sum((s.float().sum() for _, s in soft), start=torch.zeros((), device=META))
    if loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]


def _soften(model: OneLLM, config: TrainConfig, name: str, count: int) -> Tensor:
    """Soft tokens (B, Q, D) of media of one modality, or their features before the LLM."""
    level = config.stage.frozen
    stored = level != "none" and is_frozen(model, name, level)
    if stored and level == "soft":
        width = model.llm.get_input_embeddings().weight.shape[1]
        shape = (count, model.config.projector.queries, width)
        return torch.empty(shape, dtype=model.dtype, device=META)
    features = model.reduce_frames(_features(model, name, count, stored=stored))
    return features.x_BND if config.stage.objective == "clip" else model.project(features)


def _features(model: OneLLM, name: str, count: int, *, stored: bool) -> TokenSeq:
    """What the encoder makes of media, or what is kept of that."""
    encoder, modality = model.encoder, model.modality(name)
    own = model.positions[name] if name in model.positions else None
    table_ND = encoder.visual.positional_embedding if own is None else own
    frames = len(modality.example()) if modality.frame_axis else 1
    # Masks are real: whether all of them is true is asked, which meta tensors cannot answer.
    mask_BN = torch.ones(count, len(table_ND), dtype=torch.bool)
    shape = (count, frames, *table_ND.shape) if modality.frame_axis else (count, *table_ND.shape)
    if stored:  # a plain mean over frames is stored as one: of the same size as its own frame
        one = modality.frame_axis and name not in model.frames
        shape = (count, 1, *table_ND.shape) if one else shape
        kept = torch.empty(shape, dtype=model.dtype, device=META)
        return TokenSeq(kept, mask_BN, (len(table_ND) - 1,), name)
    learned = any(p.requires_grad for p in _tokenizer_parameters(model, name))
    tokens = (count * frames, table_ND.shape[0] - 1, table_ND.shape[1])
    x_BLD = torch.empty(tokens, dtype=model.dtype, device=META).requires_grad_(learned)
    mask_BL = torch.ones(tokens[:2], dtype=torch.bool)
    encoded = encoder(TokenSeq(x_BLD, mask_BL, (tokens[1],), name), own)
    if not modality.frame_axis:
        return encoded
    x_BTND = encoded.x_BND.unflatten(0, (count, frames))
    return TokenSeq(x_BTND, encoded.mask_BN[::frames], encoded.grid, name)


def _tokenizer_parameters(model: OneLLM, name: str) -> list[nn.Parameter]:
    found = list(model.encoder.parameters())
    if name in model.tokenizers:
        found += model.tokenizers[name].parameters()
    return [*found, model.positions[name]] if name in model.positions else found


def _language(
    model: OneLLM, config: TrainConfig, shapes: Shapes, soft: list[tuple[str, Tensor]]
) -> Tensor:
    """The loss of a batch through the LLM, spliced as in training."""
    embed, pack = model.llm.get_input_embeddings(), config.batch.pack
    pool = [model.tagged(name, row_QD) for name, soft_BQD in soft for row_QD in soft_BQD]
    # One look-up for the whole batch, as in splicing: its gradient is as large as the table.
    ids_S = torch.empty(sum(shapes.lengths), dtype=torch.long, device=META)
    rows = []
    for text_SD, count in zip(
        embed(ids_S).split(list(shapes.lengths)), shapes.media_of, strict=True
    ):
        media, pool = [m.to(text_SD.dtype) for m in pool[:count]], pool[count:]
        rows.append(torch.cat([text_SD[:1], *media, text_SD[1:]]))
    embeds_BTD = torch.cat(rows)[None] if pack else _padded(rows)
    batch, length, _ = embeds_BTD.shape
    hidden_BTD = model.llm.base_model(
        inputs_embeds=embeds_BTD,
        attention_mask=_mask(model.llm, config, embeds_BTD),
        position_ids=torch.empty(batch, length, dtype=torch.long, device=META),
        use_cache=False,
    ).last_hidden_state
    chosen_S = torch.empty(shapes.supervised, dtype=torch.long, device=META)
    hidden_SD = hidden_BTD[:, :-1].flatten(0, 1).index_select(0, chosen_S)
    divided = config.deepspeed is not None and config.deepspeed.zero == 3
    few = 1 if divided else max(1, math.ceil(shapes.supervised / CHUNK))
    return chunked_cross_entropy(model.llm.get_output_embeddings(), hidden_SD, chosen_S, few).sum()


def _padded(rows: list[Tensor]) -> Tensor:
    longest = max(len(row) for row in rows)
    return torch.stack([functional.pad(row, (0, 0, 0, longest - len(row))) for row in rows])


def _mask(llm: Any, config: TrainConfig, embeds_BTD: Tensor) -> Tensor:
    """The mask that transformers would make; making it looks at numbers."""
    batch, length, _ = embeds_BTD.shape
    if config.compute.attention == "flash_attention_2":  # it has none; this takes a byte
        one = torch.empty(1, 1, 1, 1, dtype=torch.bool, device=META)
        return one.expand(batch, 1, length, length)
    numbers = llm.config._attn_implementation in ("eager", packed_attention.NAME)
    kind = autocast_type(config, pick_device()) or embeds_BTD.dtype if numbers else torch.bool
    return torch.empty(batch, 1, length, length, dtype=kind, device=META)
