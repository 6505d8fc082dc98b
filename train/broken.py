"""Broken samples of a run on many devices: counted over all of them, and listed by file."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch

from onellm.data.faults import Faults
from onellm.train.engine import Engine

FOLDER = "faults"


def gather_faults(engine: Engine, faults: Faults, names: Iterable[str]) -> dict[str, int]:
    """Count broken samples over all devices, and stop where they are too many.

    Args:
        engine: sums over devices.
        faults: this device's counts.
        names: under which most are counted, the same on every device. Others are asked for when
            there are any: without media all samples are texts, but broken ones that were found
            when the data were opened have the modalities that they would have had.

    Returns:
        broken samples by modality, where there are any.

    Raises:
        BadInput: more than the policy's share; on every device at the same step.
    """
    if faults.config.policy == "raise":
        return {}
    known = sorted({*names, *faults.names})
    counts = [faults.by_modality[name] for name in known]
    own = [faults.reads, faults.set_aside, faults.total - sum(counts), *counts]
    summed = engine.sum(torch.tensor(own, dtype=torch.float64)).int().tolist()
    reads, set_aside, others, *counts = summed
    found = Counter(dict(zip(known, counts, strict=True)))
    if others:  # on every device, or on none
        for told in engine.share(dict(faults.by_modality)):
            fresh = {name: count for name, count in told.items() if name not in known}
            faults.names |= set(fresh)
            found.update(fresh)
    broken = {name: count for name, count in sorted(found.items()) if count}
    faults.judge(reads, broken, set_aside)
    return broken


def list_faults(faults: Faults, folder: Path, rank: int, step: int) -> None:
    """Append the broken samples of a step to ``faults/<rank>.jsonl`` of the run's folder.

    Args:
        faults: this device's counts.
        folder: of the run.
        rank: of this device.
        step: optimiser steps done.
    """
    fresh = faults.take()
    if not fresh:
        return
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    with (folder / FOLDER / f"{rank}.jsonl").open("a", encoding="utf-8") as file:
        for fault in fresh:
            line = {"step": step, "modality": fault.modality, "file": fault.file}
            file.write(json.dumps(line | {"message": fault.message}, ensure_ascii=False) + "\n")


def forget_later(folder: Path, start: int) -> None:
    """Take out of a run's lists what came after the step from which it goes on.

    Args:
        folder: of the run; one process does it for all.
        start: optimiser steps done.
    """
    for path in sorted((folder / FOLDER).glob("*.jsonl")):
        kept = [line for line in _complete(path) if _step(line) <= start]
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        temporary.replace(path)


def _step(line: str) -> float:
    """The step of a line; infinity where a crash of the machine has left something else."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _complete(path: Path) -> list[str]:
    """Lines of a list; what a crash cut off is left out."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return text[: text.rfind("\n") + 1].split("\n")[:-1]
