"""AVSD, DSTC7 (Alamri et al., CVPR 2019): the last answer of a dialogue about a video."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onellm.errors import BadInput
from onellm.eval.annotations import Entry, read_json


def read(
    files: Mapping[str, Path], history: bool = False, summary: bool = False
) -> Iterator[Entry]:
    """Yield the last question of each dialogue.

    Args:
        files: ``dialogs``, and ``references`` in COCO's caption form, whose image ids are the
            dialogues' places in the first file.
        history: put the earlier turns in front of the question.
        summary: put the video's caption and summary in front of everything.

    Raises:
        BadInput: a dialogue without references.
    """
    references: dict[Any, list[str]] = defaultdict(list)
    for record in read_json(files["references"])["annotations"]:
        references[int(record["image_id"])].append(record["caption"])
    ids = _ids(read_json(files["references"]))
    for number, dialog in enumerate(read_json(files["dialogs"])["dialogs"]):
        key = ids.get(dialog["image_id"], number + 1)
        if key not in references:
            expected = f"references of dialogue {number + 1} ({dialog['image_id']})"
            raise BadInput(files["references"], expected=expected, found="none")
        yield Entry(
            id=str(key),
            target=references[key],
            values={"question": _asked(dialog, history, summary), "video": dialog["image_id"]},
            meta={"item": key, "video": dialog["image_id"]},
        )


def _ids(data: Mapping[str, Any]) -> dict[str, int]:
    """The references' number of each video, where the file names them."""
    named = (image for image in data.get("images", ()) if image.get("name"))
    return {str(image["name"]): int(image["id"]) for image in named}


def _asked(dialog: Mapping[str, Any], history: bool, summary: bool) -> str:
    *earlier, last = dialog["dialog"]
    lines = []
    if summary:
        lines += [text for text in (dialog.get("caption"), dialog.get("summary")) if text]
    if history:
        lines += [f"Q: {turn['question']} A: {turn['answer']}" for turn in earlier]
    return "\n".join([*lines, last["question"]])
