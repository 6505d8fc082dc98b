"""What a run reports: one JSON line per optimiser step, and a callback for progress bars."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Progress:
    """One sign of life of a run.

    Args:
        stage: name of the stage.
        phase: ``"frozen"`` while outputs of frozen parts are computed (counted in samples), then
            ``"train"`` (counted in optimiser steps).
        done: how many are done.
        total: of how many.
        metrics: the step's line of ``metrics.jsonl``; empty in the first phase.
    """

    stage: str
    phase: Literal["frozen", "train"]
    done: int
    total: int
    metrics: dict[str, Any] = field(default_factory=dict)


Callback = Callable[[Progress], None]


class MetricsLog:
    """``metrics.jsonl``: a line per step; written by the first process only.

    Args:
        path: the file.
        start: optimiser steps that a resumed run has done. Later lines, left by a run that went
            on after its last checkpoint, are dropped: those steps are done again.
        enabled: False on all processes but the first.
    """

    def __init__(self, path: Path, start: int, *, enabled: bool = True) -> None:
        self.path, self.enabled = path, enabled
        if enabled:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = [record for record in read_metrics(path) if record["step"] <= start]
            temporary = path.with_name(f".{path.name}.tmp")
            temporary.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")
            temporary.replace(path)

    def write(self, record: dict[str, Any]) -> None:
        """Append one line and flush it."""
        if self.enabled:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of a ``metrics.jsonl``; a last line cut off by a crash is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records
