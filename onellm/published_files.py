"""Meta's checkpoint layout, which the published OneLLM uses too: ``.pth`` files.

``consolidated.00-of-01.pth`` is a whole checkpoint; ``consolidated.00-of-01.s0.pth`` … are parts
of it with disjoint keys; ``consolidated.00-of-02.pth`` and ``consolidated.01-of-02.pth`` are the
shards of two model-parallel processes, whose tensors are slices of the same keys (spec §2.1).
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onellm.errors import CheckpointError
from onellm.weight_files import MAPPED_BYTES

PREFIX = "llma."
PARAMS, TEXT_MODEL = "params.json", "tokenizer.model"

_NAME = re.compile(r"consolidated\.(?P<shard>\d+)(?:-of-(?P<of>\d+))?(?:\.s(?P<part>\d+))?\.pth")

# The axis along which model-parallel shards divide a weight, by the end of its key (spec §2.2).
# What ends in none of these is the same in every shard.
_SPLIT = {
    **dict.fromkeys(("attention.wq", "attention.wk", "attention.wv", "output"), 0),
    **dict.fromkeys(("feed_forward.w1", "feed_forward.w3"), 0),
    **dict.fromkeys(("attention.wo", "feed_forward.w2", "tok_embeddings"), 1),
}
_IN_LAYERS = re.compile(r"(?:layers|resample_layers\.[^.]+)\.\d+\.(.+)\.weight")


class PublishedFiles:
    """The weights in published files, mapped, merged and read one at a time.

    Args:
        path: a ``.pth`` file, or a folder of parts or shards.

    Attributes:
        folder: where the files are; ``params.json`` is expected there.
        files: all of them.

    Raises:
        CheckpointError: no such files, a damaged one, an incomplete set, or keys that stand in
            several parts of one shard.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        self.folder = path if path.is_dir() else path.parent
        shards = _find(path)
        self.files = [file for parts in shards for file in parts]
        self._open: dict[Path, dict[str, Tensor]] = {}
        self._mapped = 0
        self._homes: dict[str, list[tuple[Path, str]]] = {}
        self._axes: dict[str, int | None] = {}
        self.shapes: dict[str, torch.Size] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        for number, parts in enumerate(shards):
            self._index(number, parts)
        if len(shards) > 1:
            self._merge(shards)

    def _index(self, number: int, parts: list[Path]) -> None:
        """Note where the keys of one shard are, and their shapes in it."""
        seen: dict[str, Path] = {}
        for file in parts:
            for raw, tensor in self._tensors(file).items():
                key = raw.removeprefix(PREFIX)
                if key in seen:
                    raise CheckpointError(
                        f"{key} stands in several files, {seen[key].name} and {file.name}: "
                        "model-parallel shards are named consolidated.NN-of-MM.pth"
                    )
                seen[key] = file
                self._homes.setdefault(key, []).append((file, raw))
                if number == 0:
                    self.shapes[key], self.dtypes[key] = tensor.shape, tensor.dtype
        self._open.clear()

    def _merge(self, shards: list[list[Path]]) -> None:
        """Work out along which axis each key is divided, and its whole shape."""
        count = len(shards)
        uneven = sorted(key for key, homes in self._homes.items() if len(homes) != count)
        if uneven:
            raise CheckpointError(
                f"{self.folder}: expected every key in each of {count} model-parallel shards; "
                f"found {len(uneven)} that are not, such as {', '.join(uneven[:3])}"
            )
        norm = self.shapes.get("norm.weight")
        for key, shape in list(self.shapes.items()):
            axis = split_axis(key)
            # LLaMA 3's shards divide the embeddings by words instead of by channels.
            if key == "tok_embeddings.weight" and norm is not None and shape[1] == norm[0]:
                axis = 0
            if axis is not None:
                whole = list(shape)
                whole[axis] *= count
                self.shapes[key], self._axes[key] = torch.Size(whole), axis

    def read(self, name: str) -> Tensor:
        """One tensor: a view of a mapped file, or the shards' slices put together."""
        if self._mapped > MAPPED_BYTES:
            self._open.clear()
            self._mapped = 0
        axis = self._axes.get(name)
        homes = self._homes[name] if axis is not None else self._homes[name][:1]
        slices = [self._tensors(file)[raw] for file, raw in homes]
        self._mapped += sum(tensor.nbytes for tensor in slices)
        if axis is None:
            return slices[0]
        merged = torch.cat(slices, axis)
        if merged.shape != self.shapes[name]:
            raise CheckpointError(
                f"{homes[0][0]}: {name} merges to {tuple(merged.shape)}; expected "
                f"{tuple(self.shapes[name])}, equal slices in every shard"
            )
        return merged

    def _tensors(self, file: Path) -> dict[str, Tensor]:
        if file not in self._open:
            self._open[file] = load_pth(file)
        return self._open[file]

    def params(self) -> dict[str, Any]:
        """What ``params.json`` beside the files says.

        Raises:
            CheckpointError: it is missing or no JSON object.
        """
        file = self.folder / PARAMS
        try:
            params = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(
                f"{file}: expected the model's sizes (dim, n_layers, n_heads, multiple_of, "
                "norm_eps); found no file. Put it there, or pass params=…"
            ) from error
        except ValueError as error:
            raise CheckpointError(f"{file}: expected JSON; found {error}") from error
        if not isinstance(params, dict):
            raise CheckpointError(f"{file}: expected a JSON object; found {params!r}")
        return params


def split_axis(key: str) -> int | None:
    """The axis along which shards divide a weight, or None where each holds all of it.

    Args:
        key: published, without prefix.

    Example:
        >>> split_axis("layers.0.attention.wo.weight"), split_axis("norm.weight")
        (1, None)
    """
    inner = _IN_LAYERS.fullmatch(key)
    return _SPLIT.get(inner.group(1) if inner else key.removesuffix(".weight"))


def load_pth(file: Path, inside: str = "") -> dict[str, Tensor]:
    """One ``.pth`` file, mapped and unpickled as tensors and plain data only.

    Args:
        file: written by ``torch.save``; files of PyTorch before 1.6 cannot be mapped and are read.
        inside: take the weights from under this key, if it is there.

    Raises:
        CheckpointError: not such a file, or something other than named tensors in it.
    """
    try:
        state = torch.load(
            file, map_location="cpu", mmap=zipfile.is_zipfile(file), weights_only=True
        )
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        said = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{file}: expected weights saved by torch; found {said}") from error
    if isinstance(state, dict) and inside in state:
        state = state[inside]
    if not isinstance(state, dict):
        kind = type(state).__name__
        raise CheckpointError(f"{file}: expected a state dict; found {kind}")
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{file}: expected names and tensors; found {key!r} of type {type(value).__name__}"
            )
    return state


def _find(path: Path) -> list[list[Path]]:
    """The parts of every shard, in order."""
    if path.is_file():
        _check_alone(path)
        return [[path]]
    files = sorted(path.glob("*.pth")) if path.is_dir() else []
    if not files:
        raise CheckpointError(f"{path}: expected a .pth file or a folder of them; found none")
    named = [(file, match) for file in files if (match := _NAME.fullmatch(file.name))]
    if not named:
        return [files]
    shards: dict[int, dict[int, Path]] = {}
    wholes = {int(match["of"] or 0) for _, match in named}
    for file, match in named:
        shards.setdefault(int(match["shard"]), {})[int(match["part"] or -1)] = file
    wanted = max(max(wholes), len(shards))
    _check_complete(path, shards, wanted if len(wholes) == 1 else 0)
    return [[shards[n][part] for part in sorted(shards[n])] for n in sorted(shards)]


def _check_complete(path: Path, shards: Mapping[int, Mapping[int, Path]], wanted: int) -> None:
    """Shards 0 to N − 1, each whole or in parts 0 to M."""
    if sorted(shards) != list(range(wanted)):
        found = ", ".join(sorted(f.name for parts in shards.values() for f in parts.values())[:6])
        expected = f"shards 00 to {wanted - 1:02d}" if wanted else "the shards of one checkpoint"
        raise CheckpointError(f"{path}: expected {expected}; found {found}")
    for parts in shards.values():
        numbers = sorted(parts)
        if numbers not in ([-1], list(range(len(numbers)))):
            found = ", ".join(parts[n].name for n in numbers)
            raise CheckpointError(
                f"{path}: expected one whole file or all of its parts .s0, .s1, …; found {found}"
            )


def _check_alone(file: Path) -> None:
    """A file given by itself must not be a piece of something."""
    match = _NAME.fullmatch(file.name)
    if match is None:
        return
    others = [f.name for f in file.parent.glob("consolidated.*.pth") if f.name != file.name]
    divided = match["part"] is not None or int(match["of"] or 1) > 1
    if divided or (match["of"] is None and others):
        raise CheckpointError(
            f"{file}: expected a whole checkpoint; found one of several files. "
            f"Give the folder: {file.parent}"
        )
