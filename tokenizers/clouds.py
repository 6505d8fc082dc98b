"""Point clouds: positions and colours from NumPy files, meshes and scans.

Shape legend: P points, F faces, n sampled points.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onellm.errors import BadInput
from onellm.source import Source, is_file, open_file, source_name, suffix_of
from onellm.tokenizers.arrays import Array, as_array, check_finite, read_array, read_npz
from onellm.tokenizers.decoding import decoding, unwrap

EXPECTED = "a point cloud"
SUFFIXES = (".npy", ".npz", ".ply", ".obj", ".glb", ".gltf", ".off", ".stl")
# The colour of what has none.
GREY = 0.5

_XYZ_KEYS = ("xyz", "points", "positions", "vertices")
_RGB_KEYS = ("rgb", "colors", "colours", "color")
_SEED = 0
_ROUNDING = 1e-3

Floats = NDArray[np.float64]


def read_cloud(source: Source, *, samples: int, max_megabytes: float) -> tuple[Floats, Floats]:
    """Read positions and colours.

    Args:
        source: ``.npy`` (P, 3) or (P, 6), or their transposes; ``.npz`` with ``xyz`` and,
            optionally, ``rgb``; a mesh or scan; an array; or a mapping ``{"data": xyz or
            xyzrgb, "rgb": …}``.
        samples: how many points to draw from the surface of a mesh.
        max_megabytes: refuse larger files (10^6 bytes).

    Returns:
        Positions (P, 3) in the file's unit, and colours (P, 3) in 0..1: integers and floats
        above 1 are divided by 255; 0.5 where there are none.

    Raises:
        BadInput: unreadable, truncated, of another shape, or NaN.
    """
    data, facts = unwrap(source)
    name = source_name(data)
    suffix = suffix_of(data) if is_file(data) else ""
    rgb: Array | None = None
    if suffix == ".npz":
        xyz, rgb = _from_archive(
            read_npz(data, expected=EXPECTED, max_megabytes=max_megabytes), name
        )
    elif suffix in ("", ".npy") or suffix not in SUFFIXES:
        xyz = read_array(data, expected=EXPECTED, max_megabytes=max_megabytes, suffixes=SUFFIXES)
    else:
        xyz, rgb = _from_mesh(data, name, samples, max_megabytes)
    if facts.get("rgb") is not None:
        rgb = as_array(facts["rgb"], expected="colours of a point cloud")
    return _checked(xyz, rgb, name)


def _checked(xyz: Array, rgb: Array | None, name: str) -> tuple[Floats, Floats]:
    """Separate (P, 6) into positions and colours; check shapes and values."""
    xyz = _upright(xyz, name)
    if xyz.shape[1] == 6 and rgb is None:
        xyz, rgb = xyz[:, :3], xyz[:, 3:]
    check_finite(xyz, name, "positions")
    if rgb is None:
        return xyz[:, :3].astype(np.float64), np.full((len(xyz), 3), GREY)
    rgb = rgb if rgb.ndim == 2 and rgb.shape[1] in (3, 4) else rgb.T
    if rgb.ndim != 2 or rgb.shape[0] != len(xyz) or rgb.shape[1] not in (3, 4):
        expected = f"a colour (r, g, b) for each of {len(xyz)} points"
        raise BadInput(name, expected=expected, found=f"shape {rgb.shape}")
    check_finite(rgb, name, "colours")
    least, most = float(rgb.min()), float(rgb.max())
    # Interpolated colours may end a rounding error above 1.
    whole = rgb.dtype.kind in "iu" or most > 1 + _ROUNDING
    if least < 0 or most > (255 if whole else 1 + _ROUNDING):
        expected = "colours in 0..1 or 0..255"
        raise BadInput(name, expected=expected, found=f"{least:g}..{most:g}")
    colours = rgb[:, :3].astype(np.float64)
    return xyz[:, :3].astype(np.float64), np.minimum(colours / 255 if whole else colours, 1.0)


def _upright(array: Array, name: str) -> Array:
    """Bring (P, 3 | 6) or its transpose to points first."""
    if array.ndim == 2 and array.shape[1] in (3, 6):
        return array
    if array.ndim == 2 and array.shape[0] in (3, 6):
        return array.T
    expected = f"{EXPECTED} of shape (P, 3) or (P, 6)"
    raise BadInput(name, expected=expected, found=f"shape {array.shape}")


def _from_archive(arrays: Mapping[str, Array], name: str) -> tuple[Array, Array | None]:
    xyz = next((arrays[key] for key in _XYZ_KEYS if key in arrays), None)
    rgb = next((arrays[key] for key in _RGB_KEYS if key in arrays), None)
    if xyz is None and len(arrays) == 1:
        xyz = next(iter(arrays.values()))
    if xyz is None:
        expected = f"an array named {' or '.join(_XYZ_KEYS)}"
        raise BadInput(name, expected=expected, found=", ".join(arrays))
    return xyz, rgb


def _from_mesh(
    source: Source, name: str, samples: int, max_megabytes: float
) -> tuple[Array, Array | None]:
    """Points of a scan, or points drawn from the surfaces of a mesh or scene by area."""
    import trimesh

    resolver = None
    if isinstance(source, str | Path) and Path(source).is_file():  # materials lie beside a mesh
        resolver = trimesh.resolvers.FilePathResolver(str(source))
    with (
        open_file(
            source, suffixes=SUFFIXES, expected=EXPECTED, max_megabytes=max_megabytes
        ) as file,
        decoding(name, EXPECTED),
    ):
        kind = suffix_of(source).removeprefix(".")
        scene = trimesh.load_scene(file, file_type=kind, resolver=resolver)
        parts = [scene.graph[node] for node in scene.graph.nodes_geometry]
        placed = [(scene.geometry[key], np.asarray(matrix)) for matrix, key in parts]
        for shape, _ in placed:
            check_finite(np.asarray(shape.vertices), name, "positions")
        meshes = [(s, m) for s, m in placed if len(getattr(s, "faces", ()))]
        if meshes:
            return _sample_surfaces(meshes, samples, name)
        scans = [(s, m) for s, m in placed if len(getattr(s, "vertices", ()))]
        if not scans:
            raise BadInput(name, expected=EXPECTED, found="neither faces nor points")
        xyz = np.concatenate([_place(s.vertices, m) for s, m in scans])
        colours = [_scan_colours(s) for s, _ in scans]
        return xyz, np.concatenate(colours)


def _scan_colours(scan: Any) -> Floats:
    colours = np.asarray(getattr(scan, "colors", ()))
    if colours.ndim == 2 and len(colours) == len(scan.vertices):
        return colours[:, :3].astype(np.float64) / 255
    return np.full((len(scan.vertices), 3), GREY)


def _place(xyz: Any, matrix: Floats) -> Floats:
    """Positions (P, 3) moved by a (4, 4) matrix."""
    placed: Floats = np.asarray(xyz, dtype=np.float64) @ matrix[:3, :3].T + matrix[:3, 3]
    return placed


def _sample_surfaces(
    meshes: list[tuple[Any, Floats]], samples: int, name: str
) -> tuple[Floats, Floats]:
    """Draw points evenly by area from all meshes together, with a fixed seed."""
    rng = np.random.default_rng(_SEED)
    corners = [_place(mesh.vertices, matrix)[mesh.faces] for mesh, matrix in meshes]
    areas = [
        np.linalg.norm(np.cross(c[:, 1] - c[:, 0], c[:, 2] - c[:, 0]), axis=1) / 2 for c in corners
    ]
    totals = np.array([area.sum() for area in areas])
    if not totals.sum() > 0:
        raise BadInput(name, expected="a mesh with some area", found="an area of 0")
    xyz, rgb = [], []
    shares = rng.multinomial(samples, totals / totals.sum())
    for (mesh, _), corner, area, count in zip(meshes, corners, areas, shares, strict=True):
        if not count:
            continue
        faces = rng.choice(len(area), size=count, p=area / area.sum())
        # Square roots make the barycentric weights even over the triangle.
        root, side = np.sqrt(rng.random(count)), rng.random(count)
        weights = np.stack([1 - root, root * (1 - side), root * side], axis=1)
        xyz.append(np.einsum("nk,nkc->nc", weights, corner[faces]))
        rgb.append(_surface_colours(mesh, faces, weights))
    order = rng.permutation(samples)  # so that a prefix is a fair subsample, too
    return np.concatenate(xyz)[order], np.concatenate(rgb)[order]


def _surface_colours(mesh: Any, faces: NDArray[np.int64], weights: Floats) -> Floats:
    """Colours (n, 3) of sampled points: texture, else vertex or face colours, else grey."""
    visual, kind = mesh.visual, mesh.visual.kind
    if kind == "texture":
        material = visual.material
        picture = getattr(material, "image", None) or getattr(material, "baseColorTexture", None)
        if picture is not None and visual.uv is not None:
            from trimesh.visual.color import uv_to_color

            uv = np.einsum("nk,nkc->nc", weights, np.asarray(visual.uv)[mesh.faces[faces]])
            return np.asarray(uv_to_color(uv, picture))[:, :3] / 255
        return np.tile(np.asarray(material.main_color)[:3] / 255, (len(faces), 1))
    if kind == "vertex":
        colours = np.asarray(visual.vertex_colors)[:, :3] / 255
        return np.asarray(np.einsum("nk,nkc->nc", weights, colours[mesh.faces[faces]]))
    if kind == "face":
        return np.asarray(visual.face_colors)[faces, :3] / 255
    return np.full((len(faces), 3), GREY)
