"""MUSIC-AVQA (Li et al., CVPR 2022): questions about what is seen and heard in performances."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onellm.errors import BadInput
from onellm.eval.annotations import Entry, read_json

_SLOT = re.compile(r"<[^<>]+>")


def read(files: Mapping[str, Path]) -> Iterator[Entry]:
    """Yield questions with the words of their templates filled in.

    Args:
        files: ``questions``. Its key ``anser`` is spelt so; ``type`` and ``templ_values`` are
            strings that hold lists.

    Raises:
        BadInput: a template with more slots than words.
    """
    for record in read_json(files["questions"]):
        if record.get("question_deleted"):
            continue
        modality, kind = _list(record["type"])
        yield Entry(
            id=str(record["question_id"]),
            target=record["anser"],
            values={"question": _filled(record), "video": record["video_id"]},
            meta={"type": [modality, kind], "video": record["video_id"]},
        )


def _list(value: Any) -> list[str]:
    return list(json.loads(value)) if isinstance(value, str) else list(value)


def _filled(record: Mapping[str, Any]) -> str:
    words = iter(_list(record["templ_values"]))
    try:
        return _SLOT.sub(lambda slot: next(words), record["question_content"])
    except StopIteration as error:
        where = f"question {record['question_id']}"
        raise BadInput(where, expected="a word for every <slot>", found="too few") from error
