"""Surface normals: an RGB picture and its normal map, encoded as two frames."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from onellm.registry import register_modality
from onellm.tokenizers import pictures
from onellm.tokenizers.pairs import PictureMapPair

# Darker than any unit vector's colour: a vector of length 1 has a channel above 0.2.
_NOTHING = 0.05


@register_modality
class Normal(PictureMapPair):
    """A picture and its normal map (2, 3, S, S), published as ``rgbn`` (spec section 1.3).

    Both are files of the same view; a map alone stands in for its picture, too.

    A map is an RGB picture, ``n = rgb / 255 * 2 - 1`` in the camera frame (x right, y up, z
    towards the camera); black means that nothing is there.
    """

    name: ClassVar[str] = "normal"
    suffixes: ClassVar[tuple[str, ...]] = pictures.SUFFIXES
    caption_prompt: ClassVar[str] = "Provide a one-sentence caption for the provided normal map."
    published_name: ClassVar[str] = "rgbn"

    def mirror_map(self, map_3SS: Tensor) -> Tensor:
        """Mirror a normal map: besides the pixels, the x component changes its sign.

        Args:
            map_3SS: (3, S, S), CLIP-normalised.
        """
        unit = pictures.denormalise(map_3SS.flip(-1))
        nothing = (unit < _NOTHING).all(dim=0)
        # n_x -> -n_x is red -> 1 - red, but black pixels hold no vector and stay black.
        red = torch.where(nothing, unit[0], 1 - unit[0])
        return pictures.normalise(torch.cat([red[None], unit[1:]]))
