"""AVSD, DSTC7 (Alamri et al., CVPR 2019): the last answer of a dialogue about a video."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onellm.errors import BadInput
from onellm.eval.annotations import Entry, read_json

_TURN = re.compile(r"_\d+$")


def read(
    files: Mapping[str, Path], history: bool = False, summary: bool = False
) -> Iterator[Entry]:
    """Yield the last question of each dialogue.

    Args:
        files: ``dialogs``, and ``references`` in COCO's caption form. Their images are named
            after the videos, with or without the number of a turn (``7UPGT_10``); without names
            they are in the dialogues' order, from whatever number.
        history: put the earlier turns in front of the question.
        summary: put the video's caption and summary in front of everything.

    Raises:
        BadInput: a dialogue without references.
    """
    data, dialogs = read_json(files["references"]), read_json(files["dialogs"])["dialogs"]
    references: dict[int, list[str]] = defaultdict(list)
    for record in data["annotations"]:
        references[int(record["image_id"])].append(record["caption"])
    for dialog, key in zip(dialogs, _keys(data, references, dialogs, files), strict=True):
        yield Entry(
            id=str(key),
            target=references[key],
            values={"question": _asked(dialog, history, summary), "video": dialog["image_id"]},
            meta={"item": key, "video": dialog["image_id"]},
        )


def _keys(
    data: Mapping[str, Any],
    references: Mapping[int, Any],
    dialogs: Sequence[Mapping[str, Any]],
    files: Mapping[str, Path],
) -> list[int]:
    """The references' number of each dialogue: by name where there are names, else by place."""
    named = {
        str(image["name"]): int(image["id"])
        for image in data.get("images", ())
        if image.get("name") and int(image["id"]) in references
    }
    if not named:
        if len(references) != len(dialogs):
            expected = f"references of {len(dialogs)} dialogues"
            raise BadInput(files["references"], expected=expected, found=f"of {len(references)}")
        return sorted(references)
    # A name is a video's, or the video's and the number of the turn that is asked for.
    named = {_TURN.sub("", name): key for name, key in named.items()} | named
    for dialog in dialogs:
        if dialog["image_id"] not in named:
            expected = f"references of {dialog['image_id']}"
            raise BadInput(files["references"], expected=expected, found="none")
    return [named[dialog["image_id"]] for dialog in dialogs]


def _asked(dialog: Mapping[str, Any], history: bool, summary: bool) -> str:
    *earlier, last = dialog["dialog"]
    lines = []
    if summary:
        lines += [text for text in (dialog.get("caption"), dialog.get("summary")) if text]
    if history:
        lines += [f"Q: {turn['question']} A: {turn['answer']}" for turn in earlier]
    return "\n".join([*lines, last["question"]])
