"""PointLLM's split of Objaverse (Xu et al., ECCV 2024): one sentence per object."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onellm.errors import BadInput
from onellm.eval.annotations import Entry, read_json


def read(files: Mapping[str, Path]) -> Iterator[Entry]:
    """Yield objects; both PointLLM's conversations and an object of captions by id are read.

    Args:
        files: ``captions``.
    """
    data = read_json(files["captions"])
    pairs = data.items() if isinstance(data, dict) else map(_pair, data)
    for key, caption in pairs:
        yield Entry(id=key, target=[caption], values={"object": key}, meta={"item": key})


def _pair(record: Mapping[str, Any]) -> tuple[str, str]:
    said = [turn["value"] for turn in record["conversations"] if turn["from"] == "gpt"]
    if not said:
        where = f"object {record['object_id']}"
        raise BadInput(where, expected="a sentence from 'gpt'", found="none")
    return record["object_id"], said[0]
