"""Between an LLM's hidden states and the loss: its head in chunks, and packed rows.

Shape legend: S supervised positions, C positions of one chunk, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from onellm.errors import ConfigError

CHUNK = 1024
"""Positions whose logits exist at a time."""


def chunked_cross_entropy(
    head: nn.Module, hidden_SD: Tensor, labels_S: Tensor, chunks: int
) -> Tensor:
    """Cross-entropy of each position, with the logits of one chunk in memory at a time.

    With more than one chunk, the backward pass computes each chunk's logits again.

    Args:
        head: hidden states (…, D) → logits (…, V).
        hidden_SD: (S, D).
        labels_S: (S,) int64.
        chunks: number of calls of ``head``; some get nothing where S is smaller.

    Returns:
        (S,) float32.
    """

    def losses(hidden_CD: Tensor, labels_C: Tensor) -> Tensor:
        return functional.cross_entropy(head(hidden_CD).float(), labels_C, reduction="none")

    if chunks == 1:
        return losses(hidden_SD, labels_S)
    # Not torch.chunk, which may give fewer pieces than it is asked for.
    pieces = zip(hidden_SD.tensor_split(chunks), labels_S.tensor_split(chunks), strict=True)
    return torch.cat([checkpoint(losses, *piece, use_reentrant=False) for piece in pieces])


def check_packing(llm: Any, tolerance: float = 1e-2) -> None:
    """Make sure that an LLM keeps the samples of a packed row apart.

    Args:
        llm: of ``transformers``, with weights.
        tolerance: how far a sample in a row may be from itself alone, relative; the rounding of 16
            bits if left out.

    Raises:
        ConfigError: it does not, as with recurrent states, or code of its own.
    """
    if not _apart(llm) <= tolerance:
        raise ConfigError(
            f"batch.pack: {type(llm).__name__} attends across the samples of a packed row; set "
            "batch.pack=false (batch.arrange=length keeps padding small)"
        )


@torch.no_grad()
def _apart(llm: Any) -> float:
    """How far a sample behind another one in a row is from itself alone, relative."""
    training = llm.training
    llm.eval()
    table = llm.get_input_embeddings()
    device = next(table.parameters()).device
    ids_14 = torch.tensor([[3, 5, 7, 9]], device=device) % table.num_embeddings
    hidden = [
        llm.base_model(
            inputs_embeds=table(ids),
            attention_mask=None,
            position_ids=positions[None].to(device),
            use_cache=False,
        ).last_hidden_state
        for ids, positions in (
            (ids_14, torch.tensor([0, 1, 0, 1])),
            (ids_14[:, 2:], torch.arange(2)),
        )
    ]
    llm.train(training)
    packed, alone = hidden[0][:, 2:].float(), hidden[1].float()
    return float((packed - alone).norm() / alone.norm())
