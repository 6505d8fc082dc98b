"""The report on benchmarks: ``report.json``, ``report.md`` and one self-contained page."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onellm.eval.answers import Record
from onellm.eval.benchmark_page import build_benchmark_page
from onellm.eval.benchmark_words import (
    best_rival,
    comparison_of,
    headline_words,
    is_whole,
    partial_words,
    reading,
    run_words,
    truth_words,
)
from onellm.eval.postprocess import postprocess
from onellm.eval.report import plain_cell, table, write_texts
from onellm.eval.show_scores import headline, number
from onellm.eval.task import OURS, Task
from onellm.eval.wording import made_with

if TYPE_CHECKING:
    from PIL.Image import Image

SAMPLES = 8
"""Sample answers per task."""

Pictures = Mapping[tuple[str, str], "Sequence[Image]"]


def picked(task: Task, records: Sequence[Record], seed: int) -> list[dict[str, Any]]:
    """Sample answers, drawn at random and not by how good they are.

    Args:
        task: its steps are taken on the answers.
        records: scored answers.
        seed: of the drawing; it depends on nothing else.
    """
    order = sorted(records, key=lambda r: str(r["id"]))
    chosen = random.Random(f"samples/{seed}/{task.name}").sample(order, min(SAMPLES, len(order)))
    return [
        {
            "id": r["id"],
            "prompt": r["prompt"],
            "answer": postprocess(r["answer"], task.post),
            "parsed": r.get("parsed"),
            "target": r["target"],
            "score": r.get("score"),
            "media": r["media"],
        }
        for r in chosen
    ]


def write_benchmarks(
    out: str | Path,
    header: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    pictures: Pictures | None = None,
) -> Path:
    """Write all three files.

    Args:
        out: folder, made if it is not there.
        header: the run's ``run.json``.
        rows: of :func:`onellm.eval.scoring.row_of`, with ``samples``.
        pictures: of the sample answers' media, by (task, id).

    Returns:
        the path of ``report.html``.
    """
    report = {**header, "tasks": list(rows), "asked": header["tasks"]}
    return write_texts(
        out,
        {
            "report.json": json.dumps(report, indent=1, ensure_ascii=False) + "\n",
            "report.md": benchmark_markdown(report),
            "report.html": build_benchmark_page(report, pictures or {}),
        },
    )


def benchmark_markdown(report: Mapping[str, Any]) -> str:
    """The report as Markdown, without pictures.

    Args:
        report: what ``report.json`` holds.
    """
    rows = report["tasks"]
    parts = [f"# {headline_words(rows)}", comparison_of(rows)]
    parts += [plain_cell(said) for said in (run_words(report), partial_words(rows)) if said]
    parts.append(_results(rows))
    parts.append("\n".join(f"* **{term}**: {meaning}." for term, meaning in reading()))
    for row in rows:
        parts += _task(row)
    parts.append(f"## Made with\n\n{plain_cell(made_with(report))}")
    return "\n\n".join(parts) + "\n"


def _results(rows: Iterable[Mapping[str, Any]]) -> str:
    heads = (
        *("benchmark", "split", "n", "metric", "score", "95 %", f"{OURS} (paper)"),
        *("best rival", "unparsed", "empty"),
    )
    return table(heads, [_result(row) for row in rows])


def _result(row: Mapping[str, Any]) -> tuple[str, ...]:
    metric, asked = headline(row), str(row["n"])
    if not is_whole(row) and row["size"]:
        asked += f" of {row['size']}"
    if metric is None:
        return (row["title"], row["split"], asked, "by a server", *["–"] * 6)
    low_high = row["intervals"].get(metric)
    rival = best_rival(row, metric)
    return (
        *(row["title"], row["split"], asked, metric, number(row["metrics"][metric])),
        f"{number(low_high[0])} to {number(low_high[1])}" if low_high else "–",
        number(row["published"]["scores"].get(OURS, {}).get(metric)),
        f"{number(rival[1])} {rival[0]}" if rival else "–",
        *(f"{row['unparsed']:.1%}", f"{row['empty']:.1%}"),
    )


def _task(row: Mapping[str, Any]) -> list[str]:
    parts = [f"## {plain_cell(row['title'])} ({plain_cell(row['task'])})"]
    metrics = [
        (name, number(value), _interval(row, name)) for name, value in row["metrics"].items()
    ]
    if metrics:
        parts.append(table(("metric", "score", "95 %"), metrics))
    for group, members in row["groups"].items():
        cells = [(member, number(value)) for member, value in members.items()]
        parts.append(table((group.replace("_", " "), row["primary"] or "score"), cells))
    parts += [plain_cell(note) for note in row["notes"]]
    if row["published"]["note"]:
        parts.append(plain_cell(row["published"]["note"]))
    samples = [
        (_mark(s["score"]), s["prompt"], s["answer"], truth_words(s["target"]))
        for s in row["samples"]
    ]
    parts.append(table(("score", "prompt", "answer", "truth"), samples))
    return parts


def _interval(row: Mapping[str, Any], name: str) -> str:
    low_high = row["intervals"].get(name)
    return f"{number(low_high[0])} to {number(low_high[1])}" if low_high else "–"


def _mark(score: Any) -> str:
    return "–" if score is None else f"{float(score):.2f}".rstrip("0").rstrip(".")
