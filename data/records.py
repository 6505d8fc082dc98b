"""Tables of records on disk: JSON, JSONL, CSV, Parquet, Hugging Face data sets.

A record is a mapping from field to value. What it means is :mod:`onellm.data.translate`'s matter.
Text files are gone through once for where their records begin; a record is parsed when it is asked
for, so that a list of a million conversations costs sixteen bytes each.
"""

from __future__ import annotations

import csv
import io
import json
import mmap
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from onellm.errors import BadInput, MissingExtra

_LONGEST_ROW = 1 << 20  # bytes

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
        uniform: whether all records have the same fields, so that one tells of all.
    """

    uniform: bool

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
        uniform: whether all records have the same fields.
    """

    def __init__(
        self,
        path: Path,
        spans_N2: NDArray[np.int64],
        parse: Callable[[bytes], Record],
        *,
        uniform: bool = False,
    ) -> None:
        self.uniform = uniform
        self.path, self.spans_N2, self.parse = path, spans_N2, parse
        self._map: mmap.mmap | None = None

    def __len__(self) -> int:
        return len(self.spans_N2)

    def __getitem__(self, index: int) -> Record:
        if self._map is None:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        begin, end = self.spans_N2[index].tolist()
        try:
            record = self.parse(self._map[begin:end])
        except (ValueError, csv.Error, RecursionError) as error:
            raise BadInput(f"{self.path}, record {index}", **_unreadable(error)) from error
        if not isinstance(record, dict):
            found = f"a {type(record).__name__}"
            raise BadInput(f"{self.path}, record {index}", expected="an object", found=found)
        return record

    outline = __getitem__  # files lie beside the table

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_map": None}  # each process maps the file itself


def _unreadable(error: Exception) -> dict[str, str]:
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
        data = path.read_bytes()
    except OSError as error:
        found = "no such file" if not path.exists() else f"an unreadable file ({error.strerror})"
        raise BadInput(path, expected=f"a {kind} file", found=found) from error
    if not data.strip():
        raise BadInput(path, expected=f"a {kind} file", found="an empty one")
    if kind == "csv":
        header, delimiter = _header(path, data)
        row = partial(_row, header=header, delimiter=delimiter)
        return TextRecords(path, _array(_csv_spans(path, data, delimiter)), row, uniform=True)
    spans = _line_spans(data) if kind == "jsonl" else _element_spans(path, data)
    return TextRecords(path, _array(spans), json.loads)


def _array(spans: Iterator[tuple[int, int]]) -> NDArray[np.int64]:
    return np.array(list(spans), dtype=np.int64).reshape(-1, 2)


def _line_spans(data: bytes) -> Iterator[tuple[int, int]]:
    begin = 0
    for line in io.BytesIO(data):
        if line.strip():
            yield begin, begin + len(line)
        begin += len(line)


def _element_spans(path: Path, data: bytes) -> Iterator[tuple[int, int]]:
    """Elements of a JSON list, by parsing each of them once."""
    # Latin-1 has one character for each byte, so that places in the text are places in the file.
    # JSON's own marks are the same in it as in UTF-8.
    text = data.decode("latin-1").removeprefix("\xef\xbb\xbf")
    shift = len(data) - len(text)
    decoder, at = json.JSONDecoder(), _skip(text, 0)
    if text[at : at + 1] != "[":
        raise BadInput(path, expected="a JSON list of records", found=f"{text[at : at + 20]!r}")
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


def _header(path: Path, data: bytes) -> tuple[list[str], str]:
    """Titles of a table's columns, and what separates them: a tab if there is one."""
    first = data.split(b"\n", 1)[0].decode("utf-8-sig", "replace").rstrip("\r")
    delimiter = "\t" if "\t" in first else ","
    try:
        titles = next(csv.reader([first], delimiter=delimiter))
    except csv.Error:  # line ends of a lone CR
        titles = []
    if len(titles) < 2:
        expected = "a header line of two or more columns, separated by tabs or commas"
        raise BadInput(path, expected=expected, found=repr(first[:60]))
    return titles, delimiter


def _csv_spans(path: Path, data: bytes, delimiter: str) -> Iterator[tuple[int, int]]:
    """Rows of a table; a quoted cell may hold line ends."""
    at = 0

    def lines() -> Iterator[str]:
        nonlocal at
        for line in io.BytesIO(data):
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
                yield begin, at
            begin = at
    except csv.Error as error:
        found = f"{error} in the row that begins at line {data[:begin].count(10) + 1}"
        hint = "A quotation mark that is never closed takes in all rows behind it."
        raise BadInput(path, expected="rows of a table", found=found, hint=hint) from error


def _row(line: bytes, header: list[str], delimiter: str) -> Record:
    cells = next(csv.reader(io.StringIO(line.decode("utf-8"), newline=""), delimiter=delimiter))
    if len(cells) != len(header):
        raise ValueError(f"{len(cells)} cells under {len(header)} titles")
    return dict(zip(header, cells, strict=True))


class ArrowRecords:
    """Records of Parquet files, or of a data set on the Hugging Face Hub, through ``datasets``.

    Media stay as they are stored (bytes or paths); our own readers decode them.

    Args:
        table: a ``datasets.Dataset``.
        name: for error messages.
    """

    def __init__(self, table: Any, name: str) -> None:
        self.table, self.name = _undecoded(table), name
        self.rows = self.table.with_format("arrow")
        # Where a cell may be empty, records differ in what they have.
        self.uniform = not any(column.null_count for column in self.table.data.columns)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Record:
        try:
            return dict(self.table[int(index)])
        except (OSError, ValueError) as error:
            raise BadInput(f"{self.name}, record {index}", **_unreadable(error)) from error

    def outline(self, index: int) -> Record:
        """A record whose bytes are not copied out of the table."""
        try:
            row = self.rows[int(index)]
        except (OSError, ValueError) as error:
            raise BadInput(f"{self.name}, record {index}", **_unreadable(error)) from error
        return {name: _in_outline(row[name].combine_chunks()) for name in row.column_names}


def _in_outline(column: Any) -> Any:
    """The value of a column of one row, with ``b"-"`` in place of bytes."""
    import pyarrow

    kind, value = column.type, column[0]
    if not value.is_valid:
        return None
    if pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind):
        return b"-"
    if pyarrow.types.is_struct(kind):
        return {field.name: _in_outline(column.field(field.name)) for field in kind}
    return value.as_py()


def _undecoded(table: Any) -> Any:
    for column, feature in table.features.items():
        if hasattr(feature, "decode"):
            table = table.cast_column(column, type(feature)(decode=False))
    return table


def open_parquet(paths: list[Path]) -> ArrowRecords:
    """Open Parquet files as one table.

    Raises:
        MissingExtra: ``datasets`` is not installed.
        BadInput: a file is missing or not Parquet.
    """
    hub = _datasets()
    for path in paths:
        if not path.is_file():
            raise BadInput(path, expected="a Parquet file", found="no such file")
    names = [str(path) for path in paths]
    try:
        table = hub.Dataset.from_parquet(names)
    except Exception as error:  # pyarrow's and the builder's own kinds
        raise BadInput(names[0], expected="a Parquet file", found=f"{error}") from error
    return ArrowRecords(table, names[0])


def open_hub(name: str, split: str) -> ArrowRecords:
    """Open a data set of the Hugging Face Hub, or a folder that ``datasets`` saved.

    Args:
        name: ``owner/name``, ``owner/name:config``, or a folder.
        split: such as ``"train"``.

    Raises:
        MissingExtra: ``datasets`` is not installed.
        BadInput: there is no such data set or split, or the network is away.
    """
    hub = _datasets()
    path, _, config = name.partition(":")
    try:
        if (Path(path) / "state.json").is_file() or (Path(path) / "dataset_dict.json").is_file():
            table = hub.load_from_disk(path)
            table = table[split] if isinstance(table, dict) else table
        else:
            table = hub.load_dataset(path, config or None, split=split)
    except Exception as error:  # the hub's, the network's and the builder's own kinds
        expected = f"a data set with the split {split!r}"
        raise BadInput(name, expected=expected, found=f"{error}") from error
    return ArrowRecords(table, name)


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra("datasets", "datasets") from error
    datasets.disable_progress_bars()
    return datasets
