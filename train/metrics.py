"""What a run reports: one JSON line per optimiser step, and a callback for progress bars."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from onellm.progress import duration


@dataclass(frozen=True)
class Progress:
    """One sign of life of a run.

    Args:
        stage: name of the stage.
        phase: ``"frozen"`` while outputs of frozen parts are computed (counted in samples), then
            ``"train"`` (counted in optimiser steps); ``"note"`` for something said in words.
        done: how many are done.
        total: of how many.
        metrics: the step's line of ``metrics.jsonl``; empty in other phases.
        text: of a note, one line.
    """

    stage: str
    phase: Literal["frozen", "train", "note"]
    done: int
    total: int
    metrics: dict[str, Any] = field(default_factory=dict)
    text: str = ""


Callback = Callable[[Progress], None]


def note(stage: str, text: str) -> Progress:
    """Something to say of a run in words.

    Args:
        stage: name of the stage.
        text: one line.
    """
    return Progress(stage, "note", 0, 0, text=text)


class Sink(Protocol):
    """Somewhere else that metrics are written to."""

    def write(self, step: int, record: Mapping[str, Any]) -> None:
        """Write one step's metrics."""
        ...

    def close(self) -> None:
        """Write what is still to be written."""
        ...


class MetricsLog:
    """``metrics.jsonl``: a line per step; written by the first process only.

    Args:
        path: the file.
        start: optimiser steps that a resumed run has done. Later lines, left by a run that went
            on after its last checkpoint, are dropped: those steps are done again.
        enabled: False on all processes but the first.
        sinks: told the same.
    """

    def __init__(
        self, path: Path, start: int, *, enabled: bool = True, sinks: Iterable[Sink] = ()
    ) -> None:
        self.path, self.enabled, self.sinks = path, enabled, tuple(sinks)
        if enabled:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = [record for record in read_metrics(path) if record["step"] <= start]
            temporary = path.with_name(f".{path.name}.tmp")
            temporary.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")
            temporary.replace(path)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one line and flush it; numbers that are none become null."""
        if self.enabled:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(_finite(record)) + "\n")
        for sink in self.sinks:
            sink.write(record["step"], record)

    def close(self) -> None:
        """Close the sinks."""
        for sink in self.sinks:
            sink.close()


def _finite(value: Any) -> Any:
    """JSON has no word for infinity."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def flat(record: Mapping[str, Any]) -> dict[str, float]:
    """A step's numbers by name, such as ``losses/audio``; each expert's mean router weight.

    Args:
        record: a line of ``metrics.jsonl``.
    """
    numbers: dict[str, float] = {}
    for key, value in record.items():
        if key == "router":
            for name, table in value.items():
                for expert, column in enumerate(zip(*table, strict=True)):
                    numbers[f"router/{name}/{expert}"] = sum(column) / len(column)
        elif isinstance(value, Mapping):
            numbers |= {f"{key}/{inner}": float(v) for inner, v in value.items()}
        elif isinstance(value, int | float) and key != "step":
            numbers[key] = float(value)
    return numbers


def line(progress: Progress) -> str:
    """A step in one line, for logs of batch systems.

    Example:
        >>> line(Progress("align", "train", 1, 10, {"loss": 2.0, "lr": 1e-3}))
        'align 1/10  loss 2.000  lr 1.0e-03'
    """
    m = progress.metrics
    if progress.phase == "note":
        return f"{progress.stage}: {progress.text}"
    if progress.phase != "train":
        return f"{progress.stage} {progress.phase} {progress.done}/{progress.total}"
    parts = [f"{progress.stage} {progress.done}/{progress.total}"]
    losses = " ".join(f"{name} {value:.3f}" for name, value in m.get("losses", {}).items())
    if m.get("loss") is not None:
        parts.append(f"loss {m['loss']:.3f}" + (f"  ({losses})" if losses else ""))
    parts += rates(m)
    if "seconds_left" in m:
        parts.append(f"{duration(m['seconds_left'])} left")
    return "  ".join(parts)


def rates(metrics: Mapping[str, Any]) -> list[str]:
    """What a step's line tells beside its losses and the time left, in words.

    Args:
        metrics: a line of ``metrics.jsonl``.
    """
    return [form.format(metrics[k]) for k, form in _SHOWN.items() if metrics.get(k) is not None]


_SHOWN = {
    "lr": "lr {:.1e}",
    "grad_norm": "norm {:.3g}",
    "samples_per_second": "samples/s {:.2f}",
    "tokens_per_second": "tokens/s {:.0f}",
    "padding": "padding {:.1%}",
    "mfu": "MFU {:.1%}",
    "hfu": "HFU {:.1%}",
    "data_wait": "data wait {:.1%}",
    "memory_gb": "memory {:.2f} GB",
    "skipped": "skipped {:d}",
}


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
