"""Published checkpoints → our model, strictly (key table: spec §2.2).

Where a key stands for something that the published forward never reads (CLIP's text tower), it is
dropped by name; any other key must have its place, and every place its key.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
from onellm.registry import modality_classes
from onellm.text import TextTokenizer

PREFIX = "llma."
UPM_HEADS = 16  # not recorded in any shape; the published code has it as a literal (spec §1.5)

# The text tower that CLIP left in the state dict (spec §2.2), and LLaMA's recomputable table.
DROPPED = frozenset(
    f"clip.{name}"
    for name in (
        "positional_embedding",
        "text_projection",
        "logit_scale",
        "token_embedding.weight",
        "ln_final.weight",
        "ln_final.bias",
    )
) | {"rope.freqs"}

_LLM_PARTS = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


@dataclass(frozen=True)
class Place:
    """Where one published tensor goes.

    Args:
        official: the published key, without prefix.
        ours: the key in our state dict.
        expert: index on our leading expert axis, or None.
        rotary: True where rows must change from interleaved to half-split rotary order.
    """

    official: str
    ours: str
    expert: int | None = None
    rotary: bool = False


def places(model: OneLLM) -> Iterator[Place]:
    """The key table of a model: every published key it needs, and where it goes."""
    yield Place("tok_embeddings.weight", "llm.model.embed_tokens.weight")
    yield Place("norm.weight", "llm.model.norm.weight")
    yield Place("output.weight", "llm.lm_head.weight")
    for i in range(model.llm.config.num_hidden_layers):
        for theirs, ours in _LLM_PARTS.items():
            rotary = theirs in ("attention.wq", "attention.wk")
            yield Place(
                f"layers.{i}.{theirs}.weight", f"llm.model.layers.{i}.{ours}.weight", rotary=rotary
            )
    for name, _ in model.encoder.visual.named_parameters():
        yield Place(f"clip.visual.{name}", f"encoder.visual.{name}")
    for j, block in enumerate(model.projector.experts):
        for name, _ in block.named_parameters():
            part = name if name.endswith("_norm") else _expert_part(name)
            for e in range(model.config.projector.experts):
                yield Place(
                    f"resample_layers.{e}.{j}.{part}.weight", f"projector.experts.{j}.{name}", e
                )
    for modality in model.modalities.values():
        yield from _modality_places(model, modality.name, modality.published_name)


def _expert_part(name: str) -> str:
    return f"feed_forward.{name}" if name in ("w1", "w2", "w3") else f"attention.{name}"


def _modality_places(model: OneLLM, name: str, theirs: str) -> Iterator[Place]:
    for key, ours in model.modalities[name].published_keys.items():
        yield Place(key, f"tokenizers.{name}.{ours}")
    if name in model.positions:
        yield Place(f"positional_embedding.{theirs}", f"positions.{name}")
    yield Place(f"resample_tokens.{theirs}", f"projector.queries.{name}")
    for side in ("start", "end"):
        yield Place(f"{side}_tag.{theirs}", f"tags.{side}.{name}")
    for kind in ("weight", "bias"):
        for part, ours in (("clip_proj1", "proj_in"), ("clip_proj2", "proj_out")):
            for index in (0, 1):
                yield Place(
                    f"{part}.{theirs}.{index}.{kind}", f"projector.{ours}.{name}.{index}.{kind}"
                )
        for layer in ("fc1", "fc2"):
            yield Place(
                f"routers.{theirs}.{layer}.{kind}", f"projector.routers.{name}.{layer}.{kind}"
            )


def load_official(
    checkpoint: str | Path | Mapping[str, Tensor],
    params: Mapping[str, Any],
    clip: Mapping[str, Any],
    text: TextTokenizer | None = None,
) -> OneLLM:
    """Build the published model from its weights.

    Args:
        checkpoint: a state dict with the published keys (with or without ``llma.``), a ``.pth``
            file, or a folder of ``.pth`` parts with disjoint keys.
        params: as in ``params.json``: ``dim``, ``n_layers``, ``n_heads``, ``multiple_of``,
            ``norm_eps``.
        clip: settings of the vision tower (``width``, ``layers``, ``heads``, ``patch_size``,
            ``image_size``); what is left out is ViT-L/14's.
        text: the LLM's tokenizer.

    Raises:
        CheckpointError: names every missing, unexpected and wrongly shaped key. A modality none
            of whose keys is there is left out of the model.
    """
    state = _read(checkpoint)
    model = _build(state, dict(params), dict(clip), text)
    table = list(places(model))
    own = model.state_dict()
    _compare(table, state, own)
    with torch.no_grad():
        for place in table:
            target = own[place.ours]
            target = target if place.expert is None else target[place.expert]
            value = state[place.official]
            if place.rotary:
                value = half_split(value, params["n_heads"])
            target.copy_(value.reshape(target.shape))
    return model.eval()


def half_split(weight: Tensor, heads: int) -> Tensor:
    """Reorder the rows of a query or key projection per head: interleaved → half-split rotary.

    Args:
        weight: (D, D), rows 2k and 2k + 1 of a head form a rotary pair.
        heads: number of heads.

    Returns:
        the same rows in the order in which Hugging Face's LLaMA pairs row k with k + K/2.
    """
    rows, inner = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, inner)
    return pairs.transpose(1, 2).reshape(rows, inner)


def _read(checkpoint: str | Path | Mapping[str, Tensor]) -> dict[str, Tensor]:
    if isinstance(checkpoint, Mapping):
        parts = [dict(checkpoint)]
    else:
        path = Path(checkpoint)
        files = sorted(path.glob("*.pth")) if path.is_dir() else [path]
        if not files or not files[0].is_file():
            raise CheckpointError(f"{path}: expected a .pth file or a folder of them; found none")
        parts = [_load(f) for f in files]
    state: dict[str, Tensor] = {}
    for part in parts:
        for key, value in part.items():
            name = key.removeprefix(PREFIX)
            if name in state:
                raise CheckpointError(
                    f"{key} stands in several files: model-parallel shards must be merged first"
                )
            state[name] = value
    return state


def _load(file: Path) -> dict[str, Tensor]:
    """One ``.pth`` file, unpickled as tensors and plain data only."""
    try:
        part = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        said = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{file}: expected weights saved by torch; found {said}") from error
    if not isinstance(part, dict):
        kind = type(part).__name__
        raise CheckpointError(f"{file}: expected a state dict; found {kind}")
    return part


def _build(
    state: Mapping[str, Tensor],
    params: dict[str, Any],
    clip: dict[str, Any],
    text: TextTokenizer | None,
) -> OneLLM:
    """An empty model of the sizes that the weights have."""
    absent = [k for k in ("tok_embeddings.weight", "clip.visual.proj") if k not in state]
    if absent:
        raise CheckpointError(f"no published OneLLM weights: missing {', '.join(absent)}")
    wanted = ("dim", "n_layers", "n_heads", "multiple_of", "norm_eps")
    lacking = [key for key in wanted if key not in params]
    if lacking:
        raise ConfigError(f"params: missing {', '.join(lacking)}")
    dim, multiple_of = params["dim"], params["multiple_of"]
    width = {"output_dim": state["clip.visual.proj"].shape[1]}
    encoder = parse(EncoderConfig, {**clip, **width}, where="clip")
    indices = [k.split(".")[1:3] for k in state if k.startswith("resample_layers.")]
    modalities = {
        cls.name: dict(cls.published_options)
        for cls in modality_classes().values()
        if cls.published_name and _is_present(cls.published_name, cls.published_keys, state)
    }
    if not indices or not modalities:
        raise CheckpointError("no published OneLLM weights: no experts or no modality found")
    tokens = next(v for k, v in state.items() if k.startswith("resample_tokens."))
    projector = UPMConfig(
        width=tokens.shape[-1],
        queries=tokens.shape[-2],
        experts=1 + max(int(e) for e, _ in indices),
        depth=1 + max(int(j) for _, j in indices),
        heads=UPM_HEADS,
        multiple_of=multiple_of,
    )
    llm = build_llama(
        vocab=state["tok_embeddings.weight"].shape[0],
        width=dim,
        layers=params["n_layers"],
        heads=params["n_heads"],
        hidden=hidden_width(dim, multiple_of),
        eps=params["norm_eps"],
    )
    config = OneLLMConfig(
        encoder=encoder, projector=projector, modalities=modalities, prompt_format="published"
    )
    return OneLLM(config, llm, text)


def _is_present(theirs: str, keys: Mapping[str, str], state: Mapping[str, Tensor]) -> bool:
    """Whether any key of a modality is in the file; one with only some is an error later."""
    parts = {"positional_embedding", "resample_tokens", "clip_proj1", "clip_proj2"}
    parts |= {"routers", "start_tag", "end_tag"}
    named = any(k.split(".")[0] in parts and k.split(".")[1] == theirs for k in state if "." in k)
    return named or any(key in state for key in keys)


def _compare(table: list[Place], state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raise one error that lists every difference."""
    known = {place.official for place in table}
    missing = sorted(known - state.keys())
    unexpected = sorted(state.keys() - known - DROPPED)
    shapes = []
    for place in table:
        if place.official in missing:
            continue
        target = own[place.ours]
        want = target.shape if place.expert is None else target.shape[1:]
        got = state[place.official].shape
        if [n for n in got if n != 1] != [n for n in want if n != 1]:
            shapes.append(f"{place.official}: expected {tuple(want)}, found {tuple(got)}")
    faults = [
        f"{len(names)} {what}: {', '.join(names[:12])}{' …' if len(names) > 12 else ''}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("wrong shape", shapes),
        )
        if names
    ]
    if faults:
        raise CheckpointError("published weights do not fit the model: " + "; ".join(faults))
