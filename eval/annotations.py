"""Annotation files of benchmarks: reading them, and saying what is wrong with one."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onellm.errors import BadInput
from onellm.source import Source

# Pictures in base64 stand in one field of a table.
csv.field_size_limit(1 << 30)


@dataclass
class Entry:
    """One question as a data set has it, before a task's prompt and media are filled in.

    Args:
        id: unique within the data set.
        target: the truth, in the shape that the task's scorer reads.
        values: what prompt and media templates may use.
        meta: groups for breakdowns, and what an official submission needs.
        options: texts to choose from, in order; empty for open questions.
        media: (modality, id, source), for data that say themselves what they are.
    """

    id: str
    target: Any
    values: dict[str, Any] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    media: tuple[tuple[str, str, Source], ...] | None = None


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        BadInput: missing, or no JSON.
    """
    try:
        return json.loads(_text(path))
    except ValueError as error:
        raise BadInput(path, expected="JSON", found=f"something else ({error})") from error


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Parse a file of one JSON object per line.

    Raises:
        BadInput: missing, or a line that is no JSON; it names the line.
    """
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                where = f"{path}, line {number}"
                raise BadInput(where, expected="JSON", found=f"something else ({error})") from error


def read_table(
    path: Path, columns: tuple[str, ...] = (), *, delimiter: str = ",", header: bool = True
) -> Iterator[dict[str, str]]:
    """Read a table of text as one mapping per row.

    Args:
        path: a CSV or TSV file.
        columns: those that must be there; without a header, the names of all of them in order.
        delimiter: between columns.
        header: whether the first row names the columns.

    Raises:
        BadInput: missing file or column, or a row of another length.
    """
    # Not splitlines: a row may hold any of Unicode's line separators.
    rows = csv.reader(io.StringIO(_text(path)), delimiter=delimiter)
    names = next(rows, []) if header else list(columns)
    if missing := [name for name in columns if name not in names]:
        found = ", ".join(names) or "an empty file"
        raise BadInput(path, expected=f"columns {', '.join(missing)}", found=found)
    for number, row in enumerate(rows, 2 if header else 1):
        if not row:
            continue
        if len(row) != len(names):
            where, expected = f"{path}, row {number}", f"{len(names)} columns"
            raise BadInput(where, expected=expected, found=f"{len(row)}")
        yield dict(zip(names, row, strict=True))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise BadInput(path, expected="an annotation file", found="no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(path, expected="an annotation file", found=str(error)) from error
