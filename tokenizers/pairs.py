"""Modalities that pair a colour picture with an aligned map of the same view (depth, normals).

The published model was trained on stacks of two frames, the RGB picture and the map, whose
features it averages (spec sections 0.5 and 1.3). A map alone stands in for its RGB picture, too
(spec section 9: "single-image fallback by duplicating the map").

Shape legend: S side of the model's input in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from onellm.errors import BadInput
from onellm.modality import Modality, is_there
from onellm.source import Blob, Source, source_name
from onellm.tokenizers import panels, pictures
from onellm.tokenizers.decoding import unwrap


class PictureMapPair(Modality):
    """Base of the paired modalities: signal (2, 3, S, S) = (RGB, map), CLIP-normalised.

    Sources: a pair ``(rgb, map)``, a mapping ``{"rgb": …, "map": …}``, the string
    ``"rgb.jpg+map.png"``, or the map alone.

    Attributes:
        size: S, side of the model's input in pixels; published 224.
        max_megapixels: refuse larger pictures (10^6 pixels) before decoding them.
        crop_scale: share of the area that the random crop of training keeps.
        flip: probability of a mirror image in training; published: never.
    """

    forms: ClassVar[tuple[str, ...]] = ("PICTURE+MAP", "MAP")
    frame_axis: ClassVar[bool] = True
    positions: ClassVar = "shared"

    size: int = Field(default=224, ge=8, le=4096)
    max_megapixels: float = Field(default=80.0, gt=0)
    crop_scale: tuple[float, float] = (0.9, 1.0)
    flip: float = Field(default=0.0, ge=0, le=1)

    # -- to implement ---------------------------------------------------------------------

    def open_map(self, source: Source) -> Image.Image:
        """Open the map as an 8-bit RGB picture."""
        return self.open_rgb(source)

    def mirror_map(self, map_3SS: Tensor) -> Tensor:
        """Mirror a CLIP-normalised map (3, S, S) left to right."""
        return map_3SS.flip(-1)

    # -- shared ---------------------------------------------------------------------------

    def open_rgb(self, source: Source) -> Image.Image:
        """Open a colour picture of the pair as 8-bit RGB.

        Raises:
            BadInput: no picture, truncated, a single pixel, or too large.
        """
        picture = pictures.open_picture(
            source,
            expected=f"a picture of a {self.name} pair",
            max_megabytes=self.max_megabytes,
            max_megapixels=self.max_megapixels,
        )
        return pictures.to_rgb(picture, source_name(source))

    def split(self, source: Source) -> tuple[Source | None, Source]:
        """Take a source apart.

        Args:
            source: any of the forms the class names.

        Returns:
            The RGB source, None where there is none, and the map source.

        Raises:
            BadInput: a pair of another length, or a mapping without a map.
        """
        if isinstance(source, Mapping):
            if "map" in source:
                return source.get("rgb"), source["map"]
            return self.split(unwrap(source)[0])
        if isinstance(source, tuple | list):
            if len(source) != 2:
                found = f"{len(source)} part(s)"
                raise BadInput(source_name(source), expected="a pair (rgb, map)", found=found)
            return source[0], source[1]
        if isinstance(source, str) and not _is_there(source):
            return _split_names(source)
        return None, source

    def read(self, source: Source) -> Tensor:
        """Read a pair; the map is resized to the RGB picture, both are cropped alike.

        Args:
            source: any of the forms the class names.

        Returns:
            (2, 3, S, S) float32, CLIP-normalised: RGB, then the map.

        Raises:
            BadInput: either file is no picture, truncated, or too large.
        """
        rgb_source, map_source = self.split(source)
        plane = self.open_map(map_source)
        rgb = plane if rgb_source is None else self.open_rgb(rgb_source)
        if plane.size != rgb.size:
            plane = plane.resize(rgb.size, Image.Resampling.BICUBIC)
        frames = [pictures.shrink_and_crop(picture, self.size) for picture in (rgb, plane)]
        return torch.stack([pictures.to_signal(frame) for frame in frames])

    def example(self) -> Tensor:
        """Zeros of shape (2, 3, S, S)."""
        return torch.zeros(2, 3, self.size, self.size)

    def augment(self, signal: Tensor, generator: torch.Generator) -> Tensor:
        """Random resized crop and, if ``flip`` allows it, a mirror image, the same for both.

        Args:
            signal: (2, 3, S, S).
            generator: the only source of randomness.
        """
        signal = pictures.random_crop(signal, self.crop_scale, generator)
        if not pictures.chance(self.flip, generator):
            return signal
        return torch.stack([signal[0].flip(-1), self.mirror_map(signal[1])])

    def claims(self, record: Mapping[str, Any]) -> tuple[str, ...]:
        """The map's field, and that of its RGB picture where there is one.

        Args:
            record: field → value, such as ``{"image": "a.jpg", "depth_image": "a.png"}``.
        """
        known = (f"{self.name}_image", self.name, f"{self.name}_path")
        plane = next((field for field in known if is_there(record, field)), None)
        if plane is None:
            return ()
        return (plane, "image") if is_there(record, "image") else (plane,)

    def from_record(
        self,
        record: Mapping[str, Any],
        fields: tuple[str, ...],
        locate: Callable[[Any], Source],
    ) -> Source:
        """The pair (rgb, map), or the map alone.

        Args:
            record: field → value.
            fields: the map's field, then the RGB picture's if there is one.
            locate: turns a value into a source.
        """
        plane = locate(record[fields[0]])
        return (locate(record[fields[1]]), plane) if len(fields) > 1 else plane

    def thumbnail(self, source: Source) -> Image.Image:
        """RGB and map side by side, or the map alone, at most 160 pixels wide."""
        rgb_source, map_source = self.split(source)
        plane = self.open_map(map_source)
        parts = [plane] if rgb_source is None else [self.open_rgb(rgb_source), plane]
        return panels.strip(parts)

    def from_shard(self, files: Mapping[str, bytes], meta: Mapping[str, Any], key: str) -> Source:
        """Pick ``rgb.<suffix>`` and the map among the members of one shard sample.

        Args:
            files: suffix without its first dot → bytes.
            meta: the sample's parsed ``.json``; not used.
            key: the sample's key.

        Returns:
            A pair of Blobs, or the map's Blob where the sample holds no RGB picture.

        Raises:
            BadInput: no map, or more than one.
        """
        plane = super().from_shard(files, meta, key)
        for ext, data in files.items():
            if ext.startswith("rgb.") and f".{ext[4:]}" in pictures.SUFFIXES:
                return Blob(f"{key}.{ext}", data), plane
        return plane


def _is_there(name: str) -> bool:
    try:
        return Path(name).is_file()
    except OSError:  # a name that no file system allows
        return False


def _split_names(names: str) -> tuple[str | None, str]:
    """Split ``rgb.jpg+map.png`` where both files exist; a plus sign may be part of a name."""
    places = [i for i, character in enumerate(names) if character == "+"]
    for place in places:
        rgb, plane = names[:place], names[place + 1 :]
        if _is_there(rgb) and _is_there(plane):
            return rgb, plane
    if len(places) == 1:  # a pair, one half of which is missing: let its reader say which
        rgb, _, plane = names.partition("+")
        return rgb, plane
    return None, names
