"""Two runs on the same questions: paired tests with intervals, and where they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onellm.errors import BadInput
from onellm.eval.metrics.intervals import Paired, paired_test
from onellm.eval.score_file import check_ids, read_records
from onellm.eval.scorers.accuracy import media_of

Run = str | Path | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Difference:
    """A question on which two runs score differently.

    Args:
        id: of the question.
        first: the first run's score, 0 to 1 (for captions, the metric's own scale).
        second: the second's.
        answers: what each said.
    """

    id: str
    first: float
    second: float
    answers: tuple[str, str]


@dataclass(frozen=True)
class Comparison:
    """Two runs on one task.

    Args:
        task: its name.
        first: the first run's mean score, times 100.
        second: the second's.
        test: first minus second, question by question, on the scale of the scores (not times
            100); errors are clustered where questions share media.
        differences: the questions with different scores, largest difference first.
    """

    task: str
    first: float
    second: float
    test: Paired
    differences: list[Difference]


def compare(a: Run, b: Run) -> list[Comparison]:
    """Compare two runs, task by task.

    Args:
        a: a file of scored answers, or its records: each with ``id`` and ``score``, and ``task``
            where there are several.
        b: the other run.

    Returns:
        a comparison for each task, in the first run's order.

    Raises:
        BadInput: other tasks or questions on the two sides, another truth for the same question,
            or answers without a score.
    """
    first, second = _by_task(a, "the first run"), _by_task(b, "the second run")
    if first.keys() != second.keys():
        found = ", ".join(sorted(first.keys() ^ second.keys())) or "none"
        raise BadInput(
            "compare", expected="the same tasks in both runs", found=f"only in one: {found}"
        )
    return [_task(task, first[task], second[task]) for task in first]


def _by_task(run: Run, name: str) -> dict[str, dict[str, Mapping[str, Any]]]:
    source = str(run) if isinstance(run, str | Path) else name
    records = read_records(run) if isinstance(run, str | Path) else run
    tasks: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        if "score" not in record:
            hint = "Score the file first."
            where = f"{source}, record {record.get('id')}"
            raise BadInput(where, expected="a score", found="none", hint=hint)
        tasks.setdefault(str(record.get("task", "")), []).append(record)
    if not tasks:
        raise BadInput(source, expected="answers", found="none")
    for part in tasks.values():
        check_ids(source, [str(record["id"]) for record in part], None)
    return {task: {str(r["id"]): r for r in part} for task, part in tasks.items()}


def _task(
    task: str, first: Mapping[str, Mapping[str, Any]], second: Mapping[str, Mapping[str, Any]]
) -> Comparison:
    check_ids(f"the second run of {task or 'the task'}", list(second), list(first))
    gaps, scores, clusters = [], [], []
    for key, record in first.items():
        other = second[key]
        if record.get("target") != other.get("target"):
            found = f"{record.get('target')!r} and {other.get('target')!r}"
            raise BadInput(f"question {key} of {task}", expected="one truth in both", found=found)
        pair = record["score"], other["score"]
        if pair == (None, None):
            continue  # the metric leaves the question out
        if None in pair:
            raise BadInput(f"question {key} of {task}", expected="two scores", found=repr(pair))
        scores.append(pair)
        clusters.append(media_of(record))
        if pair[0] != pair[1]:
            said = str(record.get("answer", "")), str(other.get("answer", ""))
            gaps.append(Difference(key, float(pair[0]), float(pair[1]), said))
    if not scores:
        hint = "Its metric is of the whole corpus; compare the intervals instead."
        raise BadInput(f"task {task}", expected="scores of single answers", found="none", hint=hint)
    ours, theirs = ([float(pair[side]) for pair in scores] for side in (0, 1))
    gaps.sort(key=lambda gap: (-abs(gap.first - gap.second), gap.id))
    return Comparison(
        task,
        first=100 * sum(ours) / len(ours),
        second=100 * sum(theirs) / len(theirs),
        test=paired_test(ours, theirs, clusters),
        differences=gaps,
    )


def as_table(comparisons: Sequence[Comparison]) -> str:
    """The comparisons as a Markdown table, in percent."""
    lines = [
        "| task | n | first | second | difference (95 %) | p | better | worse |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for c in comparisons:
        low, high = (100 * bound for bound in c.test.interval)
        interval = f"{100 * c.test.difference:+.2f} ({low:+.2f} to {high:+.2f})"
        cells = (c.task, c.test.n, f"{c.first:.2f}", f"{c.second:.2f}", interval)
        rest = (f"{c.test.p:.3g}", c.test.better, c.test.worse)
        lines.append(f"| {' | '.join(map(str, (*cells, *rest)))} |")
    return "\n".join(lines)
