"""VALOR-32K (Chen et al., 2023): one caption per clip of what is seen and heard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from onellm.eval.annotations import Entry, read_json


def read(files: Mapping[str, Path]) -> Iterator[Entry]:
    """Yield clips with their caption.

    Args:
        files: ``captions``.
    """
    for record in read_json(files["captions"]):
        video = record["video_id"]
        yield Entry(
            id=video, target=[record["desc"]], values={"video": video}, meta={"item": video}
        )
