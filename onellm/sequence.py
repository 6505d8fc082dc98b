"""What travels between tokenizer, encoder and projector.

Shape legend: B batch, N tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class TokenSeq:
    """A batch of token sequences of one modality.

    Args:
        x_BND: tokens, shape (B, N, D).
        mask_BN: True where a token is real, False where it is padding; shape (B, N).
        grid: spatial arrangement of the tokens before any class token, such as ``(16, 16)``.
        modality: the modality's registered name.
    """

    x_BND: Tensor
    mask_BN: Tensor
    grid: tuple[int, ...]
    modality: str
