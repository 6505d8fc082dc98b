"""Numbers for the report's pictures, out of the lines of ``metrics.jsonl``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Point = tuple[float, float]


@dataclass
class Phase:
    """Loss curves of one phase of training.

    Args:
        name: of the phase.
        curves: (step, loss) points by modality.
        total: (step, loss) points of the whole loss.
    """

    name: str
    curves: dict[str, list[Point]] = field(default_factory=dict)
    total: list[Point] = field(default_factory=list)

    @property
    def shown(self) -> dict[str, list[Point]]:
        """Curves by modality, or the whole loss where a phase does not tell them apart."""
        return self.curves or {"loss": self.total}


def phases(metrics: Iterable[Mapping[str, Any]]) -> list[Phase]:
    """Group records by phase, in order of appearance.

    Args:
        metrics: records with ``phase``, ``step``, ``loss`` and ``losses`` by modality; what is
            missing or not finite is left out.
    """
    found: dict[str, Phase] = {}
    for record in metrics:
        name = str(record.get("phase", "training"))
        phase = found.setdefault(name, Phase(name))
        step = float(record.get("step", len(phase.total)))
        _add(phase.total, step, record.get("loss"))
        for modality, loss in (record.get("losses") or {}).items():
            _add(phase.curves.setdefault(modality, []), step, loss)
    return [phase for phase in found.values() if any(phase.shown.values())]


def _add(curve: list[Point], step: float, loss: Any) -> None:
    if isinstance(loss, int | float) and math.isfinite(loss):
        curve.append((step, float(loss)))


def smooth(curve: Sequence[Point], count: int = 48) -> list[Point]:
    """Means of equal stretches of a curve, at most ``count`` of them."""
    size = max(1, math.ceil(len(curve) / count))
    return [
        (sum(s for s, _ in part) / len(part), sum(y for _, y in part) / len(part))
        for part in (curve[i : i + size] for i in range(0, len(curve), size))
    ]


def last_routers(metrics: Iterable[Mapping[str, Any]]) -> dict[str, list[list[float]]]:
    """Each modality's last router table, rows by query, columns by expert."""
    tables: dict[str, list[list[float]]] = {}
    for record in metrics:
        for modality, table in (record.get("router") or {}).items():
            if table and len(table[0]) > 1:  # with one active expert there is nothing to route
                tables[modality] = table
    return tables


def mean_weights(table: Sequence[Sequence[float]]) -> list[float]:
    """Mean weight of each expert over the queries."""
    return [sum(column) / len(table) for column in zip(*table, strict=True)]


def training_facts(found: Sequence[Phase]) -> dict[str, dict[str, Any]]:
    """Steps, and loss at both ends (mean of a tenth of the steps), by phase."""
    facts = {}
    for phase in found:
        curve = phase.total or next(iter(phase.curves.values()))
        tenth = max(1, len(curve) // 10)
        ends = {"first_loss": curve[:tenth], "last_loss": curve[-tenth:]}
        facts[phase.name] = {
            "steps": int(curve[-1][0]),
            **{k: round(sum(y for _, y in part) / len(part), 4) for k, part in ends.items()},
        }
    return facts
