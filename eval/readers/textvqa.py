"""TextVQA (Singh et al., CVPR 2019): questions with ten answers as plain strings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onellm.eval.annotations import Entry, read_json


def read(files: Mapping[str, Path]) -> Iterator[Entry]:
    """Yield questions.

    Args:
        files: ``questions``; and ``ocr``, the data set's file of recognised words, to put them
            behind the question (as LLaVA does; the paper does not).
    """
    words = _words(files["ocr"]) if "ocr" in files else None
    for record in read_json(files["questions"])["data"]:
        question, image = record["question"], record["image_id"]
        if words is not None:
            question += f"\nReference OCR token: {', '.join(words.get(image, ()))}"
        yield Entry(
            id=str(record["question_id"]),
            target=list(record["answers"]),
            values={"question": question, "image": image},
            meta={"image": image},
        )


def _words(path: Path) -> dict[str, list[str]]:
    rows: list[dict[str, Any]] = read_json(path)["data"]
    return {row["image_id"]: list(row.get("ocr_tokens", ())) for row in rows}
