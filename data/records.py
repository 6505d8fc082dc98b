"""Tables of records in text files: JSON, JSONL, CSV.

A record is a mapping from field to value. What it means is :mod:`onellm.data.translate`'s matter.
Text files are gone through once for where their records begin; a record is parsed when it is asked
for, so that a list of a million conversations costs sixteen bytes each.
"""

from __future__ import annotations

import csv
import io
import json
import mmap
import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from onellm.errors import BadInput

_LONGEST_ROW = 1 << 20  # bytes
_BLOCK = 1 << 20

Record = dict[str, Any]
Format = Literal["auto", "json", "jsonl", "csv", "parquet", "hub", "tar"]
SUFFIXES: dict[str, Format] = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".tar": "tar",
}


class Records(Protocol):
    """A table of records that are read when they are asked for.

    Attributes:
        fields: of all records, where a table has columns; () where each record has its own.
        alike: (records,) where one record tells of others: those with one number have something in
            the same fields, and those with -1 cannot be read; None where nobody knows.
    """

    fields: tuple[str, ...]
    alike: NDArray[np.int32] | None

    def __len__(self) -> int:
        """Number of records."""
        ...

    def __getitem__(self, index: int) -> Record:
        """Read a record.

        Raises:
            BadInput: it is broken; names the file and the record.
        """
        ...

    def outline(self, index: int) -> Record:
        """A record in which files that lie in the table may be empty; cheaper to read.

        Raises:
            BadInput: as of the record itself.
        """
        ...


class TextRecords:
    """Records of a text file, found by where they begin and end.

    Args:
        path: the file; it is mapped into memory, not read.
        spans_N2: first byte of each record, and the one behind its last.
        parse: bytes of one record → record.
        fields: titles of the columns, where there are any.
        alike: see :class:`Records`.
    """

    def __init__(
        self,
        path: Path,
        spans_N2: NDArray[np.int64],
        parse: Callable[[bytes], Record],
        *,
        fields: tuple[str, ...] = (),
        alike: NDArray[np.int32] | None = None,
    ) -> None:
        self.path, self.spans_N2, self.parse = path, spans_N2, parse
        self.fields, self.alike = fields, alike
        self._map: mmap.mmap | None = None
        self._lines: list[int] = []

    def __len__(self) -> int:
        return len(self.spans_N2)

    def __getitem__(self, index: int) -> Record:
        data = self._mapped()
        begin, end = self.spans_N2[index].tolist()
        try:
            record = self.parse(data[begin:end])
        except (ValueError, csv.Error, RecursionError) as error:
            raise BadInput(self._place(index), **unreadable(error)) from error
        if not isinstance(record, dict):
            found = f"a {type(record).__name__}"
            raise BadInput(self._place(index), expected="an object", found=found)
        return record

    def _mapped(self) -> mmap.mmap:
        if self._map is None:
            try:
                with self.path.open("rb") as file:
                    self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:  # it was there when its records were counted
                found = f"{getattr(error, 'strerror', None) or error}".lower()
                raise BadInput(self.path, expected="the file of before", found=found) from error
        return self._map

    def _place(self, index: int) -> str:
        """File, record and line, for error messages."""
        data, begin = self._mapped(), int(self.spans_N2[index, 0])
        if not self._lines:
            blocks = (data[at : at + _BLOCK].count(b"\n") for at in range(0, len(data), _BLOCK))
            self._lines = list(accumulate(blocks, initial=0))
        block = begin // _BLOCK
        line = self._lines[block] + data[block * _BLOCK : begin].count(b"\n") + 1
        return f"{self.path}, record {index}, line {line}"

    outline = __getitem__  # files lie beside the table

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_map": None, "_lines": []}  # each process maps the file itself


def unreadable(error: Exception) -> dict[str, str]:
    """Expected and found, of a record that cannot be read."""
    if isinstance(error, UnicodeDecodeError):
        return {"expected": "a record in UTF-8", "found": f"{error}"}
    return {"expected": "a readable record", "found": f"{error}"}


def open_text(path: Path, kind: str) -> TextRecords:
    """Open a JSON, JSONL or CSV file.

    Args:
        path: the file.
        kind: ``"json"``, ``"jsonl"`` or ``"csv"``.

    Raises:
        BadInput: it is missing, empty, or not of that kind.
    """
    try:
        data = _map(path)
    except OSError as error:
        found = "no such file" if not path.exists() else f"an unreadable file ({error.strerror})"
        raise BadInput(path, expected=f"a {kind} file", found=found) from error
    if data is None or re.search(rb"\S", data) is None:
        raise BadInput(path, expected=f"a {kind} file", found="an empty one")
    if kind == "csv":
        header, delimiter = _header(path, data)
        rows_N3 = _array(_csv_rows(path, data, delimiter, len(header)), 3)
        parse = partial(_row, header=header, delimiter=delimiter)
        alike_N = rows_N3[:, 2].astype(np.int32)
        return TextRecords(path, rows_N3[:, :2].copy(), parse, fields=tuple(header), alike=alike_N)
    spans = _line_spans(path, data) if kind == "jsonl" else _element_spans(path, data)
    return TextRecords(path, _array(spans, 2), json.loads)


def _map(path: Path) -> mmap.mmap | None:
    """The bytes of a file, of which only those that are looked at take memory; None of none."""
    with path.open("rb") as file:
        if not file.seek(0, io.SEEK_END):
            return None
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _lines(data: mmap.mmap) -> Iterator[bytes]:
    data.seek(0)
    return iter(data.readline, b"")


def _array(rows: Iterator[tuple[int, ...]], width: int) -> NDArray[np.int64]:
    """Rows of numbers as they come: as tuples in a list they would take ten times the memory."""
    flat = np.fromiter(chain.from_iterable(rows), dtype=np.int64)
    return flat.reshape(-1, width)


def _line_spans(path: Path, data: mmap.mmap) -> Iterator[tuple[int, int]]:
    if _is_list(data):
        hint = "Set 'format' (--format json)."
        raise BadInput(path, expected="an object on each line", found="a JSON list", hint=hint)
    begin = 0
    for line in _lines(data):
        if line.strip():
            yield begin, begin + len(line)
        begin += len(line)


def _is_list(data: mmap.mmap) -> bool:
    """Whether the first line is not a record of its own."""
    first = next(filter(None, map(bytes.strip, _lines(data))))
    return first == b"[" or first[:2] == b"[{"


def _element_spans(path: Path, data: mmap.mmap) -> Iterator[tuple[int, int]]:
    """Elements of a JSON list, by parsing each of them once."""
    # Latin-1 has one character for each byte, so that places in the text are places in the file.
    # JSON's own marks are the same in it as in UTF-8.
    text = str(data, "latin-1").removeprefix("\xef\xbb\xbf")
    shift = len(data) - len(text)
    decoder, at = json.JSONDecoder(), _skip(text, 0)
    if text[at : at + 1] != "[":
        line = "A file with an object on each line is JSONL: set 'format' (--format jsonl)."
        found, hint = f"{text[at : at + 20]!r}", line if text[at : at + 1] == "{" else ""
        raise BadInput(path, expected="a JSON list of records", found=found, hint=hint)
    at = _skip(text, at + 1)
    while text[at : at + 1] != "]":
        try:
            _, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise BadInput(path, expected="valid JSON", found=f"{error}") from error
        yield at + shift, end + shift
        at = _skip(text, end)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
        elif text[at : at + 1] != "]":
            found = f"{text[at : at + 20]!r} behind an element: the file may be cut off"
            raise BadInput(path, expected="a JSON list of records", found=found)


def _skip(text: str, at: int) -> int:
    while text[at : at + 1] in (" ", "\t", "\n", "\r") and at < len(text):
        at += 1
    return at


def _header(path: Path, data: mmap.mmap) -> tuple[list[str], str]:
    """Titles of a table's columns, and what separates them: a tab if there is one."""
    try:
        first = next(_lines(data)).decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise BadInput(path, expected="a table in UTF-8", found=f"{error}") from error
    delimiter = "\t" if "\t" in first else ","
    try:
        titles = next(csv.reader([first], delimiter=delimiter))
    except csv.Error:  # line ends of a lone CR
        titles = []
    expected = "a header line of two or more columns, separated by tabs or commas"
    if len(titles) < 2:
        other = next((mark for mark in ";|" if mark in first), "")
        hint = f"Columns separated by {other!r} are not read: save the table with tabs." * bool(
            other
        )
        raise BadInput(path, expected=expected, found=repr(first[:60]), hint=hint)
    if len(set(titles)) < len(titles):
        twice = next(title for title in titles if titles.count(title) > 1)
        raise BadInput(path, expected=expected, found=f"two columns with the title {twice!r}")
    return titles, delimiter


def _csv_rows(
    path: Path, data: mmap.mmap, delimiter: str, columns: int
) -> Iterator[tuple[int, int, int]]:
    """Begin and end of a table's rows, and a number for which of their cells hold something.

    A quoted cell may hold line ends. Rows of another number of cells have the number -1.
    """
    at, kinds = 0, {(True,) * columns: 0}

    def lines() -> Iterator[str]:
        nonlocal at
        for line in _lines(data):
            at += len(line)
            yield line.decode("latin-1")

    reader = csv.reader(lines(), delimiter=delimiter)
    next(reader)
    begin = at
    try:
        for cells in reader:
            if at - begin > _LONGEST_ROW:
                raise csv.Error(f"more than {_LONGEST_ROW:,} bytes")
            if cells:
                filled = tuple(map(bool, cells))
                right = len(cells) == columns
                yield begin, at, kinds.setdefault(filled, len(kinds)) if right else -1
            begin = at
    except csv.Error as error:
        found = f"{error} in the row that begins at line {data[:begin].count(10) + 1}"
        hint = "A quotation mark that is never closed takes in all rows behind it."
        raise BadInput(path, expected="rows of a table", found=found, hint=hint) from error


def _row(line: bytes, header: list[str], delimiter: str) -> Record:
    cells = next(csv.reader(io.StringIO(line.decode("utf-8"), newline=""), delimiter=delimiter))
    if len(cells) != len(header):
        mark = "tabs" if delimiter == "\t" else "commas, which a cell may hold in quotation marks"
        raise ValueError(f"{len(cells)} cells under {len(header)} titles, separated by {mark}")
    return dict(zip(header, cells, strict=True))
