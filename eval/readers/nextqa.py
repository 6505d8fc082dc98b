"""NExT-QA, multiple choice (Xiao et al., CVPR 2021): five options about a video."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from string import ascii_uppercase

from onellm.errors import BadInput
from onellm.eval.annotations import Entry, read_json, read_table

_OPTIONS = ("a0", "a1", "a2", "a3", "a4")


def read(files: Mapping[str, Path]) -> Iterator[Entry]:
    """Yield questions; ids are ``<video>_<qid>``, as in the official script.

    Args:
        files: ``questions`` and ``videos``, which says where each video lies.

    Raises:
        BadInput: a video that the mapping does not have.
    """
    places = read_json(files["videos"])
    for row in read_table(files["questions"], ("video", "question", "answer", "qid", *_OPTIONS)):
        if row["video"] not in places:
            raise BadInput(files["videos"], expected=f"video {row['video']}", found="none")
        yield Entry(
            id=f"{row['video']}_{row['qid']}",
            target=ascii_uppercase[int(row["answer"])],
            values={"question": row["question"], "video": places[row["video"]]},
            meta={"type": row.get("type", ""), "video": row["video"]},
            options=tuple(row[name] for name in _OPTIONS),
        )
