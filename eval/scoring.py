"""A task's answers scored: its steps taken, its scorer asked, the verdicts written beside them.

Needs neither the model nor torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onellm.errors import BadInput, ConfigError
from onellm.eval.answers import Record, read_answers, write_answers
from onellm.eval.postprocess import postprocess
from onellm.eval.task import Task

if TYPE_CHECKING:
    from onellm.eval.scorers import Score


def score_task(
    task: Task, records: Sequence[Record], expected: Collection[str] | None = None
) -> Score:
    """Score a task's answers.

    Args:
        task: which steps and which scorer.
        records: its answers.
        expected: ids of all its questions, where they are known.

    Raises:
        BadInput: answers of another task, a missing or a doubled one.
        ConfigError: a task that only a server can score.
    """
    from onellm.eval.scorers import score

    if task.scorer is None:
        raise ConfigError(
            f"task {task.name} ({task.split}) is scored by a server: onellm eval export"
        )
    check_ids(task, records, expected)
    judged = [{**r, "answer": postprocess(r["answer"], task.post)} for r in records]
    return score(task.scorer.name, judged, **task.scorer.options)


def check_ids(
    task: Task, records: Sequence[Record], expected: Collection[str] | None = None
) -> None:
    """Refuse answers of another task, and sets of answers that are not whole.

    Args:
        task: the task.
        records: its answers.
        expected: ids of all its questions, where they are known.

    Raises:
        BadInput: names the ids.
    """
    where = f"answers to {task.name}"
    if not records:
        raise BadInput(where, expected="answers", found="none")
    base = task.name.partition("@")[0]
    if strangers := {r["task"] for r in records if r["task"].partition("@")[0] != base}:
        raise BadInput(where, expected="answers to that task", found=", ".join(sorted(strangers)))
    ids = [r["id"] for r in records]
    if len(set(ids)) < len(ids):
        twice = sorted({key for key in ids if ids.count(key) > 1})[:3]
        raise BadInput(where, expected="one answer per question", found=f"two of {twice}")
    if expected is None:
        return
    missing = [key for key in expected if key not in set(ids)]
    if missing or len(ids) > len(expected):
        found = f"{len(ids)}"
        found += f", without {missing[:3]}" if missing else ""
        raise BadInput(where, expected=f"{len(expected)} answers", found=found)


def score_answers(
    task: Task, file: str | Path, expected: Collection[str] | None = None, *, write: bool = True
) -> tuple[list[Record], Score]:
    """Score a file of answers, and write what was read and given into its records.

    Args:
        task: the task.
        file: a JSONL file of answers.
        expected: ids of all its questions, where they are known.
        write: put ``parsed`` and ``score`` into the file.

    Returns:
        the records with ``parsed`` and ``score``, and the score.
    """
    records = read_answers(file)
    score = score_task(task, records, expected)
    marked = [
        {**record, "parsed": score.parsed[number], "score": score.samples[number]}
        for number, record in enumerate(records)
    ]
    if write:
        write_answers(file, marked)
    return marked, score


def row_of(task: Task, records: Sequence[Record], score: Score | None) -> dict[str, Any]:
    """What a report says of one task, as plain data.

    Args:
        task: the task.
        records: its answers.
        score: of them; None where a server scores.
    """
    empty = sum(not postprocess(r["answer"], task.post).strip() for r in records)
    return {
        "task": task.name,
        "title": task.title,
        "group": task.group,
        "split": task.split,
        "n": len(records),
        "size": task.size,
        "metrics": dict(score.metrics) if score else {},
        "primary": score.primary if score else None,
        "intervals": _plain(score.intervals) if score else {},
        "groups": _plain(score.groups) if score else {},
        "unparsed": score.unparsed / len(records) if score else None,
        "empty": empty / len(records),
        # Whether a single answer is right or wrong, and nothing between.
        "hit_or_miss": bool(score) and all(s in (0, 1, None) for s in score.samples),
        "notes": list(score.notes) if score else [],
        "seconds_per_answer": sum(r.get("seconds", 0.0) for r in records) / len(records),
        "published": task.published.model_dump(mode="json"),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
