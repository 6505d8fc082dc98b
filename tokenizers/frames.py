"""Frames of a video: which to take, decoding them with PyAV, resizing and cropping them.

Shape legend: T frames, S side of the model's input in pixels, H and W of a frame.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from onellm.errors import BadInput
from onellm.tokenizers.decoding import decoding
from onellm.tokenizers.pictures import check_size, normalise

EXPECTED = "a video"
# A container whose header promises clearly more frames than it holds was cut off; a few may be
# missing for good reasons (edit lists).
_LEAST_SHARE_OF_FRAMES = 0.9
_LARGE_FRAME = 500_000  # pixels


@dataclass(frozen=True)
class Clip:
    """Some frames of a video.

    Args:
        count: number of frames of the whole video.
        rate_hz: its mean frame rate in Hz.
        frames_THWC: the frames that were asked for, uint8 RGB, (T, H, W, 3).
    """

    count: int
    rate_hz: Fraction
    frames_THWC: NDArray[np.uint8]


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video to take.

    Args:
        clips: number of clips of the published sampling, or of frames of the uniform one.
        uniform: cover the whole video evenly instead of the published starts.
    """

    clips: int
    uniform: bool

    def indices(self, count: int, rate_hz: Fraction) -> list[int]:
        """Frame numbers to take, in rising order, ``clips`` of them.

        Published (spec section 1.3): the first frame of each of five one-second clips that
        start at i * (D - 1) / 5 seconds, D being the duration; the last fifth of the video is
        never seen. Uniform: the middle frame of each of ``clips`` equal parts.

        Args:
            count: number of frames, at least 1.
            rate_hz: frame rate in Hz.
        """
        if self.uniform:
            return [(2 * i + 1) * count // (2 * self.clips) for i in range(self.clips)]
        spare = max(Fraction(count) / rate_hz - 1, Fraction(0))
        starts = [spare * i / self.clips for i in range(self.clips)]
        return [min(math.ceil(start * rate_hz), count - 1) for start in starts]


def decode(file: BinaryIO, name: str, sampling: Sampling, max_megapixels: float) -> Clip:
    """Decode the sampled frames of a video file.

    Args:
        file: a binary file; MP4, MOV, Matroska, WebM, AVI or GIF by its first bytes.
        name: the file, for error messages.
        sampling: which frames.
        max_megapixels: refuse larger frames (10^6 pixels) before decoding them.

    Raises:
        BadInput: no video, truncated, no frames, or frames too large.
    """
    import av

    # Naming the demuxer keeps play lists, which may point at other files, from being followed.
    head = file.read(12)
    file.seek(0)
    with decoding(name, EXPECTED), av.open(file, format=_container(head)) as container:
        if not container.streams.video:
            raise BadInput(name, expected=EXPECTED, found="a container without a video stream")
        stream = container.streams.video[0]
        check_size((stream.codec_context.width, stream.codec_context.height), name, max_megapixels)
        # Starting threads costs more than they save on small frames.
        large = stream.codec_context.width * stream.codec_context.height > _LARGE_FRAME
        stream.thread_type = "AUTO" if large else "NONE"
        packets = [(p.pts, p.is_keyframe) for p in container.demux(stream) if p.size]
        count, promised = len(packets), stream.frames
        if not count or count < _LEAST_SHARE_OF_FRAMES * promised:
            of = f" of {promised}" if promised else ""
            raise BadInput(name, expected=EXPECTED, found=f"{count}{of} frames: it is cut off")
        rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
        wanted = sampling.indices(count, rate)
        frames = _pick(container, stream, wanted, packets)
    if not frames:
        raise BadInput(name, expected=EXPECTED, found="no frame that can be decoded")
    return Clip(count, rate, _stack(frames, wanted))


def _container(head: bytes) -> str:
    """FFmpeg's name of the container whose first bytes these are."""
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    if head.startswith(b"RIFF"):
        return "avi"
    if head.startswith(b"GIF8"):
        return "gif"
    return "mov"


def _pick(
    container: Any, stream: Any, wanted: Sequence[int], packets: Sequence[tuple[int | None, bool]]
) -> dict[int, NDArray[np.uint8]]:
    """Decode the wanted frames by number, jumping to the key frame before each where that helps."""
    times = sorted(time for time, _ in packets if time is not None)
    keys = sorted(time for time, is_key in packets if is_key and time is not None)
    container.seek(0, stream=stream, backward=True)
    decoded = container.decode(stream)
    frames: dict[int, NDArray[np.uint8]] = {}
    if len(times) < len(packets) or not keys:  # no time stamps to go by: count
        for index, frame in enumerate(decoded):
            if index in set(wanted):
                frames[index] = _pixels(frame, stream)
            if index >= wanted[-1]:
                break
        return frames
    reached = times[0]
    for index in sorted(set(wanted)):
        key = keys[max(bisect_right(keys, times[index]) - 1, 0)]
        if key > reached:
            container.seek(key, stream=stream, backward=True)
            decoded = container.decode(stream)
        for frame in decoded:
            reached = reached if frame.pts is None else frame.pts
            if reached >= times[index]:
                frames[index] = _pixels(frame, stream)
                break
    return frames


def _pixels(frame: Any, stream: Any) -> NDArray[np.uint8]:
    """RGB pixels (H, W, 3) of a frame, turned upright as the file's display matrix says."""
    context = stream.codec_context
    rgb = frame.reformat(width=context.width, height=context.height, format="rgb24").to_ndarray()
    return np.rot90(rgb, round(frame.rotation / 90) % 4)


def _stack(frames: dict[int, NDArray[np.uint8]], wanted: Sequence[int]) -> NDArray[np.uint8]:
    """Stack the wanted frames; one that could not be decoded is its nearest neighbour."""
    return np.stack([frames[min(frames, key=partial(_distance, want))] for want in wanted])


def _distance(a: int, b: int) -> int:
    return abs(a - b)


def to_signal(frames_THWC: NDArray[np.uint8], size: int, crops: int) -> Tensor:
    """Resize, normalise and crop frames as published (spec section 1.3).

    Short side to ``size`` with bilinear resampling, the long side cut to whole pixels.

    Args:
        frames_THWC: uint8 RGB frames (T, H, W, 3).
        size: S in pixels.
        crops: 1 for the central square, 3 for left, centre and right (top, centre and bottom
            of upright videos). All three are the same where the video is square.

    Returns:
        (T * crops, 3, S, S) float32, CLIP-normalised; the crops of a frame follow each other.
    """
    x_TCHW = torch.from_numpy(np.ascontiguousarray(frames_THWC)).permute(0, 3, 1, 2).float() / 255
    height, width = x_TCHW.shape[-2:]
    short = min(height, width)
    scaled = (size * height // short, size * width // short)
    x_TCHW = F.interpolate(x_TCHW, size=scaled, mode="bilinear", align_corners=False)
    x_TCHW = normalise(x_TCHW)
    down, right = scaled[0] - size, scaled[1] - size
    middle = (math.ceil(down / 2), math.ceil(right / 2))
    corners = [middle] if crops == 1 else [(0, 0), middle, (down, right)]
    cut = [x_TCHW[..., top : top + size, left : left + size] for top, left in corners]
    return torch.stack(cut, dim=1).flatten(0, 1)
