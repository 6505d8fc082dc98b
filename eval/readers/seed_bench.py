"""SEED-Bench v1 (Li et al., CVPR 2024): four options about pictures and videos."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from onellm.eval.annotations import Entry, read_json

FRAMES_PER_SECOND = {12: 15.0}
"""Dimensions whose stretches are counted in frames (the data set's DATASET.md); all others have
seconds."""
_CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")


def read(files: Mapping[str, Path], kinds: tuple[str, ...] = ("image", "video")) -> Iterator[Entry]:
    """Yield questions with their dimension.

    Args:
        files: ``questions``.
        kinds: ``image``, ``video`` or both.
    """
    data = read_json(files["questions"])
    dimensions = {number: name for name, number in data.get("question_type", {}).items()}
    for record in data["questions"]:
        if record["data_type"] not in kinds:
            continue
        number = record["question_type_id"]
        rate = FRAMES_PER_SECOND.get(number, 1.0)
        segment = record.get("segment")
        begin, end = [place / rate for place in segment] if segment else (None, None)
        yield Entry(
            id=str(record["question_id"]),
            target=record["answer"],
            values={
                **{"question": record["question"], "data": record["data_id"]},
                **{"kind": record["data_type"], "dimension": number},
                **{"begin": begin, "end": end},
            },
            meta={
                "dimension": dimensions.get(number, str(number)),
                "data_type": record["data_type"],
                "data": record["data_id"],
            },
            options=tuple(record[choice] for choice in _CHOICES),
        )
