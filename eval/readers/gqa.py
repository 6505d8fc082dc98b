"""GQA: an object of questions by id (Hudson and Manning, CVPR 2019)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from onellm.eval.annotations import Entry, read_json


def read(files: Mapping[str, Path]) -> Iterator[Entry]:
    """Yield balanced questions in the order of the file.

    Args:
        files: ``questions``.
    """
    for key, record in read_json(files["questions"]).items():
        if not record.get("isBalanced", True):
            continue
        kinds = record.get("types", {})
        yield Entry(
            id=str(key),
            target=record["answer"],
            values={"question": record["question"], "image": record["imageId"]},
            meta={
                "structural": kinds.get("structural", ""),
                "semantic": kinds.get("semantic", ""),
                "image": record["imageId"],
            },
        )
