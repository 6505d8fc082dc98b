"""Scores in words and tables of plain text, for terminals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from onellm.eval.task import OURS


def number(value: float | None) -> str:
    """A score with as many digits as papers print; a dash for none."""
    return "–" if value is None else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def paper_score(row: Mapping[str, Any], model: str = OURS) -> float | None:
    """What a table prints for a model under the metric that stands for the row.

    Args:
        row: of :func:`onellm.eval.scoring.row_of`.
        model: a name of the task's published scores.
    """
    scores: Mapping[str, float] = row["published"]["scores"].get(model, {})
    metric = headline(row)
    return scores.get(metric) if metric else None


def headline(row: Mapping[str, Any]) -> str | None:
    """The metric that stands for a task: the paper's first that we measured, else the primary."""
    for metric in row["published"]["metric"]:
        if metric in row["metrics"]:
            return str(metric)
    return row["primary"]


def lines_of(row: Mapping[str, Any]) -> Iterator[str]:
    """Everything about one task.

    Args:
        row: of :func:`onellm.eval.scoring.row_of`.
    """
    yield f"{row['title']} ({row['task']}), {row['split']}: {row['n']} answers"
    width = max((len(name) for name in row["metrics"]), default=0)
    for name, value in row["metrics"].items():
        low_high = row["intervals"].get(name)
        interval = f"  95 % {number(low_high[0])} to {number(low_high[1])}" if low_high else ""
        printed = row["published"]["scores"].get(OURS, {}).get(name)
        paper = f"  ({OURS} in the paper: {number(printed)})" if printed is not None else ""
        yield f"  {name:<{width}}  {number(value):>7}{interval}{paper}"
    if row["unparsed"] is not None:
        yield f"  unparsed {row['unparsed']:.1%}, empty {row['empty']:.1%}"
    yield from (f"  {note}" for note in row["notes"])


def table_of(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line per task, columns aligned.

    Args:
        rows: of :func:`onellm.eval.scoring.row_of`.
    """
    heads = ("task", "n", "metric", "score", "95 %", "paper", "unparsed")
    cells = [heads, *(_cells(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    for row in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    metric = headline(row)
    if metric is None:
        return (row["task"], str(row["n"]), "by a server", "–", "–", "–", "–")
    low_high = row["intervals"].get(metric)
    return (
        *(row["task"], str(row["n"]), metric, number(row["metrics"][metric])),
        f"{number(low_high[0])} to {number(low_high[1])}" if low_high else "–",
        number(paper_score(row)),
        f"{row['unparsed']:.1%}",
    )
