"""VQA-style questions and annotations in two files (Antol et al., ICCV 2015): VQAv2, OKVQA."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onellm.errors import BadInput
from onellm.eval.annotations import Entry, read_json


def read(files: Mapping[str, Path]) -> Iterator[Entry]:
    """Yield questions with their ten answers; with none where the answers are not published.

    Args:
        files: ``questions`` and, unless the split is scored by a server, ``annotations``.

    Raises:
        BadInput: a question without an annotation.
    """
    truth: dict[int, dict[str, Any]] = {}
    if "annotations" in files:
        truth = {a["question_id"]: a for a in read_json(files["annotations"])["annotations"]}
    for record in read_json(files["questions"])["questions"]:
        key = record["question_id"]
        if truth and key not in truth:
            where = files["annotations"]
            raise BadInput(where, expected=f"an annotation of question {key}", found="none")
        found = truth.get(key, {})
        yield Entry(
            id=str(key),
            target=[answer["answer"] for answer in found.get("answers", ())],
            values={"question": record["question"], "image": record["image_id"]},
            meta={
                "answer_type": found.get("answer_type", ""),
                "question_type": found.get("question_type", ""),
                "image": record["image_id"],
            },
        )
