"""Which frames of a video are taken, and how they are decoded, resized and cropped."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from media import ramp

from onellm.registry import get_modality
from onellm.source import Blob
from onellm.tokenizers import frames, pictures


def write_video(
    path: Path, count: int, rate: int = 10, size: tuple[int, int] = (64, 48), gop: int = 12
) -> Path:
    """A video whose frame i is grey of value 8 * i."""
    import av

    codec = {".webm": "libvpx", ".gif": "gif", ".avi": "mpeg4"}.get(path.suffix, "libx264")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        if codec != "gif":
            stream.codec_context.gop_size = gop
        for i in range(count):
            grey = np.full((size[1], size[0], 3), 8 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def greys(signal: torch.Tensor) -> list[int]:
    """Which frames of :func:`write_video` these are."""
    return (pictures.denormalise(signal).mean(dim=(1, 2, 3)) * 255 / 8).round().int().tolist()


def test_published_sampling() -> None:
    plan = frames.Sampling(5, uniform=False)
    # 10 s: starts at i * 9 / 5 s; the last fifth is never seen.
    assert plan.indices(300, Fraction(30)) == [0, 54, 108, 162, 216]
    # 2.5 s at 10 Hz: starts 0, 0.3, ... 1.2 s.
    assert plan.indices(25, Fraction(10)) == [0, 3, 6, 9, 12]
    # Between two frames the later one counts: 0.14 s at 10 Hz.
    assert plan.indices(17, Fraction(10))[1] == 2
    # No longer than a clip: always the first frame.
    assert plan.indices(7, Fraction(10)) == [0] * 5


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_uniform_sampling_covers(count: int) -> None:
    taken = frames.Sampling(4, uniform=True).indices(count, Fraction(25))
    assert taken == sorted(taken)
    assert max(taken) < count
    if count == 100:
        assert taken == [12, 37, 62, 87]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".avi", ".mov", ".gif"])
def test_video_files(suffix: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / f"a{suffix}", 25)
    signal = get_modality("video", size=32).load(path)
    assert signal.shape == (15, 3, 32, 32)
    slack = 2 if suffix == ".gif" else 1  # 256 colours
    expected = np.repeat([0, 3, 6, 9, 12], 3)
    assert np.abs(np.array(greys(signal)) - expected).max() <= slack
    assert torch.equal(
        signal, get_modality("video", size=32).load(Blob(path.name, path.read_bytes()))
    )


def test_jumping_to_key_frames(tmp_path: Path) -> None:
    dense = get_modality("video", size=32, sampling="uniform", frames=25)
    sparse = get_modality("video", size=32, sampling="uniform", frames=3)
    path = write_video(tmp_path / "a.mp4", 25, gop=4)
    assert greys(dense.load(path)) == list(range(25))
    assert greys(sparse.load(path)) == [4, 12, 20]


def test_three_crops() -> None:
    for size, axis in (((40, 80), 1), ((80, 40), 0)):
        wide = np.asarray(ramp(size[1], size[0]))[None]
        signal = get_modality("video", size=40).load(wide)
        colour = pictures.denormalise(signal[:3]).mean(dim=(2, 3))[:, 1 - axis]
        assert colour.tolist() == sorted(colour.tolist()), "left to right or top to bottom"
        assert colour[2] - colour[0] > 0.3
    square = get_modality("video", size=40).load(np.asarray(ramp(40, 40))[None])
    assert torch.equal(square[0], square[2])


def test_long_side_is_floored() -> None:
    signal = frames.to_signal(np.zeros((1, 30, 47, 3), np.uint8), 40, crops=3)
    assert signal.shape == (3, 3, 40, 40)


def test_video_array_and_rate() -> None:
    count = 25
    array = np.stack([np.full((8, 8, 3), 8 * i, np.uint8) for i in range(count)])
    video = get_modality("video", size=8, crops=1)
    assert greys(video.load({"data": array, "rate_hz": 10})) == [0, 3, 6, 9, 12]
    assert greys(video.load({"data": array / 255.0, "fps": 5})) == [0, 4, 8, 12, 16]


def test_display_matrix_is_followed(tmp_path: Path) -> None:
    import av

    path = tmp_path / "a.mp4"
    picture = np.asarray(ramp(64, 64))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    video = get_modality("video", size=64, sampling="uniform", frames=1)
    upright = pictures.denormalise(video.load(path))[0]
    data = bytearray(path.read_bytes())
    # Phones write x' = -y, y' = x, "turn by 90 degrees clockwise", into the track header.
    start = data.index(b"tkhd") + 4 + 4 + 20 + 16
    turned = [0, 1, 0, -1, 0, 0, 0, 0, 0x4000]
    matrix = b"".join(int(v * 0x10000).to_bytes(4, "big", signed=True) for v in turned)
    assert data[start : start + 4] == (0x10000).to_bytes(4, "big")
    data[start : start + 36] = matrix
    got = pictures.denormalise(video.load(Blob("a.mp4", bytes(data))))[0]
    clockwise = torch.rot90(upright, -1, dims=(1, 2))
    assert (got - clockwise).abs().mean() < 0.02
