"""Audio: a Kaldi log-mel picture through one convolution.

Shape legend: B batch, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from onellm.errors import BadInput
from onellm.modality import Modality
from onellm.registry import register_modality
from onellm.source import Source, source_name
from onellm.tokenizers import fbank, panels, waveforms

# Mean and standard deviation of AudioSet's log-mel energies, as published.
_MEAN, _STD = -4.2677393, 4.5689974
# Resampling looks this far beyond the last sample it returns.
_MARGIN_SECONDS = 0.5


Extent = PositiveInt | tuple[PositiveInt, PositiveInt]
"""A side, or (bands, frames)."""


class AudioTokenizer(nn.Module):
    """One 2-d convolution over (mel band, time); rows of the grid are mel patches.

    Args:
        width: D.
        kernel: side of a patch, or its (bands, frames).
        stride: step between patches, or its (bands, frames).
    """

    def __init__(self, width: int, kernel: Extent, stride: Extent) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, kernel, stride)

    def forward(self, signal: Tensor) -> Tensor:
        """Tokenize (B, 1, bins, frames) to (B, L, D); 128 x 1024 gives 12 x 101 = 1212."""
        x_BDML: Tensor = self.conv(signal.to(self.conv.weight.dtype))
        return x_BDML.flatten(2).transpose(1, 2)


@register_modality
class Audio(Modality):
    """A log-mel spectrogram (1, bins, frames) of the first 10.24 s of a recording.

    Reads WAV, FLAC, Ogg and MP3 files, and arrays of samples with the fact ``rate_hz``.
    Published steps (spec section 1.3): 16 kHz, mean removed, Kaldi filter banks, zero-padded or
    cut to ``frames``, ``(x + 4.2677393) / (2 * 4.5689974)``. Two notes: all channels are
    averaged, where the published code takes the first one only; and later sound is cut off, as
    published, so cut long recordings into pieces. One second gives 98 frames.

    Attributes:
        bins: mel bands.
        frames: windows of 25 ms every 10 ms; published 1024.
        kernel: side of the convolution's patch, or its (bands, frames). A patch over all bands
            makes every token a moment of the whole spectrum, which learns from far fewer
            recordings than small squares do.
        stride: step between patches, or its (bands, frames).
        time_shift: in training, move the sound by up to this share of the frames either way.
        frequency_shift: in training, move the spectrum by up to this share of the bands either
            way; published: never.
        frequency_mask: in training, blank up to this share of the bands; published 48 of 128.
        time_mask: in training, blank up to this share of the frames; published 192 of 1024.
    """

    name: ClassVar[str] = "audio"
    suffixes: ClassVar[tuple[str, ...]] = waveforms.SUFFIXES
    caption_prompt: ClassVar[str] = "Provide a one-sentence caption for the provided audio."
    published_name: ClassVar[str] = "audio"
    published_keys: ClassVar[Mapping[str, str]] = {
        "conv1.audio.weight": "conv.weight",
        "conv1.audio.bias": "conv.bias",
    }

    bins: int = Field(default=128, ge=16, le=512)
    frames: int = Field(default=1024, ge=16, le=100_000)
    kernel: Extent = 16
    stride: Extent = 10
    time_shift: float = Field(default=0.1, ge=0, le=1)
    frequency_shift: float = Field(default=0.0, ge=0, lt=1)
    frequency_mask: float = Field(default=0.375, ge=0, le=1)
    time_mask: float = Field(default=0.1875, ge=0, le=1)

    @model_validator(mode="after")
    def _patch_fits(self) -> Audio:
        bands, frames = (self.kernel,) * 2 if isinstance(self.kernel, int) else self.kernel
        if bands > self.bins or frames > self.frames:
            raise ValueError(f"kernel {self.kernel} is larger than {self.bins} x {self.frames}")
        return self

    def _log_mel(self, source: Source) -> NDArray[np.float32]:
        """Log-mel energies (frames, bins) before padding, at most ``frames`` of them."""
        samples = (self.frames - 1) * fbank.SHIFT + fbank.WINDOW
        wave = waveforms.read_wave(
            source,
            rate_hz=fbank.RATE_HZ,
            seconds=samples / fbank.RATE_HZ + _MARGIN_SECONDS,
            max_megabytes=self.max_megabytes,
        )
        if len(wave) < fbank.WINDOW:
            milliseconds = 1000 * fbank.WINDOW // fbank.RATE_HZ
            raise BadInput(
                source_name(source),
                expected=f"at least {milliseconds} ms of sound",
                found=f"{len(wave)} sample(s) at {fbank.RATE_HZ} Hz",
            )
        # Each window's own mean is removed later, so the mean of the part that is read does as
        # well as the mean of the whole recording.
        return fbank.log_mel(wave - wave.mean(), self.bins)[: self.frames]

    def read(self, source: Source) -> Tensor:
        """Read a recording and compute its spectrogram.

        Args:
            source: sound file, or ``{"data": samples, "rate_hz": …}``.

        Returns:
            (1, bins, frames) float32; silence behind the end is 0.467.

        Raises:
            BadInput: no recording, truncated, NaN, or shorter than 25 ms.
        """
        mel = torch.from_numpy(self._log_mel(source).T.copy())
        padded = torch.zeros(self.bins, self.frames)
        padded[:, : mel.shape[1]] = mel
        return ((padded - _MEAN) / (2 * _STD)).unsqueeze(0)

    def example(self) -> Tensor:
        """Zeros of shape (1, bins, frames)."""
        return torch.zeros(1, self.bins, self.frames)

    def build_tokenizer(self, width: int) -> nn.Module:
        """One convolution with bias: (B, 1, bins, frames) → (B, L, D).

        Args:
            width: D.
        """
        return AudioTokenizer(width, self.kernel, self.stride)

    def augment(self, signal: Tensor, generator: torch.Generator) -> Tensor:
        """Circular shift in time, shift in frequency, one mask in each (SpecAugment).

        Args:
            signal: (1, bins, frames).
            generator: the only source of randomness.
        """
        u = torch.rand(6, generator=generator).tolist()
        signal = signal.roll(round((2 * u[0] - 1) * self.time_shift * self.frames), dims=-1)
        up = round((2 * u[5] - 1) * self.frequency_shift * self.bins)
        signal = signal[:, (torch.arange(self.bins) - up).clamp(0, self.bins - 1)]
        # Masks hold what published masks hold: zero log energy before normalisation.
        blank = -_MEAN / (2 * _STD)
        height, length = (
            int(u[1] * self.frequency_mask * self.bins),
            int(u[2] * self.time_mask * self.frames),
        )
        low, start = int(u[3] * (self.bins - height)), int(u[4] * (self.frames - length))
        signal[:, low : low + height] = blank
        signal[:, :, start : start + length] = blank
        return signal

    def thumbnail(self, source: Source) -> Image.Image:
        """Heat map of the log-mel energies, low bands at the bottom."""
        return panels.heat(self._log_mel(source).T[::-1])
