"""Score a file of answers: complete, without double ids, and without torch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onellm.errors import BadInput
from onellm.eval.scorers import Score, score

_NAMED = 5  # ids that an error lists


def score_file(
    path: str | Path,
    scorer_name: str,
    options: Mapping[str, Any] | None = None,
    expected_ids: Sequence[str] | None = None,
    *,
    task: str | None = None,
    post: Callable[[str], str] | None = None,
    grades: str | Path | None = None,
) -> Score:
    """Score one task's answers.

    Args:
        path: a JSONL file, one record per line; see :mod:`onellm.eval.scorers`.
        scorer_name: one of :func:`onellm.eval.scorers.names`.
        options: the scorer's own.
        expected_ids: ids of all questions. One that is missing is an error, as is one that the
            questions do not have.
        task: only records of this task, where the file has several.
        post: done to each answer's text first.
        grades: a judge's file of replies, for scorers that read grades.

    Raises:
        BadInput: no such file, a line that is no record, or missing, foreign or double ids.
        ConfigError: unknown scorer or option.
    """
    records = read_records(path, task)
    check_ids(path, [str(record["id"]) for record in records], expected_ids)
    if grades is not None:
        from onellm.eval.judge import with_grades

        records = with_grades(records, grades)
    if post is not None:
        records = [{**record, "answer": post(record["answer"])} for record in records]
    return score(scorer_name, records, **(options or {}))


def read_records(path: str | Path, task: str | None = None) -> list[dict[str, Any]]:
    """Read a file of answers.

    Args:
        path: a JSONL file.
        task: only records of this task.

    Raises:
        BadInput: no such file, or a line that is no object with ``id`` and ``answer``; also a last
            line that a crash cut off, because its question would be missing.
    """
    file = Path(path)
    if not file.is_file():
        raise BadInput(file, expected="a JSONL file of answers", found="no such file")
    records = []
    # split, not splitlines: an answer may hold any of Unicode's line separators.
    for number, line in enumerate(file.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise BadInput(f"{file}, line {number}", expected="JSON", found=str(error)) from error
        if not isinstance(record, dict) or "id" not in record or "answer" not in record:
            where, found = f"{file}, line {number}", line[:60].decode(errors="replace")
            raise BadInput(where, expected="an object with id and answer", found=found)
        if task is None or record.get("task") == task:
            records.append(record)
    return records


def scored_records(records: Sequence[Mapping[str, Any]], result: Score) -> list[dict[str, Any]]:
    """Records with what the scorer made of each: ``parsed`` and ``score``."""
    return [
        {**record, "parsed": parsed, "score": sample}
        for record, parsed, sample in zip(records, result.parsed, result.samples, strict=True)
    ]


def check_ids(source: str | Path, ids: Sequence[str], expected: Sequence[str] | None) -> None:
    """Whether each question has one answer.

    Args:
        source: what has the answers, for the message.
        ids: of the answers.
        expected: of the questions; None where they are not known.

    Raises:
        BadInput: it names some of the ids.
    """
    if double := [key for key, times in Counter(ids).items() if times > 1]:
        raise BadInput(
            source, expected="one answer per question", found=f"several of {_some(double)}"
        )
    if expected is None:
        return
    there, wanted = set(ids), set(expected)
    if missing := [key for key in expected if key not in there]:
        raise BadInput(
            source,
            expected=f"answers to all {len(expected)} questions",
            found=f"none to {_some(missing)}",
            hint="Run the rest of the task; it goes on where it stopped.",
        )
    if foreign := [key for key in ids if key not in wanted]:
        raise BadInput(source, expected="answers to the task's questions", found=_some(foreign))


def _some(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return ", ".join(ids[:_NAMED]) + more
