"""Vectors of files for retrieval: media in, an array out.

Shape legend: F files, D width of the LLM.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from onellm.errors import ConfigError
from onellm.source import suffix_of

if TYPE_CHECKING:
    from onellm.model import OneLLM


def modality_of(model: OneLLM, file: str) -> str:
    """The one modality of a model that reads files of this type.

    Raises:
        ConfigError: none, or several, which it names.
    """
    reads = [name for name, kind in model.modalities.items() if suffix_of(file) in kind.suffixes]
    if len(reads) == 1:
        return reads[0]
    if not reads:
        raise ConfigError(f"{file}: none of {', '.join(model.modalities)} reads such a file")
    options = " or ".join(f"--{name} {file}" for name in reads)
    raise ConfigError(f"{file}: several modalities read such a file; say {options}")


def embed_files(
    model: OneLLM,
    files: Sequence[tuple[str, str]],
    *,
    batch_size: int = 16,
    normalize: bool = True,
) -> np.ndarray:
    """A vector for each file; see :meth:`onellm.OneLLM.embed`.

    Args:
        model: the model.
        files: (modality, file) pairs.
        batch_size: files of one pass.
        normalize: divide each vector by its length.

    Returns:
        (F, D) float32, in the files' order.
    """
    width = model.llm.get_input_embeddings().weight.shape[1]
    vectors_FD = np.zeros((len(files), width), dtype=np.float32)
    groups: dict[str, list[int]] = defaultdict(list)
    for index, (name, _) in enumerate(files):
        groups[name].append(index)
    for name, places in groups.items():
        for start in range(0, len(places), batch_size):
            _embed_some(model, name, files, places[start : start + batch_size], vectors_FD)
    if normalize:
        vectors_FD /= np.linalg.norm(vectors_FD, axis=-1, keepdims=True).clip(min=1e-12)
    return vectors_FD


def _embed_some(
    model: OneLLM,
    name: str,
    files: Sequence[tuple[str, str]],
    places: Sequence[int],
    vectors_FD: np.ndarray,
) -> None:
    """Read and embed some files; those of one shape, such as videos of as many frames, together."""
    shapes: dict[torch.Size, list[tuple[int, torch.Tensor]]] = defaultdict(list)
    for place in places:
        signal = model.modality(name).load(files[place][1])
        shapes[signal.shape].append((place, signal))
    for alike in shapes.values():
        x = torch.stack([signal for _, signal in alike])
        rows_BD = model.embed(name, x, normalize=False)
        vectors_FD[[place for place, _ in alike]] = rows_BD.cpu().numpy()


def save_vectors(out: str | Path, vectors_FD: np.ndarray, files: Sequence[tuple[str, str]]) -> None:
    """Write ``vectors`` (F, D), ``files`` (F,) and ``modalities`` (F,) to an ``.npz`` file.

    Args:
        out: the file; it is complete or not there. Its folder is made if it is not there.
        vectors_FD: what :func:`embed_files` gave.
        files: (modality, file) pairs.
    """
    final = Path(out)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.tmp")
    with temporary.open("wb") as stream:
        np.savez(
            stream,
            vectors=vectors_FD,
            files=np.array([file for _, file in files], dtype=np.str_),
            modalities=np.array([name for name, _ in files], dtype=np.str_),
        )
    temporary.replace(final)
