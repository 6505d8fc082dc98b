"""Pictures: reading them with Pillow, and the steps from a picture to a CLIP-normalised signal.

Published preprocessing (spec section 1.3): short side to the model's size with bicubic resampling,
centre crop, values to [0, 1], CLIP's mean and standard deviation per colour.

Shape legend: T frames, S side of the model's input in pixels, H and W of a picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from onellm.errors import BadInput
from onellm.source import Source, is_file, open_file, source_name
from onellm.tokenizers.arrays import as_array, check_finite
from onellm.tokenizers.decoding import decoding

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# Only these decoders are tried: a renamed PostScript file must not reach an interpreter.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
_MIN_SIDE = 2
_MAX_ASPECT = 50.0


def open_picture(
    source: Source, *, expected: str, max_megabytes: float, max_megapixels: float
) -> Image.Image:
    """Open a picture as it is stored (mode untouched), its EXIF orientation applied.

    Args:
        source: path, Blob, Pillow picture, array (H, W), (H, W, 1 | 3 | 4) or channels-first
            tensor (1 | 3 | 4, H, W); integers 0..255, or floats 0..1. An animated file gives
            its first frame.
        expected: what the file should show, for the error message.
        max_megabytes: refuse larger files (10^6 bytes).
        max_megapixels: refuse pictures with more pixels (10^6), before decoding them.

    Raises:
        BadInput: unreadable, truncated, too large, a single pixel, or extremely oblong.
    """
    name = source_name(source)
    if isinstance(source, Image.Image):
        picture = source
    elif is_file(source):
        with open_file(
            source, suffixes=SUFFIXES, expected=expected, max_megabytes=max_megabytes
        ) as file:
            with decoding(name, expected):
                picture = Image.open(file, formats=_FORMATS)
            check_size(picture.size, name, max_megapixels)
            with decoding(name, expected):
                picture.load()
    else:
        picture = _picture_of_array(source, name, expected)
    check_size(picture.size, name, max_megapixels)
    with decoding(name, expected):
        return ImageOps.exif_transpose(picture)


def check_size(size: tuple[int, int], name: str, max_megapixels: float) -> None:
    """Refuse pictures that are too large, too small or too oblong to resize.

    Args:
        size: width and height in pixels.
        name: the file, for the error message.
        max_megapixels: most pixels, in 10^6.

    Raises:
        BadInput: says which limit is broken.
    """
    width, height = size
    found = f"{width} x {height} pixels"
    if width * height > max_megapixels * 1e6:
        hint = "Shrink it or raise max_megapixels of the modality."
        expected = f"at most {max_megapixels:g} million pixels"
        raise BadInput(name, expected=expected, found=found, hint=hint)
    if min(size) < _MIN_SIDE:
        expected = f"a picture of at least {_MIN_SIDE} x {_MIN_SIDE} pixels"
        raise BadInput(name, expected=expected, found=found)
    if max(size) > _MAX_ASPECT * min(size):
        expected = f"sides that differ at most {_MAX_ASPECT:g}-fold"
        raise BadInput(name, expected=expected, found=found, hint="Crop it.")


def _picture_of_array(source: Source, name: str, expected: str) -> Image.Image:
    array = as_array(source, expected=expected)
    channels_first = isinstance(source, torch.Tensor) and array.ndim == 3
    if channels_first and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        shapes = "(H, W), (H, W, 3 | 4) or a tensor (3 | 4, H, W)"
        raise BadInput(name, expected=f"{expected} of shape {shapes}", found=f"{array.shape}")
    return Image.fromarray(to_bytes(array, name, expected))


def to_bytes(array: NDArray[np.generic], name: str, expected: str) -> NDArray[np.uint8]:
    """Pixel values as bytes: integers must lie in 0..255, floats in 0..1.

    Raises:
        BadInput: NaN, or values out of range.
    """
    check_finite(array, name, expected)
    top = 1 if array.dtype.kind in "bf" else 255
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > top:
        values = f"{'floats' if top == 1 else 'integers'} in 0..{top}"
        raise BadInput(name, expected=f"pixels as {values}", found=f"{low:g}..{high:g}")
    scaled = np.round(array.astype(np.float32) * 255) if top == 1 else array
    return np.ascontiguousarray(scaled.astype(np.uint8))


def to_rgb(picture: Image.Image, name: str) -> Image.Image:
    """Convert any picture to 8-bit RGB.

    Transparency is laid on white. 16-bit grey keeps its full range (divided by 257); 32-bit
    integer and float pictures are stretched from their own minimum and maximum, for they have
    no agreed range.

    Raises:
        BadInput: a float picture with NaN.
    """
    if picture.mode.startswith("I;16"):
        wide = np.asarray(picture).astype(np.float32)
        return Image.fromarray(np.round(wide / 257).astype(np.uint8)).convert("RGB")
    if picture.mode in ("I", "F"):
        return Image.fromarray(stretch(np.asarray(picture), name)).convert("RGB")
    if "A" in picture.getbands() or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return picture.convert("RGB")


def stretch(array: NDArray[np.generic], name: str, *, low: int = 0) -> NDArray[np.uint8]:
    """Stretch values linearly from their minimum and maximum to ``low``..255.

    A constant array becomes 255 everywhere.

    Raises:
        BadInput: NaN or infinities.
    """
    check_finite(array, name, "a picture")
    values = array.astype(np.float64)
    least, span = values.min(), float(np.ptp(values))
    unit = (values - least) / span if span > 0 else np.ones_like(values)
    return np.round(low + unit * (255 - low)).astype(np.uint8)


def shrink_and_crop(picture: Image.Image, side: int) -> Image.Image:
    """Short side to ``side`` pixels with bicubic resampling, then the central square.

    Args:
        picture: 8-bit RGB.
        side: S in pixels.
    """
    width, height = picture.size
    short = min(width, height)
    # The long side is cut to whole pixels, not rounded, as CLIP's own preprocessing does.
    size = (side * width // short, side * height // short)
    left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
    resized = picture.resize(size, Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + side, top + side))


def to_signal(picture: Image.Image) -> Tensor:
    """Turn an 8-bit RGB picture into a CLIP-normalised tensor (3, H, W), float32."""
    unit_HWC = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)
    return normalise(unit_HWC.permute(2, 0, 1))


def normalise(unit: Tensor) -> Tensor:
    """Colours (..., 3, H, W) in 0..1 to CLIP's mean 0 and standard deviation 1."""
    return (unit - _colour(CLIP_MEAN)) / _colour(CLIP_STD)


def denormalise(signal: Tensor) -> Tensor:
    """Undo :func:`normalise`."""
    return signal * _colour(CLIP_STD) + _colour(CLIP_MEAN)


def _colour(values: Sequence[float]) -> Tensor:
    return torch.tensor(values).view(3, 1, 1)


def random_crop(signal: Tensor, scale: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Random resized crop of a stack of pictures, the same window for all of them.

    Args:
        signal: (..., 3, S, S).
        scale: range of the window's share of the area; aspect ratio 3/4 to 4/3.
        generator: the only source of randomness.

    Returns:
        A tensor of the same shape, resampled bicubically.
    """
    side = signal.shape[-1]
    u = torch.rand(4, generator=generator).tolist()
    area = (scale[0] + (scale[1] - scale[0]) * u[0]) * side * side
    ratio = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * u[1])
    width = max(1, min(side, round(math.sqrt(area * ratio))))
    height = max(1, min(side, round(math.sqrt(area / ratio))))
    left, top = int(u[2] * (side - width + 1)), int(u[3] * (side - height + 1))
    window = signal[..., top : top + height, left : left + width].reshape(-1, 3, height, width)
    resized = F.interpolate(window, size=(side, side), mode="bicubic", align_corners=False)
    return resized.reshape(signal.shape)


def chance(share: float, generator: torch.Generator) -> bool:
    """True in ``share`` of the calls; always draws one number, whatever the share."""
    return float(torch.rand((), generator=generator)) < share
