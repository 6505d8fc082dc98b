"""PyTorch's attention for an LLM whose rows hold several samples.

``transformers`` hands every block the same mask of truths, and in each PyTorch makes numbers of it
and keeps them for the backward pass: in a packed row of 4,000 positions a gigabyte of bfloat16
for 32 blocks. Here it is made of numbers once. And on CPUs, where calling a kernel costs next to
nothing, samples go through it one by one, so that nothing hidden is computed.

Shape legend: B batch, H heads, T positions, K head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NAME = "sdpa_packed"
"""By which ``transformers`` knows it."""
_ALIGNED = 16  # kernels for GPUs copy a mask whose rows do not begin at multiples of this


def use_packed_attention(llm: Any) -> bool:
    """Where an LLM goes through PyTorch's attention, make that ours, in place.

    Args:
        llm: any Hugging Face causal LM.

    Returns:
        whether it is now.
    """
    if llm.config._attn_implementation != "sdpa":
        return False
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)
    try:
        llm.set_attn_implementation(NAME)
    except ValueError:
        return False
    return bool(llm.config._attn_implementation == NAME)  # not where its attention is its own


def use_own_attention(llm: Any) -> None:
    """Undo :func:`use_packed_attention`."""
    if llm.config._attn_implementation == NAME:
        llm.set_attn_implementation("sdpa")


def _mask(*args: Any, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Tensor | None:
    """What ``transformers`` hides, as the lowest number, (B, 1, T, T); None where it can be."""
    from transformers.masking_utils import sdpa_mask

    seen_B1TT = sdpa_mask(*args, **kwargs)
    if seen_B1TT is None:
        return None
    device = seen_B1TT.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)  # else each block would cast it for itself
    mask_B1TT = added(seen_B1TT, dtype)
    if device == "cpu":
        mask_B1TT.pieces = pieces(seen_B1TT)  # type: ignore[attr-defined]
    return mask_B1TT


def added(seen_B1TT: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of truths as numbers to add: 0 where it is true.

    Args:
        seen_B1TT: what attention may see.
        dtype: of the numbers.
    """
    *rows, length = seen_B1TT.shape
    room = -(-length // _ALIGNED) * _ALIGNED
    mask = torch.zeros(*rows, room, dtype=dtype, device=seen_B1TT.device)[..., :length]
    return mask.masked_fill_(~seen_B1TT, torch.finfo(dtype).min)


def pieces(seen_B1TT: Tensor) -> list[int] | None:
    """Lengths of the samples of a single row, if each sees itself and its past and nothing else.

    Args:
        seen_B1TT: what attention may see. A window, a prefix or a cache give None.
    """
    batch, _, rows, length = seen_B1TT.shape
    if batch != 1 or rows != length:
        return None
    seen_TT = seen_B1TT[0, 0]
    first_T = torch.cat([seen_TT.new_ones(1), ~seen_TT.diagonal(-1)])
    number_T = first_T.cumsum(0)
    wanted_TT = (number_T[:, None] == number_T).tril()
    if not torch.equal(seen_TT, wanted_TT):
        return None
    return [int(n) for n in torch.bincount(number_T)[1:]]


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of a block, (B, H, T, K) → (B, T, H, K), as ``transformers`` calls it.

    Some models name the mask, so it bears their name for it.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    sizes = getattr(attention_mask, "pieces", None)
    if sizes is None or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    kwargs["is_causal"] = True
    samples = zip(*(x.split(sizes, 2) for x in (query, key, value)), strict=True)
    done = [sdpa_attention_forward(module, *sample, None, **kwargs)[0] for sample in samples]
    return torch.cat(done, 1), None
