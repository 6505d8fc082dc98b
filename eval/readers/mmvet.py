"""MM-Vet (Yu et al., ICML 2024): open questions for a judge, by capability."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from onellm.eval.annotations import Entry, read_json


def read(files: Mapping[str, Path]) -> Iterator[Entry]:
    """Yield questions; the target keeps the file's ``<AND>`` and ``<OR>``.

    Args:
        files: ``questions``.
    """
    for key, record in read_json(files["questions"]).items():
        yield Entry(
            id=str(key),
            target=record["answer"],
            values={"question": record["question"], "image": record["imagename"]},
            meta={
                "capability": list(record["capability"]),
                "question": record["question"],
                "image": record["imagename"],
            },
        )
