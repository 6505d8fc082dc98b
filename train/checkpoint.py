"""Training checkpoints: complete or not there, verified when read, the newest kept.

``checkpoints/step-000123/`` holds a ``state-00000.safetensors`` of every process with its share
(trained parameters in float32, Adam's moments, buffers of heads; ``name@start`` is a slice that
begins at that number of the flattened tensor) and ``state.json`` (step, stage, configuration,
loss scale, counts of faults, shapes, sizes and checksums). There is no random state in it: the
order of samples, augmentation and the rest of the randomness are pure functions of (seed, step).
``checkpoints/latest`` names the newest and is written last. The format knows nothing of devices,
so a run may go on with another number of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from onellm.config import parse
from onellm.errors import CheckpointError, ConfigError, plain_reason
from onellm.train.config import TrainConfig
from onellm.train.state import Shape, TrainState

T = TypeVar("T")

FORMAT_VERSION = 2  # 1 had one file of whole tensors, which is read like any other
FACTS, LATEST = "state.json", "latest"

# What may change between a run and its continuation. The length may: a run can be prolonged, and
# its schedule then bends at that point. The rest does not enter the mathematics.
FREE = {"model", "out", "length", "checkpoint", "deepspeed", "router_every", "compute", "log"}
FREE_KEYS = {
    *("batch.per_device", "data.keep_megabytes", "data.ahead", "stage.frozen_gigabytes"),
    *("data.workers", "data.shelf", "data.shelf_gigabytes"),
    *("data.faults.policy", "data.faults.share"),  # a run that too many broken files stopped
    "optim.max_skipped",
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


def _alone(value: T) -> list[T]:
    return [value]


class Checkpoints:
    """The checkpoints of one run.

    Args:
        out: the run's folder; they lie in ``checkpoints`` below it.
        keep: how many of the newest to keep.
        keep_every: those whose step is a multiple of it are kept, too; 0 for none.
    """

    def __init__(self, out: str | Path, keep: int, keep_every: int = 0) -> None:
        self.folder, self.keep, self.keep_every = Path(out) / "checkpoints", keep, keep_every

    def save(
        self,
        state: TrainState,
        config: TrainConfig,
        rank: int = 0,
        share: Callable[[Any], list[Any]] = _alone,
    ) -> Path:
        """Write a checkpoint, then forget those that are not to be kept.

        Every process writes its share into a folder of a temporary name; the first syncs and
        renames it, so that a crash at any moment leaves the last good one. All processes must
        call it, and all raise if one of them cannot write.

        Args:
            state: what this process's engine's ``state()`` gave.
            config: the run.
            rank: of this process.
            share: gives all processes' values by rank.

        Raises:
            CheckpointError: the disk is full or the folder cannot be written; the earlier
                checkpoints are untouched.
        """
        final = self.folder / f"step-{state.step:06d}"
        temporary = self.folder / f".step-{state.step:06d}.tmp"
        first = rank == 0

        def attempt(work: Callable[[], T]) -> list[T | None]:
            """Do this process's work, and hear of everybody's."""
            done, fault = None, ""
            try:
                done = work()
            except OSError as error:
                fault = plain_reason(error)
            told = share((done, fault))
            faults = [f"process {r}: {text}" for r, (_, text) in enumerate(told) if text]
            if faults:
                raise CheckpointError(f"{final}: cannot be written ({'; '.join(faults)})")
            return [value for value, _ in told]

        if all(attempt((final / FACTS).is_file)):
            return final  # this step of this run is safe; replacing it could only lose it
        attempt(lambda: _make_empty(temporary) if first else None)
        written = attempt(lambda: _write_tensors(temporary, state, rank))
        files = {name: facts for part in written if part for name, facts in part.items()}
        shapes = {n: list(s) for part in share(state.shapes) for n, s in part.items()}
        facts = {
            "format_version": FORMAT_VERSION,
            "step": state.step,
            "stage": config.stage.name,
            "samples": state.step * config.batch.size,
            "processes": len(written),
            "facts": state.facts,
            "config": config.model_dump(mode="json"),
            "shapes": shapes,
            "files": files,
        }
        attempt(lambda: self._finish(temporary, final, facts) if first else None)
        return final

    def _finish(self, temporary: Path, final: Path, facts: Mapping[str, Any]) -> None:
        (temporary / FACTS).write_text(json.dumps(facts, indent=1), encoding="utf-8")
        _sync(temporary / FACTS)
        _sync(temporary)
        _throw_away(final)  # what a crash left half forgotten
        temporary.rename(final)
        _sync(self.folder)
        _replace(self.folder / LATEST, final.name)
        self._forget()

    def _forget(self) -> None:
        """Keep the newest by recorded step: names sort differently, and once cost a last one."""
        complete = sorted(self._complete(), key=lambda c: c.step)
        for old in complete[: -self.keep]:
            if not (self.keep_every and old.step % self.keep_every == 0):
                _throw_away(old.folder)
        for leftover in (*self.folder.glob(".step-*"), *self.folder.glob("step-*")):
            if leftover.name.startswith(".") or not (leftover / FACTS).is_file():
                shutil.rmtree(leftover)  # of a crash

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

    def at(self, step: int) -> Checkpoint:
        """The checkpoint of a step.

        Raises:
            CheckpointError: there is none; it lists those that are there.
        """
        found = {c.step: c for c in self._complete()}
        if step not in found:
            there = ", ".join(map(str, sorted(found))) or "none"
            raise CheckpointError(f"{self.folder}: no checkpoint of step {step}; there: {there}")
        return found[step]

    def load(self, checkpoint: Checkpoint) -> SavedState:
        """Verify a checkpoint and open it.

        Raises:
            CheckpointError: a file is missing, cut short or altered.
        """
        _, facts = _facts(checkpoint.folder)
        others = sorted(c.step for c in self._complete() if c.step < checkpoint.step)
        hint = f" Remove the folder to go on from step {others[-1]}." if others else ""
        for name, want in facts["files"].items():
            _verify(checkpoint.folder / name, want, hint)
        return SavedState(checkpoint, facts)


class SavedState:
    """A training state on disk, read tensor by tensor; see :class:`onellm.train.state.Saved`.

    Args:
        checkpoint: where it is; verified.
        facts: what its ``state.json`` says.
    """

    def __init__(self, checkpoint: Checkpoint, facts: Mapping[str, Any]) -> None:
        from safetensors import SafetensorError, safe_open

        self.step, self.facts = checkpoint.step, facts.get("facts", {})
        self._pieces: dict[str, list[tuple[int, Any, str]]] = {}
        self.shapes: dict[str, Shape] = {}
        for name in facts["files"]:
            path = checkpoint.folder / name
            try:
                file = safe_open(str(path), framework="pt")
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{path}: expected safetensors; {error}") from error
            for key in file.keys():  # noqa: SIM118 - no mapping
                tensor, _, start = key.partition("@")
                self._pieces.setdefault(tensor, []).append((int(start or 0), file, key))
                self.shapes[tensor] = tuple(file.get_slice(key).get_shape())
        self.shapes |= {n: tuple(s) for n, s in facts.get("shapes", {}).items()}

    def read(self, name: str, start: int = 0, count: int | None = None) -> Tensor:
        """Numbers of a tensor, put together from the slices that hold them."""
        stop = torch.Size(self.shapes[name]).numel() if count is None else start + count
        parts, at = [], start
        for first, file, key in sorted(self._pieces[name], key=lambda piece: piece[0]):
            flat = file.get_tensor(key).flatten()
            if first <= at < min(first + len(flat), stop):
                parts.append(flat[at - first : stop - first])
                at += len(parts[-1])
        if at < stop:
            raise CheckpointError(f"{name}: numbers {at} to {stop} are in no file")
        return torch.cat(parts) if parts else torch.empty(0)

    def whole(self, name: str) -> Tensor:
        """A whole tensor in its shape."""
        return self.read(name).view(self.shapes[name])


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _write_tensors(folder: Path, state: TrainState, rank: int) -> dict[str, dict[str, Any]]:
    """Write one process's share; its file's size and checksum by name."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if not state.tensors:  # another process has it all
        return {}
    path = folder / f"state-{rank:05d}.safetensors"
    keys = {n: f"{n}@{state.slices[n][0]}" if n in state.slices else n for n in state.tensors}
    try:
        save_file({keys[n]: t.contiguous() for n, t in state.tensors.items()}, str(path))
    except SafetensorError as error:
        raise OSError(str(error)) from error
    _sync(path)
    return {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}}


def _throw_away(folder: Path) -> None:
    """Remove a checkpoint such that a crash leaves it whole or out of sight."""
    if folder.exists():
        hidden = folder.with_name(f".{folder.name}.old")
        folder.rename(hidden)
        shutil.rmtree(hidden)


def check_same_run(checkpoint: Checkpoint, config: TrainConfig) -> None:
    """Refuse to go on with a run under settings that would make it another one.

    Raises:
        CheckpointError: names the keys that differ.
    """
    old, new = _flat(_filled(checkpoint)), _flat(config.model_dump(mode="json"))
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


def _filled(checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint's configuration, with the defaults of keys that it is older than."""
    try:
        known = parse(TrainConfig, checkpoint.config, where=str(checkpoint.folder))
    except ConfigError:  # it is of other keys; they will be named
        return checkpoint.config
    return known.model_dump(mode="json")


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
        version, _ = facts["format_version"], facts["files"]
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({plain_reason(error)})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: expected a checkpoint's facts; {error}") from error
    if version > FORMAT_VERSION:
        raise CheckpointError(f"{path}: format {version} is newer than this library; upgrade it")
    return checkpoint, facts


def _verify(path: Path, want: Mapping[str, Any], hint: str) -> None:
    if not path.is_file():
        raise CheckpointError(
            f"{path}: expected a file of {want['bytes']} bytes; found none.{hint}"
        )
    size = path.stat().st_size
    if size != want["bytes"]:
        raise CheckpointError(f"{path}: expected {want['bytes']} bytes; found {size}.{hint}")
    if _sha256(path) != want["sha256"]:
        raise CheckpointError(
            f"{path}: its checksum is not the one recorded; it was altered.{hint}"
        )


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
