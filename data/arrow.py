"""Tables of records that Arrow holds: Parquet files, data sets of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onellm.data.records import Record, unreadable
from onellm.errors import BadInput, MissingExtra


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
        self.fields: tuple[str, ...] = tuple(self.table.column_names)
        self.alike: NDArray[np.int32] | None = _alike(self.rows)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Record:
        try:
            return dict(self.table[int(index)])
        except (OSError, ValueError) as error:
            raise BadInput(f"{self.name}, record {index}", **unreadable(error)) from error

    def outline(self, index: int) -> Record:
        """A record whose bytes are not copied out of the table."""
        try:
            row = self.rows[int(index)]
        except (OSError, ValueError) as error:
            raise BadInput(f"{self.name}, record {index}", **unreadable(error)) from error
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
    if pyarrow.types.is_list(kind) and not pyarrow.types.is_primitive(kind.value_type):
        inner = column.flatten()
        return [_in_outline(inner.slice(i, 1)) for i in range(len(inner))]
    return value.as_py()


def _alike(rows: Any) -> NDArray[np.int32]:
    """Number records by which of their cells, and of the fields in these, hold something."""
    number_N = np.zeros(len(rows), dtype=np.int64)
    for name in rows.column_names if len(rows) else ():
        column = rows.data.column(name)
        for there_N in (_filled(column), *_filled_inside(column)):
            if rows._indices is not None:
                there_N = there_N[rows._indices.column(0).to_numpy()]
            if not there_N.all():
                number_N = np.unique(2 * number_N + ~there_N, return_inverse=True)[1]
    return number_N.astype(np.int32)


def _filled(column: Any) -> NDArray[np.bool_]:
    """Where a column has a value that is neither null nor empty."""
    import pyarrow.types
    from pyarrow import compute

    kind, there = column.type, column.is_valid()
    if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
        there = compute.and_(there, compute.fill_null(compute.not_equal(column, ""), False))
    elif pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        some = compute.greater(compute.list_value_length(column), 0)
        there = compute.and_(there, compute.fill_null(some, False))
    return np.asarray(there.combine_chunks().to_numpy(zero_copy_only=False), dtype=bool)


def _filled_inside(column: Any) -> list[NDArray[np.bool_]]:
    """Of each field in lists of mappings, such as messages: which records have it somewhere."""
    import pyarrow.types

    if not (pyarrow.types.is_list(column.type) or pyarrow.types.is_large_list(column.type)):
        return []
    chunks = []
    for chunk in column.chunks:
        leaves = _leaves(np.arange(len(chunk)), chunk)
        chunks.append([_marked(rows, values, len(chunk)) for rows, values in leaves])
    return [np.concatenate(fields) for fields in zip(*chunks, strict=True)]


def _leaves(rows: Any, values: Any) -> Iterator[tuple[Any, Any]]:
    """The innermost fields of lists and mappings: the row of each value, and the values."""
    import pyarrow.types

    kind = values.type
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        if not pyarrow.types.is_primitive(kind.value_type):
            inside = np.repeat(rows, values.value_lengths().fill_null(0).to_numpy())
            yield from _leaves(inside, values.flatten())
    elif pyarrow.types.is_struct(kind):
        for field in values.flatten():
            yield from _leaves(rows, field)
    else:
        yield rows, values


def _marked(rows: Any, values: Any, count: int) -> NDArray[np.bool_]:
    import pyarrow

    marked_N = np.zeros(count, dtype=bool)
    marked_N[rows[_filled(pyarrow.chunked_array([values]))]] = True
    return marked_N


def _undecoded(table: Any) -> Any:
    for column, feature in table.features.items():
        stored = _stored(feature)
        if stored is not feature:
            table = table.cast_column(column, stored)
    return table


def _stored(feature: Any) -> Any:
    """A column's kind without decoding; itself where there is nothing to decode."""
    if hasattr(feature, "decode"):
        return type(feature)(decode=False)
    inner = getattr(feature, "feature", None)  # of a list
    if inner is None or isinstance(inner, Mapping) or _stored(inner) is inner:
        return feature
    return type(feature)(_stored(inner))


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
        raise BadInput(names[0], expected="a Parquet file", found=f"{error}".rstrip(".")) from error
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
        raise BadInput(name, expected=expected, found=f"{error}".rstrip(".")) from error
    return ArrowRecords(table, name)


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra("datasets", "datasets") from error
    datasets.disable_progress_bars()
    return datasets
