"""MSVD-QA (Xu et al., MM 2017): one-word answers about short clips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from onellm.errors import BadInput
from onellm.eval.annotations import Entry, read_json


def read(files: Mapping[str, Path]) -> Iterator[Entry]:
    """Yield questions.

    Args:
        files: ``questions`` and ``videos``, whose lines are ``<name of the file> vid<number>``.

    Raises:
        BadInput: a video that the mapping does not have.
    """
    places = _places(files["videos"])
    for record in read_json(files["questions"]):
        video = f"vid{record['video_id']}"
        if video not in places:
            raise BadInput(files["videos"], expected=f"a line of {video}", found="none")
        yield Entry(
            id=str(record["id"]),
            target=record["answer"],
            values={"question": record["question"], "video": places[video]},
            meta={"type": record["question"].split(" ")[0].lower(), "video": video},
        )


def _places(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        found = error.strerror or str(error)
        raise BadInput(path, expected="lines '<name> vid<number>'", found=found) from error
    pairs = (line.rpartition(" ") for line in lines if line.strip())
    return {video: name for name, _, video in pairs}
