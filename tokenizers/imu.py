"""IMU: accelerometer and gyroscope traces through one convolution over time.

Shape legend: B batch, L tokens, D width, T samples.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from onellm.errors import BadInput
from onellm.modality import Modality
from onellm.registry import register_modality
from onellm.source import Blob, Source, is_file, source_name, suffix_of
from onellm.tokenizers import panels
from onellm.tokenizers.arrays import check_finite, read_array, read_table
from onellm.tokenizers.decoding import decoding, rate_fact, unwrap

_EXPECTED = "six IMU channels"
_CHANNELS = 6
# The published loader rejects shorter windows (spec section 1.3).
_LEAST_SAMPLES = 10
_MOST_OFF_SECONDS = 4.0
_STAMPS = "times in milliseconds, one for each sample"
_WINDOW_FIELDS = ("window_start", "window_end", "video_uid", "rate_hz")
_RATE_LOW_HZ, _RATE_HIGH_HZ = 0.1, 1e5

# The unit at the end of a time column's title: "time_ms", "t (s)", "timestamp [ns]", "seconds".
_UNIT = re.compile(r"(?:^|[\W_])(s|sec|seconds|ms|us|µs|ns)\W*$")
_SECONDS_PER = {
    **{"s": 1.0, "sec": 1.0, "seconds": 1.0},
    **{"ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9},
}

Floats = NDArray[np.float64]
SixNumbers = tuple[float, float, float, float, float, float]


class ImuTokenizer(nn.Module):
    """One 1-d convolution over time, without bias.

    Args:
        width: D.
        kernel: samples that one token sees.
        stride: samples from one token to the next.
    """

    def __init__(self, width: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(_CHANNELS, width, kernel, stride, bias=False)

    def forward(self, signal: Tensor) -> Tensor:
        """Tokenize (B, 6, steps) to (B, L, D), L = (steps - kernel) // stride + 1."""
        x_BDL: Tensor = self.conv(signal.to(self.conv.weight.dtype))
        return x_BDL.transpose(1, 2)


@register_modality
class Imu(Modality):
    """Traces (6, steps): acceleration x, y, z, then angular rate x, y, z.

    Published (spec section 1.3): 2 s at 200 Hz, raw values in whatever unit the device gives,
    cropped or zero-padded at the end. Reads ``.npy`` of shape (T, 6) or (6, T), and ``.csv``
    with six columns and, optionally, a time column and a header. The sampling rate comes from
    the time column, else from the fact ``rate_hz``, else it is taken to be the option.

    A window of a long recording is named by the facts ``window_start`` and ``window_end`` in
    seconds and, for the published data, ``timestamps``: a ``.npy`` file with the time of each
    sample in milliseconds.

    Attributes:
        steps: samples of the model's input.
        rate_hz: sampling rate of the model's input in Hz.
        kernel: samples that one token sees.
        stride: samples from one token to the next; published 1.
        standardise: bring each channel of each recording to mean 0 and standard deviation 1.
        channel_mean: subtracted from the channels (before ``standardise``).
        channel_std: divides the channels.
        noise: in training, noise as a share of each channel's standard deviation.
        scale: in training, factors of 1 ± this share.
    """

    name: ClassVar[str] = "imu"
    suffixes: ClassVar[tuple[str, ...]] = (".npy", ".csv")
    caption_prompt: ClassVar[str] = "Describe the motion."
    published_name: ClassVar[str] = "imu"
    published_keys: ClassVar[Mapping[str, str]] = {"conv1.imu.weight": "conv.weight"}
    record_fields: ClassVar[tuple[str, ...]] = ("imu_path", "imu", "video_uid")

    steps: int = Field(default=400, ge=10, le=100_000)
    rate_hz: float = Field(default=200.0, ge=_RATE_LOW_HZ, le=_RATE_HIGH_HZ)
    kernel: int = Field(default=10, ge=1, le=10)
    stride: int = Field(default=1, ge=1, le=10)
    standardise: bool = False
    channel_mean: SixNumbers = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    channel_std: SixNumbers = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    noise: float = Field(default=0.05, ge=0)
    scale: float = Field(default=0.1, ge=0, lt=1)

    def _traces(self, source: Source) -> Floats:
        """Raw traces (T, 6) at the option's rate, at most ``steps`` long."""
        data, facts = unwrap(source)
        name = source_name(data)
        fact = rate_fact(data, facts, "rate_hz", low=_RATE_LOW_HZ, high=_RATE_HIGH_HZ)
        rate, seconds = fact or self.rate_hz, None
        if is_file(data) and suffix_of(data) == ".csv":
            table, header = read_table(data, expected=_EXPECTED, max_megabytes=self.max_megabytes)
            x_TC, seconds = _columns(table, header, name)
        else:
            array = read_array(
                data,
                expected=_EXPECTED,
                max_megabytes=self.max_megabytes,
                suffixes=self.suffixes,
            )
            x_TC = _upright(array.astype(np.float64), name)
        if len(x_TC) < _LEAST_SAMPLES:
            found = f"{len(x_TC)}"
            raise BadInput(name, expected=f"at least {_LEAST_SAMPLES} samples", found=found)
        if "window_start" in facts:
            times = self._times(facts, len(x_TC), rate, name) if seconds is None else seconds
            x_TC, seconds = _window(x_TC, times, facts, name)
        check_finite(x_TC, name, _EXPECTED)
        if seconds is not None:
            x_TC, rate = _even(x_TC, seconds, name)
        # Cut before resampling, with a margin for its filter: the rest would be thrown away.
        x_TC = x_TC[: math.ceil((self.steps + 50) * rate / self.rate_hz) + 50]
        return _resample(x_TC, rate, self.rate_hz)[: self.steps]

    def _times(self, facts: Mapping[str, Any], count: int, rate: float, name: str) -> Floats:
        """When each of ``count`` samples was taken, in seconds."""
        stamps = facts.get("timestamps")
        if stamps is None:
            return np.arange(count) / rate
        array = read_array(stamps, expected=_STAMPS, max_megabytes=self.max_megabytes)
        if array.shape != (count,):
            found = f"shape {array.shape}"
            raise BadInput(source_name(stamps), expected=f"{count} {_STAMPS}", found=found)
        return array.astype(np.float64) / 1000

    def claims(self, record: Mapping[str, Any]) -> tuple[str, ...]:
        """The recording's field, and those of its window.

        Args:
            record: field → value, such as ``{"video_uid": "a", "window_start": 3.0, …}``.
        """
        path = super().claims(record)
        return (*path, *(f for f in _WINDOW_FIELDS if f in record)) if path else ()

    def from_record(
        self,
        record: Mapping[str, Any],
        fields: tuple[str, ...],
        locate: Callable[[Any], Source],
    ) -> Source:
        """The recording, with the window that the record names.

        As published, ``video_uid`` names ``<uid>.npy`` and the times ``<uid>_timestamps.npy``
        beside it; ``imu_path`` names the recording, or the folder of both.

        Args:
            record: field → value.
            fields: the recording's field, then those of its window.
            locate: turns a value into a source.
        """
        value = record[fields[0]]
        known = ("window_start", "window_end", "rate_hz")
        facts: dict[str, Any] = {field: record[field] for field in known if field in fields}
        if not isinstance(value, str):
            return {"data": locate(value), **facts} if facts else locate(value)
        if not value.endswith(self.suffixes):
            uid = str(record.get("video_uid", value))
            value = uid if fields[0] == "video_uid" else str(Path(value) / uid)
            value = f"{value}.npy"
        data = locate(value)
        if "window_start" in facts and value.endswith(".npy"):
            stamps = locate(f"{value.removesuffix('.npy')}_timestamps.npy")
            if Path(stamps).is_file():
                facts["timestamps"] = stamps
        return {"data": data, **facts} if facts else data

    def excerpt(self, source: Source) -> Source:
        """The traces of a window, at the model's rate, out of a recording of hours.

        Args:
            source: file, array, or a mapping with facts.
        """
        _, facts = unwrap(source)
        if "window_start" not in facts:
            return source
        return {"data": self._traces(source).astype(np.float32), "rate_hz": self.rate_hz}

    def read(self, source: Source) -> Tensor:
        """Read a recording, resample, crop or zero-pad it.

        Args:
            source: file or array (T, 6) | (6, T), or a mapping with the fact ``rate_hz``.

        Returns:
            (6, steps) float32 in the file's own units, unless standardised.

        Raises:
            BadInput: other than six channels, fewer than ten samples, or NaN.
        """
        x_TC = (self._traces(source) - np.array(self.channel_mean)) / np.array(self.channel_std)
        if self.standardise:
            spread = x_TC.std(axis=0)
            x_TC = (x_TC - x_TC.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
        signal = torch.zeros(_CHANNELS, self.steps)
        signal[:, : len(x_TC)] = torch.from_numpy(x_TC.T.copy())
        return signal

    def example(self) -> Tensor:
        """Zeros of shape (6, steps)."""
        return torch.zeros(_CHANNELS, self.steps)

    def build_tokenizer(self, width: int) -> nn.Module:
        """One convolution without bias: (B, 6, steps) → (B, L, D).

        Args:
            width: D.
        """
        return ImuTokenizer(width, self.kernel, self.stride)

    def augment(self, signal: Tensor, generator: torch.Generator) -> Tensor:
        """Scale all channels by one factor and add noise.

        Args:
            signal: (6, steps).
            generator: the only source of randomness.
        """
        factor = 1 + self.scale * (2 * torch.rand((), generator=generator) - 1)
        noise = torch.randn(signal.shape, generator=generator)
        spread = signal.std(dim=-1, keepdim=True)
        return signal * factor + noise * spread * self.noise

    def from_shard(self, files: Mapping[str, bytes], meta: Mapping[str, Any], key: str) -> Source:
        """Pick the recording, and its sampling rate out of ``meta["rate_hz"]``.

        Args:
            files: suffix without its first dot → bytes.
            meta: the sample's parsed ``.json``.
            key: the sample's key.
        """
        blob: Blob = super().from_shard(files, meta, key)
        return {"data": blob, "rate_hz": meta["rate_hz"]} if "rate_hz" in meta else blob

    def thumbnail(self, source: Source) -> Image.Image:
        """Six traces, one below another."""
        return panels.traces(self._traces(source).T)


def _window(
    x_TC: Floats, seconds: Floats, facts: Mapping[str, Any], name: str
) -> tuple[Floats, Floats]:
    """The samples of a window, and their times; as published, at most 4 s off its ends."""
    with decoding(name, "window_start and window_end in seconds"):
        start, end = float(facts["window_start"]), float(facts["window_end"])
    first, last = np.searchsorted(seconds, [start, end])
    taken = slice(int(first), int(last))
    if last - first < _LEAST_SAMPLES:
        found = f"{last - first} there"
        raise BadInput(
            name,
            expected=f"at least {_LEAST_SAMPLES} samples from {start:g} s to {end:g} s",
            found=f"{found}; the recording lasts from {seconds[0]:g} s to {seconds[-1]:g} s",
        )
    off = max(abs(seconds[taken][0] - start), abs(seconds[taken][-1] - end))
    if off > _MOST_OFF_SECONDS:
        raise BadInput(
            name,
            expected=f"samples from {start:g} s to {end:g} s",
            found=f"some from {seconds[taken][0]:g} s to {seconds[taken][-1]:g} s",
        )
    return x_TC[taken], seconds[taken]


def _upright(array: Floats, name: str) -> Floats:
    """Bring (T, 6) or (6, T) to (T, 6)."""
    array = array.squeeze() if array.ndim > 2 else array
    sides = [axis for axis, size in enumerate(array.shape) if size == _CHANNELS]
    if array.ndim != 2 or len(sides) != 1:
        expected = "six channels of shape (T, 6) or (6, T), T other than 6"
        raise BadInput(name, expected=expected, found=f"shape {array.shape}")
    return array if sides[0] == 1 else array.T


def _columns(table: Floats, header: list[str], name: str) -> tuple[Floats, Floats | None]:
    """Take a time column off a table: channels (T, 6), and times in seconds if there are any."""
    clocks = [i for i, title in enumerate(header) if re.match(r"time|sec|t\b|t_", title)]
    if not header and table.shape[1] == _CHANNELS + 1:
        clocks = [0]
    seconds = None
    if clocks:
        seconds = _seconds(table[:, clocks[0]], header[clocks[0]] if header else "", name)
        table = np.delete(table, clocks[0], axis=1)
    if table.shape[1] != _CHANNELS:
        expected = "six columns (acceleration x y z, angular rate x y z) and at most one of time"
        raise BadInput(name, expected=expected, found=f"{table.shape[1]} column(s) besides time")
    return table, seconds


def _seconds(times: Floats, title: str, name: str) -> Floats:
    """Times in seconds; the unit is in the column's title, or told by the usual step.

    Without a title's help, a step of 1 or more means ms, of 1000 or more µs, of 10^6 or more ns.
    """
    steps = np.diff(times)
    if len(steps) and not (steps > 0).all():
        raise BadInput(name, expected="a time column that rises", found="times that do not")
    unit = _UNIT.search(title)
    if unit:
        return times * _SECONDS_PER[unit.group(1)]
    step = float(np.median(steps)) if len(steps) else 0.0
    power = 0 if step < 1 else min(3, 1 + int(math.log10(step) // 3))
    return times * 1000.0**-power


def _even(x_TC: Floats, seconds: Floats, name: str) -> tuple[Floats, float]:
    """Lay unevenly timed samples on a grid of their own mean rate; returns the rate in Hz."""
    rate = (len(seconds) - 1) / (seconds[-1] - seconds[0])
    if not _RATE_LOW_HZ <= rate <= _RATE_HIGH_HZ:
        raise BadInput(name, expected="times in s, ms, µs or ns", found=f"a rate of {rate:g} Hz")
    grid = np.linspace(seconds[0], seconds[-1], len(seconds))
    return np.stack([np.interp(grid, seconds, channel) for channel in x_TC.T], axis=1), rate


def _resample(x_TC: Floats, rate: float, wanted: float) -> Floats:
    """Resample along the first axis with a low-pass filter, so that nothing is aliased."""
    if wanted < rate:  # a small ratio would be rounded to nothing, so round its inverse
        ratio = 1 / Fraction(rate / wanted).limit_denominator(1000)
    else:
        ratio = Fraction(wanted / rate).limit_denominator(1000)
    if ratio == 1:
        return x_TC
    from scipy.signal import resample_poly

    with decoding("<IMU recording>", "traces that can be resampled"):
        up, down = ratio.numerator, ratio.denominator
        return np.asarray(resample_poly(x_TC, up, down, axis=0, padtype="line"))
