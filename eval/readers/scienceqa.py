"""ScienceQA (Lu et al., NeurIPS 2022): problems by id, with and without a picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from string import ascii_uppercase

from onellm.eval.annotations import Entry, read_json


def read(files: Mapping[str, Path], split: str = "test", hint: bool = True) -> Iterator[Entry]:
    """Yield the problems of a split.

    Args:
        files: ``problems`` and ``splits``.
        split: a key of the file of splits.
        hint: put a problem's hint in front of its question.
    """
    problems = read_json(files["problems"])
    for key in read_json(files["splits"])[split]:
        record = problems[key]
        question = record["question"]
        if hint and record.get("hint"):
            question = f"{record['hint']}\n{question}"
        yield Entry(
            id=str(key),
            target=ascii_uppercase[record["answer"]],
            values={
                **{"question": question, "problem": key, "split": record.get("split", split)},
                **{"image": record.get("image") or "", "pictured": bool(record.get("image"))},
            },
            meta={
                "has_image": bool(record.get("image")),
                "subject": record.get("subject", ""),
                "grade": record.get("grade", ""),
                "topic": record.get("topic", ""),
            },
            options=tuple(record["choices"]),
        )
