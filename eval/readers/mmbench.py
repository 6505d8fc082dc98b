"""MMBench (Liu et al., ECCV 2024): a table with pictures in base64, a row per circular pass."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from pathlib import Path

from onellm.errors import BadInput
from onellm.eval.annotations import Entry, read_table
from onellm.source import Blob

_PASS = 1_000_000
_LETTERS = ("A", "B", "C", "D")
_LONGEST_INDEX = 16  # characters: what is longer is a picture, not another row's number


def read(files: Mapping[str, Path], circular: bool = True, hint: bool = True) -> Iterator[Entry]:
    """Yield a question for every row; pass k of question i has the index i + k million.

    Args:
        files: ``table``.
        circular: all passes; otherwise the first of each question.
        hint: put a row's hint in front of its question.

    Raises:
        BadInput: a row whose picture is missing.
    """
    pictures: dict[str, Blob] = {}
    for row in read_table(files["table"], ("index", "question", "A", "B", "image"), delimiter="\t"):
        index = int(row["index"])
        picture = _picture(files["table"], row, pictures)
        if index >= _PASS and not circular:
            continue
        question = row["question"]
        if hint and row.get("hint"):
            question = f"{row['hint']}\n{question}"
        # An option left out at the end is an empty field, which some writers spell "nan".
        options = [row.get(letter, "") for letter in _LETTERS]
        options = [option for option in options if option not in ("", "nan")]
        yield Entry(
            id=str(index),
            target=row.get("answer", ""),
            values={"question": question, "picture": picture},
            meta={
                **{"group": index % _PASS, "pass": index // _PASS, "index": index},
                **{"category": row.get("category", ""), "ability": row.get("l2-category", "")},
                **{"split": row.get("split", ""), "question": row["question"]},
            },
            options=tuple(options),
        )


def _picture(path: Path, row: Mapping[str, str], known: dict[str, Blob]) -> Blob:
    """A row's picture; the index of another row stands for that one's."""
    text, index = row["image"], row["index"]
    if len(text) <= _LONGEST_INDEX and text in known:
        known[index] = known[text]
        return known[text]
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        where = f"{path}, index {index}"
        raise BadInput(where, expected="a picture in base64", found=str(error)) from error
    suffix = "png" if data.startswith(b"\x89PNG") else "jpg"
    known[index] = Blob(f"{path.name}/{index}.{suffix}", data)
    return known[index]
