"""Image: one picture, cut into patches by the encoder's own convolution."""

from __future__ import annotations

from typing import ClassVar

import torch
from PIL import Image as PillowImage
from pydantic import Field
from torch import Tensor

from onellm.modality import Modality
from onellm.registry import register_modality
from onellm.source import Source, source_name
from onellm.tokenizers import panels, pictures
from onellm.tokenizers.decoding import unwrap


@register_modality
class Image(Modality):
    """A picture (3, S, S), CLIP-normalised: S = 224 as published (spec section 1.3).

    Reads Pillow's common formats, Pillow pictures, arrays (H, W), (H, W, 3 | 4) and channels-first
    tensors, integers 0..255 or floats 0..1. Evaluation transform: short side to S with bicubic
    resampling, centre crop. Transparency is laid on white, EXIF orientation applied.

    Attributes:
        size: S, side of the model's input in pixels; a multiple of the encoder's patch.
        max_megapixels: refuse larger pictures (10^6 pixels) before decoding them.
        crop_scale: share of the area that the random crop of training keeps.
        flip: probability of a mirror image in training; published: never, since captions say
            left and right.
    """

    name: ClassVar[str] = "image"
    suffixes: ClassVar[tuple[str, ...]] = pictures.SUFFIXES
    caption_prompt: ClassVar[str] = "Provide a one-sentence caption for the provided image."
    positions: ClassVar = "shared"
    published_name: ClassVar[str] = "image"

    size: int = Field(default=224, ge=8, le=4096)
    max_megapixels: float = Field(default=80.0, gt=0)
    crop_scale: tuple[float, float] = (0.9, 1.0)
    flip: float = Field(default=0.0, ge=0, le=1)

    def _open(self, source: Source) -> PillowImage.Image:
        data, _ = unwrap(source)
        picture = pictures.open_picture(
            data,
            expected="a picture",
            max_megabytes=self.max_megabytes,
            max_megapixels=self.max_megapixels,
        )
        return pictures.to_rgb(picture, source_name(data))

    def read(self, source: Source) -> Tensor:
        """Read a picture, resize and crop it.

        Args:
            source: file, Pillow picture or array of pixels.

        Returns:
            (3, S, S) float32, mean 0 and standard deviation 1 in CLIP's sense (about -1.8..2.2).

        Raises:
            BadInput: no picture, truncated, a single pixel, or too large.
        """
        return pictures.to_signal(pictures.shrink_and_crop(self._open(source), self.size))

    def example(self) -> Tensor:
        """Zeros of shape (3, S, S)."""
        return torch.zeros(3, self.size, self.size)

    def augment(self, signal: Tensor, generator: torch.Generator) -> Tensor:
        """Random resized crop and, if ``flip`` allows it, a mirror image.

        Args:
            signal: (3, S, S).
            generator: the only source of randomness.
        """
        signal = pictures.random_crop(signal, self.crop_scale, generator)
        return signal.flip(-1) if pictures.chance(self.flip, generator) else signal

    def thumbnail(self, source: Source) -> PillowImage.Image:
        """The picture itself, at most 160 x 160 pixels."""
        return panels.fit(self._open(source))
