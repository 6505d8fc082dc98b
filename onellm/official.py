"""Published checkpoints → our model, strictly.

What a checkpoint does not record (its sizes beside the weights, the number of heads) comes from
``params.json`` and from the constants of the published code; everything else is read off the
weights' shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onellm.config import parse
from onellm.encoder import EncoderConfig
from onellm.errors import CheckpointError, ConfigError
from onellm.llm import build_llama
from onellm.model import OneLLM, OneLLMConfig
from onellm.projection.experts import hidden_width
from onellm.projection.upm import UPMConfig
from onellm.published_files import PREFIX, TEXT_MODEL, PublishedFiles
from onellm.published_keys import Place, PublishedAsOurs, compare, places
from onellm.registry import modality_classes
from onellm.slots import Slots, StateDict, Weights, empty_parameters, fill
from onellm.text import SentencePieceText, TextTokenizer

UPM_HEADS = 16  # not recorded in any shape; the published code has it as a literal (spec §1.5)
CLIP_HEAD_WIDTH = 64  # of every tower of CLIP's, where the number of heads is not given


def load_official(
    checkpoint: str | Path | Mapping[str, Tensor],
    params: Mapping[str, Any] | None = None,
    clip: Mapping[str, Any] | None = None,
    text: TextTokenizer | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    prompt_format: str = "published",
    advance: Callable[[int], Any] | None = None,
) -> OneLLM:
    """Build the published model from its weights.

    No more than the model itself and half a gigabyte is in memory at any time.

    Args:
        checkpoint: a ``.pth`` file; a folder of ``.sN.pth`` parts, of model-parallel shards, or of
            both; or a state dict with the published keys (with or without ``llma.``).
        params: as in ``params.json``: ``dim``, ``n_layers``, ``n_heads``, ``multiple_of``,
            ``norm_eps``; left out, that file is read from beside the weights.
        clip: settings of the vision tower (``width``, ``layers``, ``heads``, ``patch_size``,
            ``image_size``); what is left out is read off the weights, with heads of 64.
        text: the LLM's tokenizer; left out, ``tokenizer.model`` from beside the weights, if any.
        dtype: parameter type; left out, that of the checkpoint's word embeddings.
        device: where the model goes, weight by weight.
        prompt_format: ``"legacy"`` asks as the published demo does, without the space behind
            ``###`` that the weights were trained with.
        advance: called with the number of weights just placed.

    Raises:
        CheckpointError: names every missing, unexpected and wrongly shaped key. A modality none
            of whose keys is there is left out of the model.
        ConfigError: ``params`` or ``clip`` lacks a setting, or has an unknown one.
    """
    weights, params, text, name = open_official(checkpoint, params, text)
    model = build_empty(weights, params, clip or {}, text, prompt_format)
    slots = Slots(model)
    table = published_table(model, weights)
    compare(table, weights, slots.shapes, f"{name} does not fit the published model")
    dtype = dtype or weights.dtypes["tok_embeddings.weight"]
    ours = PublishedAsOurs(table, weights, slots.shapes)
    fill(slots, ours, device=device, dtype=dtype, advance=advance)
    model.llm.config.dtype = dtype
    return model.to(device).eval()


def open_official(
    checkpoint: str | Path | Mapping[str, Tensor],
    params: Mapping[str, Any] | None = None,
    text: TextTokenizer | None = None,
) -> tuple[Weights, dict[str, Any], TextTokenizer | None, str]:
    """Find a checkpoint's weights, sizes and tokenizer, without reading the weights.

    Args:
        checkpoint: as for :func:`load_official`.
        params: as for :func:`load_official`.
        text: as for :func:`load_official`.

    Returns:
        weights, sizes, tokenizer, and what to call the checkpoint in messages.
    """
    if isinstance(checkpoint, Mapping):
        if params is None:
            raise ConfigError("params: a state dict in memory comes without sizes; pass params=…")
        state = {key.removeprefix(PREFIX): tensor for key, tensor in checkpoint.items()}
        return StateDict(state), dict(params), text, "the state dict"
    files = PublishedFiles(checkpoint)
    if text is None and (files.folder / TEXT_MODEL).is_file():
        text = SentencePieceText(files.folder / TEXT_MODEL)
    sizes = files.params() if params is None else dict(params)
    return files, sizes, text, str(checkpoint)


def build_empty(
    weights: Weights,
    params: Mapping[str, Any],
    clip: Mapping[str, Any],
    text: TextTokenizer | None = None,
    prompt_format: str = "published",
) -> OneLLM:
    """A model of the sizes that the weights have, its parameters on the meta device.

    Args:
        weights: published ones; only their names and shapes are read.
        params: as in ``params.json``.
        clip: settings of the vision tower.
        text: the LLM's tokenizer.
        prompt_format: how it is asked.
    """
    shapes = weights.shapes
    absent = [k for k in ("tok_embeddings.weight", "clip.visual.proj") if k not in shapes]
    if absent:
        raise CheckpointError(f"no published OneLLM weights: missing {', '.join(absent)}")
    wanted = ("dim", "n_layers", "n_heads", "multiple_of", "norm_eps")
    lacking = [key for key in wanted if key not in params]
    if lacking:
        raise ConfigError(f"params: missing {', '.join(lacking)}")
    modalities = {
        cls.name: dict(cls.published_options)
        for cls in modality_classes().values()
        if cls.published_name and _is_present(cls.published_name, cls.published_keys, shapes)
    }
    if not modalities or not any(key.startswith("resample_layers.") for key in shapes):
        raise CheckpointError("no published OneLLM weights: no experts or no modality found")
    config = OneLLMConfig(
        encoder=_encoder(shapes, clip),
        projector=_projector(shapes, params["multiple_of"]),
        modalities=modalities,
        prompt_format=prompt_format,
    )
    with empty_parameters():
        llm = build_llama(
            vocab=shapes["tok_embeddings.weight"][0],
            width=params["dim"],
            layers=params["n_layers"],
            heads=params["n_heads"],
            hidden=hidden_width(params["dim"], params["multiple_of"]),
            eps=params["norm_eps"],
        )
        return OneLLM(config, llm, text)


def _encoder(shapes: Mapping[str, torch.Size], clip: Mapping[str, Any]) -> EncoderConfig:
    """The vision tower's sizes: as given, else read off the weights."""
    found: dict[str, Any] = {"output_dim": shapes["clip.visual.proj"][1]}
    conv, table = (shapes.get(f"clip.visual.{k}") for k in ("conv1.weight", "positional_embedding"))
    if conv is not None and table is not None:
        patch = conv[-1]
        found |= {"width": conv[0], "heads": max(1, conv[0] // CLIP_HEAD_WIDTH)}
        found |= {"patch_size": patch, "image_size": patch * math.isqrt(table[0] - 1)}
    blocks = {k.split(".")[4] for k in shapes if k.startswith("clip.visual.transformer.resblocks.")}
    if blocks:
        found["layers"] = len(blocks)
    return parse(EncoderConfig, {**found, **clip}, where="clip")


def _projector(shapes: Mapping[str, torch.Size], multiple_of: int) -> UPMConfig:
    """The projector's sizes, read off the weights."""
    blocks = [k.split(".") for k in shapes if k.startswith("resample_layers.")]
    gates = [s[0] for k, s in shapes.items() if k.startswith("routers.") and "fc2" in k]
    numbers = [int(parts[1]) for parts in blocks if parts[1].isdigit()]
    tokens = next((s for k, s in shapes.items() if k.startswith("resample_tokens.")), None)
    if tokens is None:
        raise CheckpointError("no published OneLLM weights: missing resample_tokens")
    default = UPMConfig()
    return UPMConfig(
        width=tokens[-1],
        queries=tokens[-2],
        experts=1 + max(numbers) if numbers else max(gates, default=default.experts),
        depth=1 + max(int(parts[2]) for parts in blocks),
        heads=UPM_HEADS,
        multiple_of=multiple_of,
    )


def _is_present(theirs: str, keys: Mapping[str, str], shapes: Mapping[str, Any]) -> bool:
    """Whether any key of a modality is in the file; one with only some is an error later."""
    parts = {"positional_embedding", "resample_tokens", "clip_proj1", "clip_proj2"}
    parts |= {"routers", "start_tag", "end_tag"}
    named = any(k.split(".")[0] in parts and k.split(".")[1] == theirs for k in shapes if "." in k)
    return named or any(key in shapes for key in keys)


def published_table(model: OneLLM, weights: Weights) -> list[Place]:
    """The key table of a model for a checkpoint, old or new.

    The oldest files have one projection, under a modality's name, in place of numbered experts:
    it becomes every expert. With equal experts the router changes nothing, so where such a file
    has none, ours become zeros, which weigh all experts alike.

    Args:
        model: may be empty.
        weights: the checkpoint's.
    """
    inner = {k.split(".")[1] for k in weights.shapes if k.startswith("resample_layers.")}
    single = "" if any(part.isdigit() for part in inner) else min(inner)
    routers = not single or any(key.startswith("routers.") for key in weights.shapes)
    return list(places(model, single, routers))
