"""Two modalities of a handful of samples on disk, and runs over them that take a second."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tiny import tiny_model

from onellm.config import parse
from onellm.data.datasets import Collection, DatasetConfig, open_dataset
from onellm.data.streams import Shelf
from onellm.modality import Modality
from onellm.model import OneLLM
from onellm.train.config import TrainConfig
from onellm.train.launch import run_training
from onellm.train.metrics import read_metrics

LABELS = ("chair", "table", "plant", "lamp")
TRAINABLE = ["projector.*", "tags.*.{modality}", "tokenizers.{modality}.*", "positions.{modality}"]


def opened(
    path: Any, modalities: dict[str, Modality], shelf: Shelf | None = None, **options: Any
) -> Collection:
    """A data set, its media read by these modalities."""
    config = parse(DatasetConfig, {"path": path, "name": "d", **options}, where="test")
    return open_dataset(config, modalities, shelf or Shelf("unused"))


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """A tar of named members."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (28, 28, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def recording(seed: int) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.random.default_rng(seed).standard_normal((40, 6)).astype(np.float32))
    return buffer.getvalue()


def description(key: str, label: str) -> bytes:
    answers = [("What is this?", label), ("Is it a chair?", "yes" if label == "chair" else "no")]
    qa = [{"question": q, "answer": a} for q, a in answers]
    facts = {"id": key, "text": f"a {label}", "label": label, "rate_hz": 200, "qa": qa}
    return json.dumps(facts).encode()


def write_shards(folder: Path, counts: Mapping[str, int] | None = None) -> Path:
    """``image-train.tar`` and ``imu-train.tar`` of a few samples each."""
    folder.mkdir(parents=True, exist_ok=True)
    makers = {"image": ("png", picture), "imu": ("npy", recording)}
    for name, count in (counts or {"image": 8, "imu": 6}).items():
        suffix, make = makers[name]
        members = []
        for i in range(count):
            key = f"{name}{i:02d}"
            members += [
                (f"{key}.{suffix}", make(i)),
                (f"{key}.json", description(key, LABELS[i % 4])),
            ]
        write_tar(folder / f"{name}-train.tar", members)
    return folder


def tiny_config(shards: Path, out: Path, **sections: Any) -> TrainConfig:
    """A run of six steps; mappings are laid over its sections."""
    base: dict[str, Any] = {
        "model": "unused",
        "out": str(out),
        "data": {"folder": str(shards), "targets": {"closed": 1}, "augment": True},
        "stage": {"name": "test", "modalities": ["image", "imu"], "trainable": TRAINABLE},
        "optim": {"lr": 2e-3, "warmup_steps": 2, "weight_decay": 0.1},
        "batch": {"size": 8, "per_device": 4},
        "length": {"steps": 6},
        "checkpoint": {"every": 2, "keep": 2},
        "router_every": 3,
    }
    for key, value in sections.items():
        merge = isinstance(value, dict) and isinstance(base.get(key), dict)
        base[key] = base[key] | value if merge else value
    return parse(TrainConfig, base, where="test")


def tiny_run(shards: Path, out: Path, **sections: Any) -> tuple[OneLLM, list[dict[str, Any]]]:
    """Run it in this process: the trained model and its metrics."""
    model = tiny_model("image", "imu")
    run_training(tiny_config(shards, out, **sections), model=model)
    return model, read_metrics(out / "metrics.jsonl")
