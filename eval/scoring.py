"""A task's answers scored: its steps taken, its scorer asked, the verdicts written beside them.

Needs neither the model nor torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onellm.errors import BadInput, ConfigError
from onellm.eval.answers import Record, write_answers
from onellm.eval.postprocess import postprocess
from onellm.eval.score_file import check_ids, read_records, scored_records
from onellm.eval.scorers import Score, score
from onellm.eval.task import Task


def score_task(
    task: Task,
    records: Sequence[Record],
    expected: Sequence[str] | None = None,
    grades: str | Path | None = None,
) -> Score:
    """Score a task's answers.

    Args:
        task: which steps and which scorer.
        records: its answers.
        expected: ids of all its questions, where they are known.
        grades: a judge's file of replies, for scorers that read grades.

    Raises:
        BadInput: answers of another task, a missing or a doubled one.
        ConfigError: a task that only a server can score.
    """
    if task.scorer is None:
        raise ConfigError(
            f"task {task.name} ({task.split}) is scored by a server: onellm eval export"
        )
    check_task(task, records)
    check_ids(f"answers to {task.name}", [r["id"] for r in records], expected)
    judged = with_steps(task, records)
    if grades is not None:
        from onellm.eval.judge import with_grades

        judged = with_grades(judged, grades)
    return score(task.scorer.name, judged, **task.scorer.options)


def with_steps(task: Task, records: Sequence[Record]) -> list[Record]:
    """Records whose answers have gone through a task's steps."""
    return [{**record, "answer": postprocess(record["answer"], task.post)} for record in records]


def check_task(task: Task, records: Sequence[Record]) -> None:
    """Refuse answers to another task; those to another variant of it may be scored.

    Raises:
        BadInput: names the other task.
    """
    base = task.name.partition("@")[0]
    others = {str(record.get("task", task.name)) for record in records}
    if strangers := sorted(name for name in others if name.partition("@")[0] != base):
        where = f"answers to {task.name}"
        raise BadInput(where, expected="answers to that task", found=", ".join(strangers))


def score_answers(
    task: Task,
    file: str | Path,
    expected: Sequence[str] | None = None,
    *,
    grades: str | Path | None = None,
    write: bool = True,
) -> tuple[list[Record], Score]:
    """Score a file of answers, and write what was read and given into its records.

    Args:
        task: the task.
        file: a JSONL file of answers.
        expected: ids of all its questions, where they are known.
        grades: a judge's file of replies, for scorers that read grades.
        write: put ``parsed`` and ``score`` into the file.

    Returns:
        the records with ``parsed`` and ``score``, and the score.
    """
    records = read_records(file)
    result = score_task(task, records, expected, grades)
    marked = scored_records(records, result)
    if write:
        write_answers(file, marked)
    return marked, result


def row_of(task: Task, records: Sequence[Record], result: Score | None) -> dict[str, Any]:
    """What a report says of one task, as plain data.

    Args:
        task: the task.
        records: its answers.
        result: their score; None where a server scores.
    """
    empty = sum(not postprocess(r["answer"], task.post).strip() for r in records)
    return {
        "task": task.name,
        "title": task.title,
        "group": task.group,
        "split": task.split,
        "n": len(records),
        "size": task.size,
        "metrics": dict(result.metrics) if result else {},
        "primary": result.primary if result else None,
        "intervals": _plain(result.intervals) if result else {},
        "groups": _plain(result.groups) if result else {},
        "unparsed": result.unparsed / len(records) if result else None,
        "empty": empty / len(records),
        # Whether a single answer is right or wrong, and nothing between.
        "hit_or_miss": result is not None and all(s in (0, 1, None) for s in result.samples),
        "notes": list(result.notes) if result else [],
        "seconds_per_answer": sum(r.get("seconds", 0.0) for r in records) / len(records),
        "published": task.published.model_dump(mode="json"),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
