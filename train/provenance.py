"""What a run was made from: configuration, code, packages, data."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from onellm.data.packaged import starter_folder
from onellm.data.streams import find_shards, is_address
from onellm.eval.machine import environment
from onellm.train.config import DataConfig, TrainConfig
from onellm.weight_files import write_text

CONFIG, PROVENANCE = "train.json", "provenance.json"
SAMPLE = 1 << 20
"""Bytes read at the beginning, in the middle and at the end of a file for its fingerprint."""


def write_provenance(out: Path, config: TrainConfig) -> None:
    """Write ``train.json`` (the resolved configuration) and ``provenance.json``.

    The second has an entry for every start of the run: time, git revision, package versions,
    machine, and a fingerprint of every file of data.

    Args:
        out: folder of the run.
        config: the run.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / CONFIG, json.dumps(config.model_dump(mode="json"), indent=1))
    starts = _earlier(out / PROVENANCE)
    starts.append(
        {
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **environment(),
            "data": fingerprints(data_files(config.data)),
        }
    )
    write_text(out / PROVENANCE, json.dumps({"starts": starts}, indent=1))


def _earlier(file: Path) -> list[dict[str, Any]]:
    try:
        starts: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["starts"]
    except (OSError, ValueError, KeyError):
        return []
    return starts


def data_files(config: DataConfig) -> list[Path]:
    """The files on this machine's disks that a run draws its samples from.

    Fetched shards and data sets of the hub are in ``train.json`` by their address alone.
    """
    found: list[Path] = []
    for dataset in config.datasets:
        if dataset.kind == "hub":
            continue
        paths = find_shards(dataset.paths) if dataset.kind == "tar" else dataset.paths
        found += [Path(path) for path in paths if not is_address(path) and Path(path).is_file()]
    if config.datasets:
        return found
    folder = starter_folder() if config.folder == "starter" else Path(config.folder)
    return sorted(folder.glob(f"*-{config.split}.tar"))


def fingerprints(files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Size and fingerprint of files, by path.

    The fingerprint is a SHA-256 over the size and three samples: terabytes are told apart in
    seconds, though not from one that was changed in between with care.
    """
    return {str(path): {"bytes": path.stat().st_size, "sample": _sample(path)} for path in files}


def _sample(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for start in (0, max(0, size // 2 - SAMPLE // 2), max(0, size - SAMPLE)):
            file.seek(start)
            digest.update(file.read(SAMPLE))
    return digest.hexdigest()
