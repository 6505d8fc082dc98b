"""fMRI: a vector of voxels through one linear map to a few tokens.

Shape legend: B batch, L tokens, D width, V voxels.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from onellm.errors import BadInput
from onellm.modality import Modality
from onellm.registry import register_modality
from onellm.source import Source, source_name
from onellm.tokenizers import panels
from onellm.tokenizers.arrays import check_finite
from onellm.tokenizers.decoding import unwrap
from onellm.tokenizers.voxels import SUFFIXES, pick_voxels, read_volume

_EXPECTED = "voxel values"
_NONZERO = "nonzero"


class FmriTokenizer(nn.Module):
    """One linear map from all voxels to all tokens.

    Args:
        width: D.
        voxels: V.
        tokens: L.
    """

    def __init__(self, width: int, voxels: int, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.linear = nn.Linear(voxels, tokens * width)

    def forward(self, signal: Tensor) -> Tensor:
        """Tokenize (B, 1, V) to (B, L, D); token t, channel c is output c * L + t."""
        flat: Tensor = self.linear(signal.to(self.linear.weight.dtype).squeeze(1))
        x_BLD: Tensor = rearrange(flat, "b (d l) -> b l d", l=self.tokens)
        return x_BLD


@register_modality
class Fmri(Modality):
    """Voxel responses (1, V); published: 15724 voxels of one person of the NSD (section 1.3).

    Reads ``.npy`` (any shape), ``.nii`` and ``.nii.gz`` files, and arrays, float16 included.
    A 2-d array is (repeats, V) and a 4-d one (X, Y, Z, repeats), unless all its values together
    are V; repeats are averaged. Any other array is one volume, flattened. A vector of another
    length than V is cropped, or padded with zeros, at its end, with a warning: voxels are then
    in other places than the weights know, so give a mask where there is one.

    Attributes:
        voxels: V.
        tokens: L; the linear map has L * D outputs (8192 in the published model).
        mask: path of a ``.npy`` or NIfTI mask, non-zero where a voxel counts, or ``"nonzero"``
            for the voxels whose own value is not zero (as many as V, or it is an error). The
            fact ``mask`` of a source goes before it.
        noise: in training, noise as a share of the recording's standard deviation.
        dropout: in training, share of voxels set to zero.
    """

    name: ClassVar[str] = "fmri"
    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES
    caption_prompt: ClassVar[str] = "Describe the scene based on fMRI data."
    published_name: ClassVar[str] = "fmri"
    published_keys: ClassVar[Mapping[str, str]] = {
        "conv1.fmri.weight": "linear.weight",
        "conv1.fmri.bias": "linear.bias",
    }

    voxels: int = Field(default=15_724, ge=2, le=1_000_000)
    tokens: int = Field(default=8, ge=1, le=1024)
    mask: str | None = None
    noise: float = Field(default=0.1, ge=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)

    def _values(self, source: Source) -> NDArray[np.float32]:
        """Voxel values averaged over repeats, as many as the source has."""
        data, facts = unwrap(source)
        name = source_name(data)
        volume = read_volume(data, expected=_EXPECTED, max_megabytes=self.max_megabytes)
        mask = self.mask if facts.get("mask") is None else facts["mask"]
        if isinstance(mask, str) and mask == _NONZERO:
            values: NDArray[np.float32] = volume[volume != 0].astype(np.float32)
            if len(values) != self.voxels:
                expected = f"{self.voxels} voxels that are not zero"
                raise BadInput(name, expected=expected, found=f"{len(values)}")
        elif mask is None and volume.size == self.voxels:
            values = volume.reshape(-1).astype(np.float32)
        else:
            where = None
            if mask is not None:
                where = read_volume(mask, expected="a mask", max_megabytes=self.max_megabytes)
            # NaN outside the mask is usual; inside it is found by the check below.
            values = pick_voxels(volume, where, name).mean(axis=0)
        check_finite(values, name, _EXPECTED)
        if len(values) < 2:
            raise BadInput(name, expected=f"{self.voxels} voxels", found=f"{len(values)}")
        return values

    def read(self, source: Source) -> Tensor:
        """Read voxels, average repeats, crop or zero-pad to V.

        Args:
            source: file or array, or a mapping with the fact ``mask``.

        Returns:
            (1, V) float32, in the file's own unit (usually z-scores or per cent change).

        Raises:
            BadInput: unreadable, a mask of another shape, NaN, or fewer than two voxels.
        """
        values = self._values(source)
        if len(values) != self.voxels:
            done = "padded with zeros" if len(values) < self.voxels else "cropped at the end"
            warnings.warn(
                f"fMRI recordings of {len(values)} voxels are {done} to {self.voxels}",
                stacklevel=2,
            )
        signal = torch.zeros(1, self.voxels)
        kept = values[: self.voxels]
        signal[0, : len(kept)] = torch.from_numpy(kept.copy())
        return signal

    def example(self) -> Tensor:
        """Zeros of shape (1, V)."""
        return torch.zeros(1, self.voxels)

    def build_tokenizer(self, width: int) -> nn.Module:
        """One linear map with bias: (B, 1, V) → (B, L, D).

        Args:
            width: D.
        """
        return FmriTokenizer(width, self.voxels, self.tokens)

    def augment(self, signal: Tensor, generator: torch.Generator) -> Tensor:
        """Add noise, then drop voxels; voxels that are zero stay so.

        Args:
            signal: (1, V).
            generator: the only source of randomness.
        """
        noise = torch.randn(signal.shape, generator=generator) * signal.std() * self.noise
        keep = torch.rand(signal.shape, generator=generator) >= self.dropout
        return (signal + noise) * (keep & (signal != 0))

    def thumbnail(self, source: Source) -> Image.Image:
        """Heat map of the voxels, row by row of a near square."""
        values = self._values(source)
        side = int(np.ceil(np.sqrt(len(values))))
        square = np.full(side * side, values.min(), dtype=np.float32)
        square[: len(values)] = values
        return panels.heat(square.reshape(side, side))
