"""Clotho (Drossos et al., ICASSP 2020): five captions per sound in one table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from onellm.eval.annotations import Entry, read_table

_CAPTIONS = tuple(f"caption_{number}" for number in range(1, 6))


def read(files: Mapping[str, Path]) -> Iterator[Entry]:
    """Yield sounds with their captions.

    Args:
        files: ``captions``.
    """
    for row in read_table(files["captions"], ("file_name", *_CAPTIONS)):
        name = row["file_name"]
        yield Entry(
            id=name,
            target=[row[column] for column in _CAPTIONS],
            values={"file_name": name},
            meta={"item": name},
        )
