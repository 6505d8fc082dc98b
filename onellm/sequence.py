"""What travels between tokenizer, encoder and projector.

Shape legend: B batch, N tokens, D width.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class TokenSeq(NamedTuple):
    """A batch of token sequences of one modality; a tuple, so that hooks find its tensors.

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

    def blend(self, other_B: Tensor, own_B: Tensor) -> TokenSeq:
        """Each sample mixed with another one of the batch (mixup: Zhang et al., ICLR 2018).

        Args:
            other_B: for each sample, the index of the other one; shape (B,), int64.
            own_B: share 0..1 that a sample keeps of itself; shape (B,).
        """
        x_BND = self.x_BND * self.mask_BN[..., None]
        own_B11 = own_B.to(x_BND.dtype)[:, None, None]
        x_BND = own_B11 * x_BND + (1 - own_B11) * x_BND[other_B]
        return TokenSeq(x_BND, self.mask_BN | self.mask_BN[other_B], self.grid, self.modality)
