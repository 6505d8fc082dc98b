"""Video: frames through the encoder's own patch convolution, averaged behind the encoder."""

from __future__ import annotations

from fractions import Fraction
from typing import ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from onellm.errors import BadInput
from onellm.modality import Modality
from onellm.registry import register_modality
from onellm.source import Source, is_file, open_file, source_name
from onellm.tokenizers import panels, pictures
from onellm.tokenizers.arrays import as_array
from onellm.tokenizers.decoding import rate_fact, unwrap
from onellm.tokenizers.frames import EXPECTED, Clip, Sampling, decode, to_signal

# The frame rate of an array that comes without one.
_DEFAULT_RATE_HZ = 25.0


@register_modality
class Video(Modality):
    """Frames (T, 3, S, S), CLIP-normalised; published: 5 clips x 3 crops of 224 x 224 pixels.

    Reads MP4, MOV, MKV, WebM, AVI and GIF files, and arrays (T, H, W, 3) of uint8 or of floats
    0..1, whose frame rate is the fact ``rate_hz`` or ``fps`` (25 Hz without one). A single
    frame is a legal video.

    Attributes:
        size: S, side of the model's input in pixels; a multiple of the encoder's patch.
        sampling: ``"published"`` takes the first frames of ``clips`` one-second clips, each in
            three crops (spec section 1.3); ``"uniform"`` covers the video with ``frames``
            frames, centre crop only.
        clips: clips of the published sampling.
        crops: crops per frame of the published sampling, 3 or 1.
        frames: frames of the uniform sampling.
        max_megapixels: refuse larger frames (10^6 pixels) before decoding them.
        crop_scale: share of the area that the random crop of training keeps.
    """

    name: ClassVar[str] = "video"
    suffixes: ClassVar[tuple[str, ...]] = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif")
    caption_prompt: ClassVar[str] = "Provide a one-sentence caption for the provided video."
    positions: ClassVar = "shared"
    frame_axis: ClassVar[bool] = True
    published_name: ClassVar[str] = "video"

    size: int = Field(default=224, ge=8, le=4096)
    sampling: Literal["published", "uniform"] = "published"
    clips: int = Field(default=5, ge=1, le=256)
    crops: Literal[1, 3] = 3
    frames: int = Field(default=8, ge=1, le=256)
    max_megapixels: float = Field(default=40.0, gt=0)
    crop_scale: tuple[float, float] = (0.8, 1.0)

    def _clip(self, source: Source, sampling: Sampling) -> Clip:
        data, facts = unwrap(source)
        name = source_name(data)
        if is_file(data):
            with open_file(
                data,
                suffixes=self.suffixes,
                expected=EXPECTED,
                max_megabytes=self.max_megabytes,
            ) as file:
                return decode(file, name, sampling, self.max_megapixels)
        x_THWC = as_array(data, expected=EXPECTED)
        if x_THWC.ndim != 4 or x_THWC.shape[-1] != 3:
            expected = "video frames of shape (T, H, W, 3)"
            raise BadInput(name, expected=expected, found=f"{x_THWC.shape}")
        height, width = x_THWC.shape[1:3]
        pictures.check_size((width, height), name, self.max_megapixels)
        rate = Fraction(rate_fact(data, facts, "rate_hz", "fps") or _DEFAULT_RATE_HZ)
        taken = x_THWC[sampling.indices(len(x_THWC), rate)]
        pixels = pictures.to_bytes(taken, name, EXPECTED)
        return Clip(len(x_THWC), rate, pixels)

    def read(self, source: Source) -> Tensor:
        """Sample, resize and crop the frames of a video.

        Args:
            source: file, or array (T, H, W, 3).

        Returns:
            (T, 3, S, S) float32, CLIP-normalised; T = clips * crops or ``frames``. Published
            order: all crops of the first clip, then of the second.

        Raises:
            BadInput: no video, truncated, without frames, or too large.
        """
        uniform = self.sampling == "uniform"
        plan = Sampling(self.frames if uniform else self.clips, uniform)
        clip = self._clip(source, plan)
        return to_signal(clip.frames_THWC, self.size, 1 if uniform else self.crops)

    def example(self) -> Tensor:
        """Zeros of shape (T, 3, S, S)."""
        count = self.frames if self.sampling == "uniform" else self.clips * self.crops
        return torch.zeros(count, 3, self.size, self.size)

    def augment(self, signal: Tensor, generator: torch.Generator) -> Tensor:
        """Random resized crop, the same for all frames; never mirrored: motion has directions.

        Args:
            signal: (T, 3, S, S).
            generator: the only source of randomness.
        """
        return pictures.random_crop(signal, self.crop_scale, generator)

    def thumbnail(self, source: Source) -> Image.Image:
        """Three frames, from the middles of the video's thirds, side by side."""
        clip = self._clip(source, Sampling(3, uniform=True))
        return panels.strip([Image.fromarray(np.asarray(f)) for f in clip.frames_THWC])
