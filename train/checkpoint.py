"""Training checkpoints: complete or not there, verified when read, the newest kept.

``checkpoints/step-000123/`` holds ``state.safetensors`` (trained parameters in float32, Adam's
moments, buffers of heads) and ``state.json`` (step, stage, configuration, sizes and checksums).
There is no random state in it: the order of samples, augmentation and the rest of the randomness
are pure functions of (seed, step). ``checkpoints/latest`` names the newest and is written last.
The format knows nothing of devices, so a run may go on with another number of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onellm.errors import CheckpointError
from onellm.train.config import TrainConfig
from onellm.train.engine import TrainState

FORMAT_VERSION = 1
TENSORS, FACTS, LATEST = "state.safetensors", "state.json", "latest"

# What may change between a run and its continuation. The length may: a run can be prolonged, and
# its schedule then bends at that point. The rest does not enter the mathematics.
FREE = {"model", "out", "length", "checkpoint", "deepspeed", "router_every"}
FREE_KEYS = {
    *("batch.per_device", "data.keep_megabytes", "data.ahead", "stage.frozen_gigabytes"),
    *("data.faults.policy", "data.faults.share"),  # a run that too many broken files stopped
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk.

    Args:
        folder: where it is.
        step: optimiser steps done.
        stage: name of the stage.
        config: the configuration it was written under, as plain data.
    """

    folder: Path
    step: int
    stage: str
    config: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run.

    Args:
        out: the run's folder; they lie in ``checkpoints`` below it.
        keep: how many of the newest to keep.
    """

    def __init__(self, out: str | Path, keep: int) -> None:
        self.folder, self.keep = Path(out) / "checkpoints", keep

    def save(self, state: TrainState, config: TrainConfig) -> Path:
        """Write a checkpoint, then forget the oldest beyond ``keep``.

        Written under a temporary name, synced and renamed, so that a crash at any moment leaves
        the last good one.

        Args:
            state: what an engine's ``state()`` gave.
            config: the run.

        Raises:
            CheckpointError: the disk is full or the folder cannot be written; the earlier
                checkpoints are untouched.
        """
        final = self.folder / f"step-{state.step:06d}"
        temporary = self.folder / f".step-{state.step:06d}.tmp"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            self._write(temporary, state, config)
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
            _sync(self.folder)
            _replace(self.folder / LATEST, final.name)
        except OSError as error:
            raise CheckpointError(f"{final}: cannot be written ({error})") from error
        self._forget()
        return final

    def _write(self, folder: Path, state: TrainState, config: TrainConfig) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        tensors = folder / TENSORS
        try:
            save_file({k: v.contiguous() for k, v in state.tensors.items()}, str(tensors))
        except SafetensorError as error:
            raise OSError(str(error)) from error
        facts = {
            "format_version": FORMAT_VERSION,
            "step": state.step,
            "stage": config.stage.name,
            "samples": state.step * config.batch.size,
            "config": config.model_dump(mode="json"),
            "files": {TENSORS: {"bytes": tensors.stat().st_size, "sha256": _sha256(tensors)}},
        }
        (folder / FACTS).write_text(json.dumps(facts, indent=1), encoding="utf-8")
        for path in (tensors, folder / FACTS, folder):
            _sync(path)

    def _forget(self) -> None:
        """Keep the newest by recorded step: names sort differently, and once cost a last one."""
        complete = sorted(self._complete(), key=lambda c: c.step)
        leftovers = self.folder.glob(".step-*.tmp")  # of crashes while saving
        for folder in (*(c.folder for c in complete[: -self.keep]), *leftovers):
            shutil.rmtree(folder)

    def _complete(self) -> list[Checkpoint]:
        if not self.folder.is_dir():
            return []
        return [_facts(p)[0] for p in self.folder.glob("step-*") if (p / FACTS).is_file()]

    def newest(self) -> Checkpoint | None:
        """The checkpoint to go on from, or None.

        ``latest`` is a convenience for people; a crash between the rename and ``latest`` leaves a
        complete newer checkpoint, so the recorded steps decide.

        Raises:
            CheckpointError: one of them has an unreadable ``state.json``.
        """
        return max(self._complete(), key=lambda c: c.step, default=None)

    def load(self, checkpoint: Checkpoint) -> TrainState:
        """Read and verify a checkpoint.

        Raises:
            CheckpointError: a file is missing, cut short or altered.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        _, files = _facts(checkpoint.folder)
        for name, want in files.items():
            _verify(checkpoint.folder / name, want)
        path = checkpoint.folder / TENSORS
        try:
            return TrainState(load_file(str(path)), checkpoint.step)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: expected safetensors; {error}") from error


def check_same_run(checkpoint: Checkpoint, config: TrainConfig) -> None:
    """Refuse to go on with a run under settings that would make it another one.

    Raises:
        CheckpointError: names the keys that differ.
    """
    old, new = _flat(checkpoint.config), _flat(config.model_dump(mode="json"))
    changed = sorted(
        key
        for key in old.keys() | new.keys()
        if key.split(".")[0] not in FREE and key not in FREE_KEYS and old.get(key) != new.get(key)
    )
    if changed:
        listed = ", ".join(f"{k} ({old.get(k)} then, {new.get(k)} now)" for k in changed[:5])
        raise CheckpointError(
            f"{checkpoint.folder}: was written under other settings: {listed}. "
            "Restore them, or take another folder for 'out'."
        )


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        path = f"{prefix}{key}"
        flat |= _flat(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return flat


def _facts(folder: Path) -> tuple[Checkpoint, dict[str, Any]]:
    path = folder / FACTS
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        checkpoint = Checkpoint(folder, int(facts["step"]), facts["stage"], facts["config"])
        version, files = facts["format_version"], facts["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: expected a checkpoint's facts; {error}") from error
    if version > FORMAT_VERSION:
        raise CheckpointError(f"{path}: format {version} is newer than this library; upgrade it")
    return checkpoint, files


def _verify(path: Path, want: dict[str, Any]) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a file of {want['bytes']} bytes; found none")
    size = path.stat().st_size
    if size != want["bytes"]:
        raise CheckpointError(f"{path}: expected {want['bytes']} bytes; found {size}")
    if _sha256(path) != want["sha256"]:
        raise CheckpointError(f"{path}: its checksum is not the one recorded; it was altered")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    _sync(temporary)
    temporary.replace(path)
