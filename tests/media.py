"""Small media for tests: the starter pack's first samples, a colour ramp, seeded randomness."""

from __future__ import annotations

import itertools
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import onellm.data
from onellm.registry import get_modality
from onellm.source import Source

STARTER = Path(next(iter(onellm.data.__path__))) / "starter"
SMALL: dict[str, dict[str, Any]] = {
    "audio": {"frames": 100},
    "depth": {"size": 112},
    "fmri": {"voxels": 800},
    "image": {"size": 112},
    "imu": {"steps": 100, "rate_hz": 10},
    "normal": {"size": 112},
    "point": {"points": 1024, "groups": 64, "neighbours": 16},
    "video": {"size": 96, "sampling": "uniform", "frames": 4},
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shard(name: str, count: int = 4) -> Iterator[Source]:
    """Sources of the first samples of the starter pack's test split."""
    samples: dict[str, dict[str, bytes]] = {}
    with tarfile.open(STARTER / f"{name}-test.tar") as tar:
        for member in itertools.islice(tar, 4 * count):
            key, ext = member.name.split(".", 1)
            file = tar.extractfile(member)
            assert file is not None
            samples.setdefault(key, {})[ext] = file.read()
    for key, files in itertools.islice(samples.items(), count):
        yield get_modality(name).from_shard(files, json.loads(files.pop("json")), key)


def ramp(width: int, height: int) -> Image.Image:
    """A picture whose red grows to the right and whose green grows downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))
