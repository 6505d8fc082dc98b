"""Clotho-AQA (Lipping et al., EUSIPCO 2022): three annotators' answers in rows of a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from onellm.eval.annotations import Entry, read_table


def read(files: Mapping[str, Path]) -> Iterator[Entry]:
    """Yield a question for every sound and wording, with the answers of all its rows.

    Args:
        files: ``questions``.
    """
    answers: dict[tuple[str, str], list[str]] = {}
    for row in read_table(files["questions"], ("file_name", "QuestionText", "answer")):
        answers.setdefault((row["file_name"], row["QuestionText"]), []).append(row["answer"])
    for (name, question), said in answers.items():
        polar = all(answer.strip().lower() in ("yes", "no") for answer in said)
        yield Entry(
            id=f"{name}/{question}",
            target=said,
            values={"question": question, "file_name": name},
            meta={"kind": "binary" if polar else "single word", "audio": name},
        )
