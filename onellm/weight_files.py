"""Safetensors files of one model: read one tensor at a time, written in pieces of bounded size.

The layout is Hugging Face's: ``model.safetensors``, or ``model-00001-of-00003.safetensors`` … with
``model.safetensors.index.json`` that says which piece holds which weight.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onellm.errors import CheckpointError
from onellm.slots import Weights

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 2_000_000_000
# Pages of a mapped file count as memory of this process until the mapping is given up. Giving it up
# and mapping anew costs a tenth of a second, so it is done every half gigabyte.
MAPPED_BYTES = 2**29

_DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U8": torch.uint8, "BOOL": torch.bool},
}


class SafetensorsFiles:
    """The weights in safetensors files, mapped and read one at a time.

    Args:
        files: with disjoint names.

    Raises:
        CheckpointError: a file is missing, damaged, or holds a name that another one has.
    """

    def __init__(self, files: list[Path]) -> None:
        self.shapes: dict[str, torch.Size] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self._file_of: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        self._mapped = 0
        for file in files:
            opened = _open(file)
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                if name in self.shapes:
                    raise CheckpointError(f"{file}: {name} is in {self._file_of[name]} as well")
                part = opened.get_slice(name)
                kind = part.get_dtype()
                if kind not in _DTYPES:
                    raise CheckpointError(f"{file}: {name} is of type {kind}, not a type of ours")
                self.shapes[name] = torch.Size(part.get_shape())
                self.dtypes[name] = _DTYPES[kind]
                self._file_of[name] = file

    def read(self, name: str) -> Tensor:
        """One tensor, a view of the mapped file."""
        if self._mapped > MAPPED_BYTES:
            self._open.clear()
            self._mapped = 0
        file = self._file_of[name]
        if file not in self._open:
            self._open[file] = _open(file)
        tensor: Tensor = self._open[file].get_tensor(name)
        self._mapped += tensor.nbytes
        return tensor


def _open(file: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(str(file), framework="pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{file}: expected safetensors; found a missing or damaged file ({error})"
        ) from error


def open_weights(folder: Path) -> SafetensorsFiles:
    """The weights of a saved model, in one file or in pieces.

    Args:
        folder: holds ``model.safetensors`` or its index and pieces.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    index = folder / INDEX
    if not index.is_file():
        return SafetensorsFiles([folder / WEIGHTS])
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: expected a weight_map; found a damaged file") from error
    return SafetensorsFiles([folder / name for name in names])


def nbytes(weights: Weights, name: str, dtype: torch.dtype | None = None) -> int:
    """Size of one weight in bytes.

    Args:
        weights: where it is.
        name: which.
        dtype: the type that it would be converted to if it is a floating-point weight.
    """
    own = weights.dtypes[name]
    kind = dtype if dtype is not None and own.is_floating_point else own
    return weights.shapes[name].numel() * kind.itemsize


def divide(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Divide names into consecutive groups of bounded size; never no group.

    Args:
        sizes: name → bytes.
        limit: bytes of a group; a single larger name is a group of its own.

    Example:
        >>> divide({"a": 2, "b": 2, "c": 3}, 4)
        [['a', 'b'], ['c']]
    """
    groups: list[list[str]] = [[]]
    used = 0
    for name, size in sizes.items():
        if groups[-1] and used + size > limit:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    return groups


def write_weights(
    folder: Path,
    weights: Weights,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    advance: Callable[[int], Any] | None = None,
) -> list[Path]:
    """Write weights in pieces; no more than one piece is in memory beside the weights.

    Args:
        folder: where; pieces of an earlier save are removed.
        weights: what.
        dtype: type of floating-point weights on disk; None keeps each as it is.
        shard_bytes: of a piece.
        advance: called with the number of weights just written.

    Returns:
        the files, each synced to disk before it got its name.
    """
    from safetensors.torch import save_file

    groups = divide({n: nbytes(weights, n, dtype) for n in weights.shapes}, shard_bytes)
    files: list[Path] = []
    weight_map: dict[str, str] = {}
    for old in (*folder.glob("model-*-of-*.safetensors"), folder / INDEX):
        old.unlink(missing_ok=True)
    for number, names in enumerate(groups, 1):
        many = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        file = folder / (WEIGHTS if len(groups) == 1 else many)
        tensors = {name: _as_type(weights.read(name), dtype) for name in names}
        temporary = folder / f".{file.name}.tmp"
        save_file(tensors, str(temporary), metadata={"format": "pt"})
        put(temporary, file)
        files.append(file)
        weight_map |= dict.fromkeys(names, file.name)
        if advance is not None:
            advance(len(names))
    if len(groups) > 1:
        (folder / WEIGHTS).unlink(missing_ok=True)
        total = sum(nbytes(weights, name, dtype) for name in weights.shapes)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_text(folder / INDEX, json.dumps(index, indent=1))
    return files


def _as_type(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype is not None and tensor.is_floating_point():
        tensor = tensor.to(dtype)
    return tensor.detach().cpu().contiguous()


def write_text(file: Path, text: str) -> None:
    """Write a text file under a temporary name, sync it and rename it."""
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    put(temporary, file)


def put(temporary: Path, final: Path) -> None:
    """Sync a finished file to disk, then give it its name and the permissions of any new file."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    mask = os.umask(0)
    os.umask(mask)
    temporary.chmod(0o666 & ~mask)  # safetensors lets nobody but the owner read what it writes
    temporary.replace(final)
