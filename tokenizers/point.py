"""Point clouds: groups of neighbouring points through one 1 x 1 convolution and a maximum.

Shape legend: B batch, P points, G groups, K neighbours, D width, L tokens (= G).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor, nn

from onellm.errors import BadInput
from onellm.modality import Modality
from onellm.registry import register_modality
from onellm.source import Source, source_name
from onellm.tokenizers import panels
from onellm.tokenizers.clouds import SUFFIXES, read_cloud
from onellm.tokenizers.neighbours import farthest_points, gather_points, nearest_points

Grouping = Literal["xyz", "colour"]
_SEED = 0
# Meshes are drawn from this densely before the model's points are chosen for a picture.
_THUMBNAIL_POINTS = 8192


class PointTokenizer(nn.Module):
    """Farthest points as centres, their neighbours' features, one convolution, a maximum.

    Args:
        width: D.
        groups: G.
        neighbours: K, the centre among them.
        grouping: the columns in which "far" and "near" are measured.
    """

    def __init__(self, width: int, groups: int, neighbours: int, grouping: Grouping) -> None:
        super().__init__()
        self.groups, self.neighbours, self.grouping = groups, neighbours, grouping
        self.conv = nn.Conv2d(6, width, 1)

    def forward(self, signal: Tensor) -> Tensor:
        """Tokenize (B, P, 6) to (B, G, D); P is at least G and K."""
        x_BP6 = signal.float()
        # Half precision would move centres and swap neighbours.
        with torch.autocast(signal.device.type, enabled=False):
            where = slice(0, 3) if self.grouping == "xyz" else slice(3, 6)
            place_BP3 = x_BP6[..., where].contiguous()
            centres_BG = farthest_points(place_BP3, self.groups)
            near_BGK = nearest_points(place_BP3, centres_BG, self.neighbours)
        group_BGK6 = gather_points(x_BP6, near_BGK).to(self.conv.weight.dtype)
        x_BDGK = self.conv(group_BGK6.permute(0, 3, 1, 2))
        tokens_BDG: Tensor = x_BDGK.max(dim=-1).values
        return tokens_BDG.transpose(1, 2)


@register_modality
class Point(Modality):
    """A coloured point cloud (P, 6): x, y, z within the unit ball, then r, g, b in 0..1.

    Reads ``.npy`` (P, 3 | 6), ``.npz`` with ``xyz`` and ``rgb``, and PLY, OBJ, GLB, OFF and STL
    files, meshes being sampled evenly by area with a fixed seed. Colours come from a texture,
    material, vertices or faces; what has none is grey 0.5. Positions are centred on their mean
    and scaled to a greatest radius of 1 (spec section 1.3). A cloud of more points than
    ``points`` is subsampled with a fixed seed, of fewer is repeated.

    Attributes:
        points: P.
        groups: G, number of tokens.
        neighbours: K, points per token.
        grouping: ``"xyz"``; the published weights were trained with ``"colour"``, whose groups
            of a uniformly coloured cloud all fall together (spec section 0.6).
        rotation: in training, turn about the vertical axis by up to this many degrees.
        scale: in training, factors of 1 ± this share.
        jitter: in training, standard deviation of noise on positions, in radii of the cloud.
        dropout: in training, greatest share of points replaced by the first point.
    """

    name: ClassVar[str] = "point"
    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES
    caption_prompt: ClassVar[str] = "Provide a one-sentence caption for the provided point cloud."
    published_name: ClassVar[str] = "point"
    published_keys: ClassVar[Mapping[str, str]] = {
        "conv1.point.conv1.weight": "conv.weight",
        "conv1.point.conv1.bias": "conv.bias",
    }
    published_options: ClassVar[Mapping[str, Any]] = {"grouping": "colour"}

    points: int = Field(default=8192, ge=8, le=262_144)
    groups: int = Field(default=1024, ge=1)
    neighbours: int = Field(default=32, ge=1)
    grouping: Grouping = "xyz"
    rotation: float = Field(default=180.0, ge=0, le=180)
    scale: float = Field(default=0.1, ge=0, lt=1)
    jitter: float = Field(default=0.005, ge=0)
    dropout: float = Field(default=0.2, ge=0, lt=1)

    @model_validator(mode="after")
    def _enough_points(self) -> Point:
        if max(self.groups, self.neighbours) > self.points:
            raise ValueError(f"groups and neighbours must be at most points ({self.points})")
        return self

    def _cloud(self, source: Source, samples: int) -> NDArray[np.float64]:
        """Positions in the unit ball and colours in 0..1, (P, 6), as many as the source has."""
        xyz, rgb = read_cloud(source, samples=samples, max_megabytes=self.max_megabytes)
        xyz = xyz - xyz.mean(axis=0)
        radius = float(np.linalg.norm(xyz, axis=1).max())
        if not 0 < radius < math.inf:
            expected = "points at different places"
            found = f"{len(xyz)} point(s) of radius {radius:g}"
            raise BadInput(source_name(source), expected=expected, found=found)
        return np.concatenate([xyz / radius, rgb], axis=1)

    def read(self, source: Source) -> Tensor:
        """Read a cloud or sample a mesh; centre, scale and bring it to P points.

        Args:
            source: file, array (P, 3 | 6), or ``{"data": xyz, "rgb": …}``.

        Returns:
            (P, 6) float32: positions within the unit ball, colours in 0..1.

        Raises:
            BadInput: no points, all at one place, another shape, or NaN.
        """
        cloud = self._cloud(source, self.points)
        count = len(cloud)
        if count > self.points:
            chosen = np.random.default_rng(_SEED).permutation(count)[: self.points]
            cloud = cloud[np.sort(chosen)]
        elif count < self.points:
            cloud = cloud[np.arange(self.points) % count]
        return torch.from_numpy(cloud.astype(np.float32))

    def example(self) -> Tensor:
        """Zeros of shape (P, 6)."""
        return torch.zeros(self.points, 6)

    def build_tokenizer(self, width: int) -> nn.Module:
        """Grouping and one 1 x 1 convolution with bias: (B, P, 6) → (B, G, D).

        Args:
            width: D.
        """
        return PointTokenizer(width, self.groups, self.neighbours, self.grouping)

    def augment(self, signal: Tensor, generator: torch.Generator) -> Tensor:
        """Turn about the vertical axis (y), scale, jitter and drop points; colours stay.

        Args:
            signal: (P, 6).
            generator: the only source of randomness.
        """
        u = torch.rand(3, generator=generator).tolist()
        angle = math.radians(self.rotation) * (2 * u[0] - 1)
        cos, sin = math.cos(angle), math.sin(angle)
        turn = torch.tensor([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]])
        factor = 1 + self.scale * (2 * u[1] - 1)
        noise = torch.randn(len(signal), 3, generator=generator) * self.jitter
        xyz = signal[:, :3] @ turn.T * factor + noise
        moved = torch.cat([xyz, signal[:, 3:]], dim=1)
        lost = torch.rand(len(signal), generator=generator) < self.dropout * u[2]
        moved[lost] = moved[0].clone()
        return moved

    def thumbnail(self, source: Source) -> Image.Image:
        """The cloud seen from the front right and above, in its colours."""
        cloud = self._cloud(source, _THUMBNAIL_POINTS)[: 4 * _THUMBNAIL_POINTS]
        return panels.scatter(cloud[:, :3], cloud[:, 3:])
