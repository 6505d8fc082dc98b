"""How to make a good file of every modality, and its bad relatives.

One-sample files are errors for all modalities but video: a single frame is a legal video.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from onellm.errors import BadInput
from onellm.modality import Modality
from onellm.registry import get_modality, modality_classes
from onellm.source import Source, source_name

Maker = Callable[[Path], Source]
RNG = np.random.default_rng(0)


def array_file(name: str, array: np.ndarray) -> Maker:
    def make(folder: Path) -> Path:
        np.save(folder / name, array)
        return folder / name

    return make


def picture_file(name: str, width: int, height: int, mode: str = "RGB") -> Maker:
    def make(folder: Path) -> Path:
        noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).convert(mode).save(folder / name)
        return folder / name

    return make


def nan_picture(folder: Path) -> Path:
    Image.fromarray(np.full((24, 24), np.nan, np.float32)).save(folder / "nan.tif")
    return folder / "nan.tif"


def sound_file(name: str, samples: np.ndarray) -> Maker:
    def make(folder: Path) -> Path:
        soundfile.write(folder / name, samples, 16_000, subtype="FLOAT")
        return folder / name

    return make


def video_file(name: str, count: int) -> Maker:
    def make(folder: Path) -> Path:
        import av

        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.width = stream.height = 32
            stream.pix_fmt = "yuv420p"
            rng = np.random.default_rng(0)
            for _ in range(count):
                picture = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
        return folder / name

    return make


@dataclass(frozen=True)
class Makers:
    """How to make files of one modality.

    Args:
        good: a file that loads.
        one_sample: a file with a single pixel, sample, point, row, frame or voxel.
        not_a_number: a source full of NaN.
        foreign: a suffix the modality does not read.
        options: small sizes.
        one_sample_is_legal: whether ``one_sample`` loads.
    """

    good: Maker
    one_sample: Maker
    not_a_number: Maker
    foreign: str = ".docx"
    options: dict[str, Any] = field(default_factory=dict)
    one_sample_is_legal: bool = False


POINTS = RNG.random((64, 6))
MAKERS: dict[str, Makers] = {
    "audio": Makers(
        sound_file("a.wav", RNG.normal(0, 0.1, 8000).astype(np.float32)),
        sound_file("one.wav", np.array([0.5], np.float32)),
        sound_file("nan.wav", np.full(8000, np.nan, np.float32)),
        options={"frames": 64},
    ),
    "depth": Makers(
        picture_file("a.png", 40, 30, "L"),
        picture_file("one.png", 1, 1, "L"),
        array_file("nan.npy", np.full((30, 40), np.nan, np.float32)),
        options={"size": 16},
    ),
    "fmri": Makers(
        array_file("a.npy", RNG.normal(size=(10, 6, 1)).astype(np.float16)),
        array_file("one.npy", np.ones(1, np.float16)),
        array_file("nan.npy", np.full(60, np.nan, np.float16)),
        options={"voxels": 60},
    ),
    "image": Makers(
        picture_file("a.jpg", 40, 30),
        picture_file("one.png", 1, 1),
        nan_picture,
        options={"size": 16},
    ),
    "imu": Makers(
        array_file("a.npy", RNG.normal(size=(50, 6))),
        array_file("one.npy", np.ones((1, 6))),
        array_file("nan.npy", np.full((50, 6), np.nan)),
        options={"steps": 50},
    ),
    "normal": Makers(
        picture_file("a.png", 40, 30),
        picture_file("one.png", 1, 1),
        nan_picture,
        options={"size": 16},
    ),
    "point": Makers(
        array_file("a.npy", POINTS),
        array_file("one.npy", POINTS[:1]),
        array_file("nan.npy", np.full((64, 6), np.nan)),
        options={"points": 64, "groups": 8, "neighbours": 4},
    ),
    "video": Makers(
        video_file("a.mp4", 12),
        video_file("one.mp4", 1),
        lambda folder: np.full((4, 8, 8, 3), np.nan),  # no file format of frames holds NaN
        options={"size": 16},
        one_sample_is_legal=True,
    ),
}


def built_in() -> list[str]:
    """Names of the modalities that this library registers, in a stable order."""
    classes = modality_classes().items()
    return sorted(name for name, cls in classes if cls.__module__.startswith("onellm.tokenizers."))


def small(name: str, **more: Any) -> Modality:
    return get_modality(name, **{**MAKERS[name].options, **more})


def refused(modality: Modality, source: Source) -> BadInput:
    """Load, expecting an error that names the source, what was expected and what was found."""
    with warnings.catch_warnings(), pytest.raises(BadInput) as caught:
        warnings.simplefilter("ignore")
        modality.load(source)
    error = caught.value
    assert source_name(source) in error.source
    assert error.expected
    assert error.found
    assert "\n" not in str(error), "one line"
    assert len(str(error)) < 600
    return error
