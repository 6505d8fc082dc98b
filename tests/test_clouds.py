"""Point clouds: grouping, normalisation, meshes and scans.

Shape legend: P points.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from media import seeded
from PIL import Image as PillowImage

from onellm.errors import ConfigError
from onellm.registry import get_modality
from onellm.tokenizers import neighbours
from onellm.tokenizers.point import PointTokenizer


def farthest_by_hand(x_P3: np.ndarray, groups: int) -> list[int]:
    chosen = [0]
    while len(chosen) < groups:
        to_each = ((x_P3[:, None] - x_P3[chosen][None]) ** 2).sum(-1)
        chosen.append(int(to_each.min(axis=1).argmax()))
    return chosen


@pytest.mark.parametrize("grouping", ["xyz", "colour"])
def test_point_tokenizer_by_hand(grouping: Any) -> None:
    torch.manual_seed(0)
    tokenizer = PointTokenizer(8, groups=10, neighbours=4, grouping=grouping)
    clouds = torch.rand(3, 50, 6)
    tokens = tokenizer(clouds)
    for cloud, token in zip(clouds, tokens, strict=True):
        place = cloud[:, :3] if grouping == "xyz" else cloud[:, 3:]
        for centre, got in zip(farthest_by_hand(place.numpy(), 10), token, strict=True):
            near = (place - place[centre]).norm(dim=1).argsort()[:4]
            assert centre in near
            weight = tokenizer.conv.weight[:, :, 0, 0]
            by_hand = (cloud[near] @ weight.T + tokenizer.conv.bias).max(dim=0).values
            torch.testing.assert_close(got, by_hand)


def test_farthest_points_start_at_zero_and_do_not_repeat() -> None:
    x = torch.rand(2, 64, 3, generator=seeded())
    chosen = neighbours.farthest_points(x, 64)
    assert chosen[:, 0].tolist() == [0, 0]
    assert sorted(chosen[1].tolist()) == list(range(64))


def test_colour_grouping_collapses_without_colour() -> None:
    """Spec section 0.6: of a grey cloud the published grouping sees a single token."""
    cloud = torch.cat([torch.rand(1, 256, 3, generator=seeded()), torch.full((1, 256, 3), 0.5)], -1)
    torch.manual_seed(0)
    distinct = {
        grouping: len(PointTokenizer(8, 32, 8, grouping)(cloud)[0].unique(dim=0))
        for grouping in ("xyz", "colour")
    }
    assert distinct["colour"] == 1
    assert distinct["xyz"] > 16


def test_point_normalisation(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    xyz, rgb = rng.normal(3, 7, (64, 3)), rng.integers(0, 256, (64, 3), dtype=np.uint8)
    point = get_modality("point", points=64, groups=8, neighbours=4)
    signal = point.load({"data": xyz, "rgb": rgb})
    assert signal[:, :3].mean(dim=0).abs().max() < 1e-6
    assert abs(float(signal[:, :3].norm(dim=1).max()) - 1) < 1e-6
    np.testing.assert_allclose(signal[:, 3:], rgb / 255, atol=1e-6)
    np.savez(tmp_path / "a.npz", xyz=xyz, rgb=rgb)
    np.save(tmp_path / "a.npy", np.concatenate([xyz, rgb / 255], axis=1))
    np.save(tmp_path / "b.npy", np.concatenate([xyz, rgb], axis=1).T)
    for file in ("a.npz", "a.npy", "b.npy"):
        torch.testing.assert_close(point.load(tmp_path / file), signal)
    assert (point.load(xyz)[:, 3:] == 0.5).all(), "grey without colours"


@pytest.mark.parametrize("count", [10, 64, 1000])
def test_point_count_is_brought_to_the_option(count: int) -> None:
    xyz = np.random.default_rng(1).normal(size=(count, 3))
    signal = get_modality("point", points=64, groups=8, neighbours=4).load(xyz)
    assert signal.shape == (64, 6)
    assert len(signal.unique(dim=0)) == min(count, 64)


def coloured_box(kind: str) -> Any:
    import trimesh

    box = trimesh.creation.box()
    if kind == "face":
        box.visual = trimesh.visual.ColorVisuals(box, face_colors=[[255, 0, 0, 255]] * 12)
    elif kind == "vertex":
        box.visual = trimesh.visual.ColorVisuals(box, vertex_colors=[[255, 0, 0, 255]] * 8)
    elif kind == "texture":
        red = PillowImage.new("RGB", (4, 4), "red")
        material = trimesh.visual.material.PBRMaterial(baseColorTexture=red)
        uv = np.full((8, 2), 0.5)
        box.visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    elif kind == "material":
        material = trimesh.visual.material.PBRMaterial(baseColorFactor=[255, 0, 0, 255])
        box.visual = trimesh.visual.TextureVisuals(uv=np.zeros((8, 2)), material=material)
    return box


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        ("face", ".ply"),
        ("vertex", ".ply"),
        ("vertex", ".glb"),
        ("vertex", ".obj"),
        ("texture", ".glb"),
        ("texture", ".obj"),
        ("material", ".glb"),
        ("none", ".stl"),
        ("none", ".off"),
        ("none", ".obj"),
    ],
)
def test_meshes(kind: str, suffix: str, tmp_path: Path) -> None:
    coloured_box(kind).export(str(tmp_path / f"a{suffix}"))
    point = get_modality("point", points=512, groups=8, neighbours=4)
    signal = point.load(tmp_path / f"a{suffix}")
    assert torch.equal(signal, point.load(tmp_path / f"a{suffix}")), "a fixed seed"
    red = torch.tensor([0.5, 0.5, 0.5] if kind == "none" else [1.0, 0.0, 0.0])
    assert (signal[:, 3:] - red).abs().max() < 0.02
    # A box's surface: its corners are sqrt(3) times as far away as its sides.
    assert 0.5 < float(signal[:, :3].norm(dim=1).min()) < 0.65


def test_scan_with_colours(tmp_path: Path) -> None:
    import trimesh

    xyz = np.random.default_rng(0).normal(size=(32, 3))
    colours = np.tile(np.array([[0, 255, 0, 255]], np.uint8), (32, 1))
    (tmp_path / "a.ply").write_bytes(
        trimesh.PointCloud(xyz, colors=colours).export(file_type="ply")
    )
    signal = get_modality("point", points=32, groups=8, neighbours=4).load(tmp_path / "a.ply")
    assert signal[:, 3:].mean(dim=0).tolist() == [0.0, 1.0, 0.0]


def test_placed_parts_of_a_scene(tmp_path: Path) -> None:
    import trimesh

    scene = trimesh.Scene()
    scene.add_geometry(coloured_box("face"))
    away = trimesh.transformations.translation_matrix([9, 0, 0])
    scene.add_geometry(coloured_box("none"), transform=away)
    scene.export(str(tmp_path / "a.glb"))
    x = get_modality("point", points=400, groups=8, neighbours=4).load(tmp_path / "a.glb")[:, 0]
    assert 120 < int((x > 0.5).sum()) < 280
    assert int((x.abs() < 0.5).sum()) == 0


def test_point_augment_keeps_colours_and_height() -> None:
    modality = get_modality(
        "point", points=64, groups=8, neighbours=4, jitter=0, scale=0, dropout=0
    )
    signal = modality.load(np.random.default_rng(0).random((64, 6)))
    turned = modality.augment(signal, seeded())
    torch.testing.assert_close(turned[:, 3:], signal[:, 3:])
    torch.testing.assert_close(turned[:, 1], signal[:, 1])
    torch.testing.assert_close(turned[:, :3].norm(dim=1), signal[:, :3].norm(dim=1))


def test_more_groups_than_points_is_an_error() -> None:
    with pytest.raises(ConfigError, match="at most points"):
        get_modality("point", points=64, groups=65)
