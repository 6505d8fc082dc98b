"""PyTorch's attention for an LLM, with one mask for all of its blocks.

``transformers`` hands every block the same mask of truths, and in each PyTorch makes numbers of it
and keeps them for the backward pass: in a packed row of 4,000 positions a gigabyte of bfloat16
for 32 blocks. Here it is made of numbers once.

Shape legend: B batch, T positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NAME = "sdpa_one_mask"
"""By which ``transformers`` knows it."""
_ALIGNED = 16  # kernels for GPUs copy a mask whose rows do not begin at multiples of this


def use_one_mask(llm: Any) -> bool:
    """Where an LLM goes through PyTorch's attention, give its blocks one mask, in place.

    Args:
        llm: any Hugging Face causal LM.

    Returns:
        whether it does now.
    """
    if llm.config._attn_implementation != "sdpa":
        return False
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register(NAME, sdpa_attention_forward)
    AttentionMaskInterface.register(NAME, _mask)
    try:
        llm.set_attn_implementation(NAME)
    except ValueError:  # its attention is its own
        return False
    return True


def use_own_masks(llm: Any) -> None:
    """Undo :func:`use_one_mask`."""
    if llm.config._attn_implementation == NAME:
        llm.set_attn_implementation("sdpa")


def _mask(*args: Any, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Tensor | None:
    """What ``transformers`` hides, as the lowest number, (B, 1, T, T); None where it can be."""
    from transformers.masking_utils import sdpa_mask

    seen = sdpa_mask(*args, **kwargs)
    if seen is None:
        return None
    device = seen.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)  # else each block would cast it for itself
    return added(seen, dtype)


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
