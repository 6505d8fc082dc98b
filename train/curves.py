"""What of a run is drawn: panels of curves, out of the lines of ``metrics.jsonl``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onellm.errors import BadInput
from onellm.train.metrics import read_metrics

Point = tuple[float, float]
Records = list[dict[str, Any]]
Value = Callable[[dict[str, Any]], Any]
SHOWN = 240
"""Points of a curve at most; more are averaged over equal stretches of steps."""


@dataclass(frozen=True)
class Curve:
    """One line of a panel.

    Args:
        name: for the legend.
        points: (step, value), steps rising.
        colour: number of its colour.
        run: number of its run; the first is drawn solid, the others each in their own way.
    """

    name: str
    points: Sequence[Point]
    colour: int
    run: int = 0


@dataclass(frozen=True)
class Panel:
    """Curves over the same steps.

    Args:
        title: what is drawn, with its unit.
        curves: at least one.
        kind: ``"loss"``, ``"rate"`` or ``"router"``; panels of a kind stand together.
        share: whether values are drawn from 0 on.
    """

    title: str
    curves: Sequence[Curve]
    kind: str
    share: bool = False


def read_runs(folders: Iterable[str | Path]) -> dict[str, Records]:
    """The metrics of runs, by a name that tells them apart.

    Args:
        folders: of runs, or of folders of runs, or ``metrics.jsonl`` files.

    Raises:
        BadInput: a folder without metrics; it names the folder.
    """
    paths = [run for folder in folders for run in runs_in(Path(folder))]
    names = [path.parent.name if path.is_file() else path.resolve().name for path in paths]
    runs: dict[str, Records] = {}
    for path, name in zip(paths, names, strict=True):
        file = path if path.is_file() else path / "metrics.jsonl"
        records = read_metrics(file)
        if not records:
            found = "an empty file" if file.is_file() else "none"
            hint = "" if path.exists() else f"There is no {path}."
            raise BadInput(file, expected="metrics of a training run", found=found, hint=hint)
        runs[name if names.count(name) == 1 else str(path)] = records
    return runs


def runs_in(path: Path) -> list[Path]:
    """The path itself if it is of a run; else the runs right below it, if there are any.

    Args:
        path: of a run, a ``metrics.jsonl`` file, or a folder of runs.
    """
    if path.is_file() or (path / "metrics.jsonl").is_file() or not path.is_dir():
        return [path]
    return sorted(file.parent for file in path.glob("*/metrics.jsonl")) or [path]


def panels(runs: Mapping[str, Records]) -> list[Panel]:
    """Everything that is drawn of one run, or of several over each other.

    Args:
        runs: records by run.
    """
    made = [_by_run("loss", "loss", runs, _value("loss"))]
    made += _by_modality(runs)
    made.append(_by_run("learning rate", "rate", runs, _value("lr")))
    made += [
        _by_run(title, "rate", runs, _value(key), share=share)
        for key, title, share in (
            ("samples_per_second", "samples / s", False),
            ("tokens_per_second", "tokens / s", False),
            ("mfu", "MFU, share of the device's peak", True),
            ("padding", "padding, share of positions", True),
            ("data_wait", "waiting for data, share of time", True),
            ("grad_norm", "gradient norm", False),
        )
    ]
    made += _routers(runs)
    return [panel for panel in made if panel is not None]


def _value(key: str) -> Value:
    return lambda record: record.get(key)


def _loss_of(modality: str) -> Value:
    return lambda record: record.get("losses", {}).get(modality)


def _by_run(
    title: str,
    kind: str,
    runs: Mapping[str, Records],
    value: Value,
    *,
    share: bool = False,
) -> Panel | None:
    """One curve for each run that has the value."""
    found = [
        Curve(name, points, number, number)
        for number, (name, records) in enumerate(runs.items())
        if (points := _points(records, value))
    ]
    return Panel(title, found, kind, share) if found else None


def _by_modality(runs: Mapping[str, Records]) -> list[Panel | None]:
    """Of one run a panel with a curve for each modality; of several a panel for each."""
    names = list(dict.fromkeys(n for rs in runs.values() for r in rs for n in r.get("losses", ())))
    if len(runs) > 1:
        return [_by_run(f"loss: {n}", "loss", runs, _loss_of(n)) for n in names]
    (records,) = runs.values()
    curves = [
        Curve(n, points, number)
        for number, n in enumerate(names)
        if (points := _points(records, _loss_of(n)))
    ]
    return [Panel("loss by modality", curves, "loss")] if len(curves) > 1 else []


def _routers(runs: Mapping[str, Records]) -> list[Panel | None]:
    """A panel for each modality: the mean weight of each expert over its queries."""
    found: dict[str, list[Curve]] = {}
    for number, (run, records) in enumerate(runs.items()):
        tables = [(r["step"], r["router"]) for r in records if r.get("router")]
        for name in dict.fromkeys(n for _, by_name in tables for n in by_name):
            own = [(step, by_name[name]) for step, by_name in tables if name in by_name]
            for expert in range(len(own[0][1][0])):
                points = [
                    (step, sum(row[expert] for row in table) / len(table)) for step, table in own
                ]
                label = f"expert {expert + 1}" + (f", {run}" if len(runs) > 1 else "")
                found.setdefault(name, []).append(Curve(label, points, expert, number))
    return [
        Panel(f"router: {name}, mean weight", curves, "router")
        for name, curves in found.items()
        if len({c.colour for c in curves}) > 1  # one expert alone has always weight one
    ]


def _points(records: Records, value: Value) -> list[Point]:
    points = [
        (float(r["step"]), float(v))
        for r in records
        if isinstance(v := value(r), int | float) and math.isfinite(v)
    ]
    size = max(1, math.ceil(len(points) / SHOWN))
    return [_mean(points[i : i + size]) for i in range(0, len(points), size)]


def _mean(points: Sequence[Point]) -> Point:
    xs, ys = zip(*points, strict=True)
    return sum(xs) / len(xs), sum(ys) / len(ys)
