"""Small pictures of signals for reports: at most 160 x 160 pixels, made of NumPy and Pillow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIDE = 160
_TRACES = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#a463f2")


def fit(picture: Image.Image, side: int = SIDE) -> Image.Image:
    """Shrink an RGB picture to at most ``side`` x ``side`` pixels, its proportions kept."""
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.BICUBIC)
    return small


def strip(pictures: Sequence[Image.Image]) -> Image.Image:
    """Lay RGB pictures side by side, at most 160 pixels wide altogether."""
    small = [fit(picture, SIDE // len(pictures)) for picture in pictures]
    height = max(picture.height for picture in small)
    panel = Image.new("RGB", (sum(picture.width for picture in small), height), "white")
    left = 0
    for picture in small:
        panel.paste(picture, (left, (height - picture.height) // 2))
        left += picture.width
    return panel


def heat(values: NDArray[np.floating]) -> Image.Image:
    """Colour a matrix (rows, columns) from its least (dark) to its greatest value (bright)."""
    from matplotlib import colormaps

    low, span = float(values.min()), float(np.ptp(values))
    unit = (values - low) / span if span > 0 else np.zeros_like(values)
    rgb = np.round(np.asarray(colormaps["viridis"](unit))[..., :3] * 255).astype(np.uint8)
    return Image.fromarray(rgb).resize((SIDE, SIDE), Image.Resampling.BILINEAR)


def traces(values: NDArray[np.floating]) -> Image.Image:
    """Draw channels (C, T) one below another, each scaled by its own range."""
    panel = Image.new("RGB", (SIDE, SIDE), "white")
    draw = ImageDraw.Draw(panel)
    lane = SIDE / len(values)
    x = np.linspace(0, SIDE - 1, values.shape[1])
    for i, channel in enumerate(values):
        span = float(np.ptp(channel)) or 1.0
        y = (i + 0.9) * lane - (channel - channel.min()) / span * 0.8 * lane
        draw.line(list(zip(x.tolist(), y.tolist(), strict=True)), fill=_TRACES[i % len(_TRACES)])
    return panel


def scatter(xyz: NDArray[np.floating], rgb: NDArray[np.floating]) -> Image.Image:
    """Render a point cloud from the front right and above, nearer points in front.

    Args:
        xyz: (P, 3) within the unit ball, y up.
        rgb: (P, 3) in 0..1.
    """
    turn, tilt = np.radians(30.0), np.radians(20.0)
    about_y = np.array(
        [[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]]
    )
    about_x = np.array(
        [[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]]
    )
    view = xyz @ (about_x @ about_y).T
    view = view[(order := np.argsort(view[:, 2], kind="stable"))]
    # Far points are painted darker, then near ones over them: a painter's depth buffer.
    shade = 0.6 + 0.4 * (view[:, 2:] + 1) / 2
    colour = np.round(np.clip(rgb[order] * shade, 0, 1) * 255).astype(np.uint8)
    column = np.round((view[:, 0] + 1) / 2 * (SIDE - 3)).astype(int)
    row = np.round((1 - view[:, 1]) / 2 * (SIDE - 3)).astype(int)
    canvas = np.full((SIDE, SIDE, 3), 255, dtype=np.uint8)
    for dy in range(2):
        for dx in range(2):
            canvas[row + dy, column + dx] = colour
    return Image.fromarray(canvas)
