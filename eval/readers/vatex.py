"""VATEX (Wang et al., ICCV 2019): ten English captions per video."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from onellm.eval.annotations import Entry, read_json


def read(files: Mapping[str, Path]) -> Iterator[Entry]:
    """Yield videos with their English captions.

    Args:
        files: ``captions``.
    """
    for record in read_json(files["captions"]):
        video = record["videoID"]
        yield Entry(
            id=video,
            target=list(record["enCap"]),
            values={"video": video},
            meta={"item": video},
        )
