"""VizWiz-VQA (Gurari et al., CVPR 2018): photographs and questions of blind people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from onellm.eval.annotations import Entry, read_json


def read(files: Mapping[str, Path]) -> Iterator[Entry]:
    """Yield questions, one per picture; without answers where only a server has them.

    Args:
        files: ``questions``.
    """
    for record in read_json(files["questions"]):
        yield Entry(
            id=str(record["image"]),
            target=[answer["answer"] for answer in record.get("answers", ())],
            values={"question": record["question"], "image": record["image"]},
            meta={
                "answer_type": record.get("answer_type", ""),
                "answerable": record.get("answerable"),
                "image": record["image"],
            },
        )
