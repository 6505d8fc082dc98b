"""How much memory a step takes, found by running it on tensors that have a shape and no numbers.

The model is on PyTorch's meta device, so a 7B model costs nothing. Its own blocks run forward and
backward there while every tensor that is made and freed is counted; only what looks at numbers
(reading signals, splicing, choosing supervised positions) is replaced by its shapes.

Shape legend: B batch, N encoder tokens, Q queries, T positions, S supervised positions, D width.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
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
from onellm.train.config import TrainConfig

META = torch.device("meta")


@dataclass(frozen=True)
class Shapes:
    """A micro-batch without its numbers.

    Args:
        media: how many of each modality.
        lengths: text tokens of each sample.
        media_of: number of media of each sample.
        supervised: learned tokens.
    """

    media: Mapping[str, int]
    lengths: tuple[int, ...]
    media_of: tuple[int, ...]
    supervised: int


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


class _FlashShape(torch.autograd.Function):
    """What a fused attention kernel keeps: its inputs, its output, a number per row."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty(*query.shape[:-1], value.shape[-1], dtype=query.dtype, device=META)
        rows = torch.empty(query.shape[:-1], dtype=torch.float32, device=META)
        ctx.save_for_backward(query, key, value, out, rows)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


@contextmanager
def _fused_attention() -> Iterator[None]:
    """PyTorch's attention as the kernels of real devices do it, without its table of weights.

    A function mode would be simpler, but is off in the backward pass, where blocks are recomputed.
    """

    def attend(*args: Any, **kwargs: Any) -> Any:
        query, key, value = args[:3] if len(args) >= 3 else _named(args, kwargs)
        return _FlashShape.apply(query, key, value)  # type: ignore[no-untyped-call]

    usual = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = usual


def _named(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    found = dict(zip(("query", "key", "value"), args, strict=False)) | dict(kwargs)
    return found["query"], found["key"], found["value"]


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
    with LiveBytes() as live, _fused_attention():
        live.know([*model.parameters(), *model.buffers()])
        for _ in range(min(passes, 2)):
            _pass(model, config, shapes)
    for parameter in trained:
        parameter.grad = None
    with LiveBytes() as alone, _fused_attention(), _dropping(trained):
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
        loss = _language(model, shapes, soft)
    else:
        loss = sum((s.float().sum() for _, s in soft), start=torch.zeros((), device=META))
    if loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]


def _soften(model: OneLLM, config: TrainConfig, name: str, count: int) -> Tensor:
    """Soft tokens (B, Q, D) of media of one modality, or their queries before the LLM."""
    encoder, modality = model.encoder, model.modality(name)
    own = model.positions[name] if name in model.positions else None
    table_ND = encoder.visual.positional_embedding if own is None else own
    frames = len(modality.example()) if modality.frame_axis else 1
    learned = any(p.requires_grad for p in _tokenizer_parameters(model, name))
    x_BLD = torch.empty(
        *(count * frames, table_ND.shape[0] - 1, table_ND.shape[1]), dtype=model.dtype, device=META
    ).requires_grad_(learned)
    # Masks are real: whether all of them is true is asked, which meta tensors cannot answer.
    mask_BL = torch.ones(x_BLD.shape[:2], dtype=torch.bool)
    stored = config.stage.frozen != "none" and not learned
    if stored:
        x_BND = torch.empty(count, *table_ND.shape, dtype=model.dtype, device=META)
        mask_BN = torch.ones(count, len(table_ND), dtype=torch.bool)
        features = TokenSeq(x_BND, mask_BN, (len(table_ND),), name)
    else:
        encoded = encoder(TokenSeq(x_BLD, mask_BL, (x_BLD.shape[1],), name), own)
        if modality.frame_axis:
            x_BTND = encoded.x_BND.unflatten(0, (count, frames))
            encoded = TokenSeq(x_BTND, encoded.mask_BN[::frames], encoded.grid, name)
        features = model.reduce_frames(encoded)
    if config.stage.objective == "clip":
        return features.x_BND
    soft: Tensor = model.project(features)
    return soft.detach() if stored and config.stage.frozen == "soft" else soft


def _tokenizer_parameters(model: OneLLM, name: str) -> list[nn.Parameter]:
    found = list(model.encoder.parameters())
    if name in model.tokenizers:
        found += model.tokenizers[name].parameters()
    return [*found, model.positions[name]] if name in model.positions else found


def _language(model: OneLLM, shapes: Shapes, soft: list[tuple[str, Tensor]]) -> Tensor:
    """The loss of a batch through the LLM, spliced row by row as in training."""
    embed = model.llm.get_input_embeddings()
    pool = [model.tagged(name, row_QD) for name, soft_BQD in soft for row_QD in soft_BQD]
    rows = []
    for length, count in zip(shapes.lengths, shapes.media_of, strict=True):
        text_SD = embed(torch.empty(length, dtype=torch.long, device=META))
        media, pool = pool[:count], pool[count:]
        rows.append(torch.cat([text_SD[:1], *media, text_SD[1:]]))
    longest = max(len(row) for row in rows)
    embeds_BTD = torch.stack([functional.pad(row, (0, 0, 0, longest - len(row))) for row in rows])
    places_BT = torch.empty(embeds_BTD.shape[:2], dtype=torch.long, device=META)
    # The mask that transformers would make; making it looks at numbers.
    eager = model.llm.config._attn_implementation == "eager"
    kind = embeds_BTD.dtype if eager else torch.bool
    mask_B1TT = torch.empty(len(rows), 1, longest, longest, dtype=kind, device=META)
    hidden_BTD = model.llm.base_model(
        inputs_embeds=embeds_BTD,
        attention_mask=mask_B1TT,
        position_ids=places_BT,
        use_cache=False,
    ).last_hidden_state
    chosen_S = torch.empty(shapes.supervised, dtype=torch.long, device=META)
    hidden_SD = hidden_BTD.flatten(0, 1).index_select(0, chosen_S)
    logits_SV = model.llm.get_output_embeddings()(hidden_SD).float()
    loss_S = functional.cross_entropy(logits_SV, chosen_S, reduction="none")
    return loss_S.sum()


def shapes_of(batch: Iterable[Any]) -> Shapes:
    """The shapes of a micro-batch of examples."""
    examples = list(batch)
    return Shapes(
        dict(Counter(m.modality for e in examples for m in e.media)),
        tuple(len(e.ids) for e in examples),
        tuple(len(e.media) for e in examples),
        sum(e.supervised for e in examples),
    )
