"""Depth: an RGB picture and its depth map, encoded as two frames."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onellm.errors import BadInput
from onellm.registry import register_modality
from onellm.source import Source, is_file, source_name, suffix_of
from onellm.tokenizers import pictures
from onellm.tokenizers.arrays import check_finite, read_array
from onellm.tokenizers.pairs import PictureMapPair

_EXPECTED = "a depth map"


@register_modality
class Depth(PictureMapPair):
    """A picture and its depth map (2, 3, S, S), published as ``rgbd`` (spec section 1.3).

    Both are files of the same view; a map alone stands in for its picture, too.

    Maps: 8-bit pictures are taken as they are. 16-bit pictures, ``.npy`` files and arrays that
    are not bytes hold distances in any unit: zero means that nothing was measured and stays
    black, the rest is stretched from the map's own least distance (1) to its greatest (255).
    NaN and infinity are errors.
    """

    name: ClassVar[str] = "depth"
    suffixes: ClassVar[tuple[str, ...]] = (*pictures.SUFFIXES, ".npy")
    caption_prompt: ClassVar[str] = "Provide a one-sentence caption for the provided depth map."
    published_name: ClassVar[str] = "rgbd"

    def open_map(self, source: Source) -> Image.Image:
        """Open a depth map as an 8-bit RGB picture of equal channels.

        Args:
            source: picture file, ``.npy`` file, Pillow picture, or array (H, W) of distances.

        Raises:
            BadInput: no depth map, truncated, NaN, negative, or nothing but zeros.
        """
        name = source_name(source)
        if isinstance(source, Image.Image) or (is_file(source) and suffix_of(source) != ".npy"):
            picture = pictures.open_picture(
                source,
                expected=_EXPECTED,
                max_megabytes=self.max_megabytes,
                max_megapixels=self.max_megapixels,
            )
            if picture.mode not in ("I", "F") and not picture.mode.startswith("I;16"):
                return pictures.to_rgb(picture, name)
            return _grey(np.asarray(picture), name)
        array = read_array(
            source,
            expected=_EXPECTED,
            max_megabytes=self.max_megabytes,
            suffixes=self.suffixes,
        )
        distances = array.squeeze()
        if distances.ndim != 2:
            found = f"shape {array.shape}"
            raise BadInput(name, expected=f"{_EXPECTED} of shape (H, W)", found=found)
        height, width = distances.shape
        pictures.check_size((width, height), name, self.max_megapixels)
        if distances.dtype == np.uint8:
            return Image.fromarray(np.ascontiguousarray(distances)).convert("RGB")
        return _grey(distances, name)


def _grey(distances: NDArray[np.generic], name: str) -> Image.Image:
    """Stretch distances to 1..255, leaving zeros black."""
    check_finite(distances, name, _EXPECTED)
    measured = distances != 0
    if not measured.any():
        raise BadInput(name, expected=f"{_EXPECTED} with distances", found="nothing but zeros")
    if float(distances.min()) < 0:
        found = f"{float(distances.min()):g}"
        raise BadInput(name, expected=f"{_EXPECTED} of distances, 0 or more", found=found)
    grey = np.zeros(distances.shape, dtype=np.uint8)
    grey[measured] = pictures.stretch(distances[measured], name, low=1)
    return Image.fromarray(grey).convert("RGB")
