"""Numbers from ``.npy``, ``.npz`` and ``.csv`` files, arrays and tensors, without ever unpickling.

A NumPy file's header is compared with the bytes that follow it *before* anything is allocated, so
a header that claims a huge shape costs nothing.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping, Sequence
from typing import BinaryIO

import numpy as np
import torch
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from onellm.errors import BadInput
from onellm.source import Source, is_file, open_file, source_name
from onellm.tokenizers.decoding import decoding

Array = NDArray[np.generic]

_NUMERIC = "biuf"


def read_array(
    source: Source,
    *,
    expected: str,
    max_megabytes: float,
    suffixes: Sequence[str] = (".npy",),
) -> Array:
    """Read one numeric array from a ``.npy`` file, an array, a tensor or a nested list.

    Args:
        source: path, Blob, array, tensor or list of numbers.
        expected: what the array should hold, for the error message.
        max_megabytes: refuse larger files (10^6 bytes).
        suffixes: file suffixes to name in the message when the type is foreign.

    Returns:
        An array of booleans, integers or real floats, any shape, not empty.

    Raises:
        BadInput: unreadable, truncated, of Python objects, or empty.
    """
    if not is_file(source):
        return as_array(source, expected=expected)
    with open_file(
        source, suffixes=suffixes, expected=expected, max_megabytes=max_megabytes
    ) as file:
        return _read_npy(file.read(), source_name(source), expected)


def as_array(data: object, *, expected: str) -> Array:
    """Turn an array, tensor or nested list into a numeric NumPy array, without copying if it can.

    Args:
        data: what the user gave.
        expected: what it should hold, for the error message.

    Raises:
        BadInput: not numbers, or empty.
    """
    name = source_name(data)
    if isinstance(data, torch.Tensor):
        data = data.detach().to("cpu")
        # NumPy has no bfloat16.
        data = (data.float() if data.dtype == torch.bfloat16 else data).numpy()
    if not isinstance(data, np.ndarray | list | tuple | np.generic):
        raise BadInput(name, expected=expected, found=f"an object of type {type(data).__name__}")
    with decoding(name, expected):
        array: Array = np.asarray(data)
    if array.dtype.kind not in _NUMERIC:
        raise BadInput(name, expected=f"{expected} as numbers", found=f"dtype {array.dtype}")
    if array.size == 0:
        raise BadInput(name, expected=expected, found=f"an empty array of shape {array.shape}")
    return array


def read_npz(source: Source, *, expected: str, max_megabytes: float) -> Mapping[str, Array]:
    """Read all numeric arrays of a ``.npz`` file.

    Args:
        source: path or Blob.
        expected: what the archive should hold, for the error message.
        max_megabytes: limit for the file and for its unpacked contents (10^6 bytes).

    Raises:
        BadInput: unreadable, truncated, unpacking to more than the limit, or without arrays.
    """
    name = source_name(source)
    arrays = {}
    with open_file(
        source, suffixes=(".npz",), expected=expected, max_megabytes=max_megabytes
    ) as file:
        with decoding(name, expected):
            archive = zipfile.ZipFile(file)
            members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
        unpacked = sum(m.file_size for m in members)
        if unpacked > max_megabytes * 1e6:
            raise BadInput(
                name,
                expected=f"{expected} of at most {max_megabytes:g} MB unpacked",
                found=f"{unpacked / 1e6:.1f} MB",
            )
        for member in members:
            with decoding(name, expected), archive.open(member) as part:
                # The directory may lie about sizes; never read more than it admits to.
                data = part.read(member.file_size)
            key = member.filename.removesuffix(".npy")
            arrays[key] = _read_npy(data, f"{name}:{key}", expected)
    if not arrays:
        raise BadInput(name, expected=expected, found="an archive without arrays")
    return arrays


def _read_npy(data: bytes, name: str, expected: str) -> Array:
    """Parse the bytes of a ``.npy`` file after comparing its header with their number."""
    file = io.BytesIO(data)
    with decoding(name, f"{expected} in NumPy's format"):
        shape, fortran, dtype = _read_header(file)
        if any(type(side) is not int or side < 0 for side in shape):
            raise ValueError(f"shape {shape}")
    if dtype.kind not in _NUMERIC:
        raise BadInput(
            name,
            expected=f"{expected} as numbers",
            found=f"dtype {dtype}",
            hint="Python objects are never unpickled." if dtype.hasobject else "",
        )
    count, rest = math.prod(shape), len(data) - file.tell()
    if count == 0:
        raise BadInput(name, expected=expected, found=f"an empty array of shape {shape}")
    if count * dtype.itemsize > rest:
        raise BadInput(
            name,
            expected=f"{count * dtype.itemsize} bytes for shape {shape} of {dtype}",
            found=f"{rest} bytes: the file is cut off or its header is wrong",
        )
    array = np.frombuffer(data, dtype, count, offset=file.tell())
    return array.reshape(shape, order="F" if fortran else "C")


def _read_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    version = npy_format.read_magic(file)
    if version == (1, 0):
        return npy_format.read_array_header_1_0(file)
    if version == (2, 0):
        return npy_format.read_array_header_2_0(file)
    raise ValueError(f"format version {version}")


def read_table(
    source: Source, *, expected: str, max_megabytes: float
) -> tuple[NDArray[np.float64], list[str]]:
    """Read a ``.csv`` table of numbers, with or without a header line.

    Commas, semicolons, tabs and blanks separate; lines that start with ``#`` are skipped.

    Args:
        source: path or Blob.
        expected: what the table should hold, for the error message.
        max_megabytes: refuse larger files (10^6 bytes).

    Returns:
        Numbers of shape (rows, columns), and the lower-case header (empty when there is none).

    Raises:
        BadInput: not text, no numbers, or rows of different lengths.
    """
    name = source_name(source)
    with open_file(
        source, suffixes=(".csv",), expected=expected, max_megabytes=max_megabytes
    ) as file:
        data = file.read()
    with decoding(name, f"{expected} as UTF-8 text"):
        lines = data.decode("utf-8-sig").splitlines()
    rows = [_cells(line) for line in lines if line.strip() and not line.lstrip().startswith("#")]
    header: list[str] = []
    if rows and not any(_is_number(cell) for cell in rows[0]):
        header = [cell.strip("\"'").lower() for cell in rows.pop(0)]
    if not rows:
        raise BadInput(name, expected=f"{expected}, one row per sample", found="no rows of numbers")
    width = len(rows[0])
    for number, row in enumerate(rows, start=1):
        if len(row) != width:
            found = f"{len(row)} in row {number}"
            raise BadInput(name, expected=f"{width} columns in every row", found=found)
    with decoding(name, f"{expected} as numbers"):
        return np.array(rows, dtype=np.float64), header


def _cells(line: str) -> list[str]:
    for separator in (",", ";", "\t"):
        if separator in line:
            return [cell.strip() for cell in line.split(separator)]
    return line.split()


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def check_finite(array: Array, name: str, expected: str) -> None:
    """Refuse NaN and infinities.

    Raises:
        BadInput: says how many there are.
    """
    bad = int(array.size - np.isfinite(array).sum())
    if bad:
        found = f"{bad} NaN or infinite value(s) of {array.size}"
        raise BadInput(name, expected=f"finite numbers in {expected}", found=found)
