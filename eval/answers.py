"""The file between runner and scorer: one JSON line per question.

Keys of a line: ``key`` (see :meth:`onellm.eval.items.Item.key`), ``task``, ``id``, ``prompt``,
``media`` (pairs of modality and path or sample id), ``answer`` (the model's text as it came),
``target`` (the truth, in the shape that the scorer reads), ``meta`` (groups), ``seconds``,
``seed``; ``options`` where there are some, ``choice_logprobs`` (for each option the ``sum`` and
``mean`` of its tokens' log-probabilities) where likelihoods were asked for, and, once scored,
``parsed`` and ``score``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from onellm.errors import BadInput

Record = dict[str, Any]
REQUIRED = ("key", "task", "id", "prompt", "media", "answer", "target", "meta")


def read_answers(path: str | Path) -> list[Record]:
    """Read a file of answers.

    Args:
        path: a JSONL file. A last line without its end, left by a crash, is ignored.

    Raises:
        BadInput: missing, no JSON lines, a line without a required key, or the same key twice.
    """
    file = Path(path)
    if not file.is_file():
        raise BadInput(file, expected="a JSONL file of answers", found="no such file")
    # split, not splitlines: an answer may hold any of Unicode's line separators.
    lines = file.read_bytes().split(b"\n")[:-1]
    records = [_parse(file, number, line) for number, line in enumerate(lines, 1)]
    keys: set[str] = set()
    for record in records:
        if record["key"] in keys:
            raise BadInput(
                file,
                expected="one answer per question",
                found=f"two of {record['task']} {record['id']}",
            )
        keys.add(record["key"])
    return records


def _parse(file: Path, number: int, line: bytes) -> Record:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise BadInput(f"{file}, line {number}", expected="JSON", found=str(error)) from error
    missing = [k for k in REQUIRED if not isinstance(record, dict) or k not in record]
    if missing:
        found = f"a line without {', '.join(missing)}"
        raise BadInput(f"{file}, line {number}", expected="an answer", found=found)
    return dict(record)


def to_line(record: Record) -> str:
    """One line of the file, its end included."""
    return json.dumps(record, ensure_ascii=False) + "\n"


def write_answers(path: str | Path, records: Iterable[Record]) -> None:
    """Write a whole file: under a temporary name, synced, then renamed."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8", newline="\n") as out:
        out.writelines(to_line(record) for record in records)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(file)
