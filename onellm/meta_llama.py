"""Meta's own LLaMA files, read into Hugging Face's LLaMA."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from onellm.errors import CheckpointError, ConfigError
from onellm.published_files import PARAMS, TEXT_MODEL, PublishedFiles
from onellm.published_keys import PublishedAsOurs, compare, llm_places
from onellm.slots import Slots, empty_parameters, fill
from onellm.text import SentencePieceText

W1 = "layers.0.feed_forward.w1.weight"


def load_meta_llama(
    folder: str | Path, *, dtype: torch.dtype | None = None
) -> tuple[nn.Module, SentencePieceText]:
    """Load LLaMA or LLaMA-2 as Meta publishes it.

    Args:
        folder: ``consolidated.NN.pth`` (any number of model-parallel shards), ``params.json`` and
            ``tokenizer.model``.
        dtype: parameter type; left out, that of the word embeddings.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights do not fit ``params.json``.
        ConfigError: a model whose positions are scaled, as from LLaMA 3.1 on.
    """
    files = PublishedFiles(folder)
    params = files.params()
    text = _text(files.folder / TEXT_MODEL)
    layers, heads = (_number(params, key, files.folder) for key in ("n_layers", "n_heads"))
    kv_heads = params.get("n_kv_heads") or heads
    with empty_parameters():
        model = build_llama_from(files.shapes, params, files.folder / PARAMS)
    slots = Slots(model)
    table = list(llm_places(layers, heads, kv_heads))
    compare(table, files, slots.shapes, f"{folder}: the weights do not fit {PARAMS}")
    dtype = dtype or files.dtypes["tok_embeddings.weight"]
    fill(slots, PublishedAsOurs(table, files, slots.shapes), dtype=dtype)
    model.config.dtype = dtype  # type: ignore[union-attr]
    return model.eval(), text


def build_llama_from(
    shapes: Mapping[str, torch.Size], params: Mapping[str, Any], where: Path
) -> nn.Module:
    """A LLaMA of the sizes in ``params.json``.

    Args:
        shapes: of Meta's weights; the vocabulary and the feed-forward width are read off them,
            since ``params.json`` often has −1 for the one and a formula for the other.
        params: what ``params.json`` says.
        where: that file, for messages.
    """
    from onellm.llm import build_llama

    if params.get("use_scaled_rope"):
        raise ConfigError(
            f"{where}: scaled positions (LLaMA 3.1 and later) are not read from Meta's files; "
            "take the Hugging Face version of the model"
        )
    sizes = {key: shapes.get(key) for key in ("tok_embeddings.weight", W1)}
    missing = [key for key, shape in sizes.items() if shape is None]
    if missing:
        raise CheckpointError(f"{where.parent}: no LLaMA weights: missing {', '.join(missing)}")
    return build_llama(
        vocab=shapes["tok_embeddings.weight"][0],
        width=_number(params, "dim", where.parent),
        layers=_number(params, "n_layers", where.parent),
        heads=_number(params, "n_heads", where.parent),
        hidden=shapes[W1][0],
        eps=params.get("norm_eps", 1e-5),
        kv_heads=params.get("n_kv_heads"),
        rope_theta=params.get("rope_theta", 10000.0),
        positions=params.get("max_seq_len", 4096),
    )


def _number(params: Mapping[str, Any], key: str, folder: Path) -> int:
    value = params.get(key)
    if not isinstance(value, int) or value < 1:
        raise CheckpointError(f"{folder / PARAMS}: expected {key}, a whole number; found {value!r}")
    return value


def _text(file: Path) -> SentencePieceText:
    try:
        return SentencePieceText(file)
    except (RuntimeError, OSError) as error:
        raise CheckpointError(
            f"{file}: expected a sentencepiece model, as LLaMA and LLaMA-2 have; found another "
            "kind of file. Take the Hugging Face version of the model"
        ) from error
