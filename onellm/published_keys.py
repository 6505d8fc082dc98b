"""The key table: where each weight of a published checkpoint goes, and back (spec §2.2).

Reading in either direction is lazy, one weight at a time, so that converting 15 GB takes little
memory. Where a key stands for something that the published forward never reads (CLIP's text tower),
it is dropped by name; any other key must have its place, and every place its key.

Shape legend: D width, E experts, H heads, K head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onellm.slots import Weights, raise_differences

if TYPE_CHECKING:
    from onellm.model import OneLLM

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
        heads: heads of a query or key projection, whose rows must change from interleaved to
            half-split rotary order; 0 for all else.
    """

    official: str
    ours: str
    expert: int | None = None
    heads: int = 0


def llm_places(layers: int, heads: int, kv_heads: int, prefix: str = "") -> Iterator[Place]:
    """The key table of Meta's LLaMA.

    Args:
        layers: number of blocks.
        heads: of the queries.
        kv_heads: of keys and values.
        prefix: in front of Hugging Face's names.
    """
    yield Place("tok_embeddings.weight", f"{prefix}model.embed_tokens.weight")
    yield Place("norm.weight", f"{prefix}model.norm.weight")
    yield Place("output.weight", f"{prefix}lm_head.weight")
    turned = {"attention.wq": heads, "attention.wk": kv_heads}
    for i in range(layers):
        for theirs, ours in _LLM_PARTS.items():
            yield Place(
                f"layers.{i}.{theirs}.weight",
                f"{prefix}model.layers.{i}.{ours}.weight",
                heads=turned.get(theirs, 0),
            )


def places(model: OneLLM, single: str = "", routers: bool = True) -> Iterator[Place]:
    """The key table of a model: every published key it needs, and where it goes.

    Args:
        model: may be empty.
        single: what older files have in place of expert numbers; each expert then gets the same.
        routers: false leaves the routers out.
    """
    heads = model.llm.config.num_attention_heads
    yield from llm_places(model.llm.config.num_hidden_layers, heads, heads, "llm.")
    for name, _ in model.encoder.visual.named_parameters():
        yield Place(f"clip.visual.{name}", f"encoder.visual.{name}")
    for j, block in enumerate(model.projector.experts):
        for name, _ in block.named_parameters():
            part = name if name.endswith("_norm") else _expert_part(name)
            for e in range(model.config.projector.experts):
                yield Place(
                    f"resample_layers.{single or e}.{j}.{part}.weight",
                    f"projector.experts.{j}.{name}",
                    e,
                )
    for modality in model.modalities.values():
        yield from _modality_places(model, modality.name, modality.published_name, routers)


def _expert_part(name: str) -> str:
    return f"feed_forward.{name}" if name in ("w1", "w2", "w3") else f"attention.{name}"


def _modality_places(model: OneLLM, name: str, theirs: str, routers: bool) -> Iterator[Place]:
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
        for layer in ("fc1", "fc2") if routers else ():
            yield Place(
                f"routers.{theirs}.{layer}.{kind}", f"projector.routers.{name}.{layer}.{kind}"
            )


def half_split(weight: Tensor, heads: int) -> Tensor:
    """Reorder the rows of a query or key projection per head: interleaved → half-split rotary.

    Args:
        weight: (H·K, D), rows 2k and 2k + 1 of a head form a rotary pair.
        heads: H.

    Returns:
        the same rows in the order in which Hugging Face's LLaMA pairs row k with k + K/2.
    """
    rows, inner = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, inner)
    return pairs.transpose(1, 2).reshape(rows, inner)


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Undo :func:`half_split`.

    Args:
        weight: (H·K, D), rows k and k + K/2 of a head form a rotary pair.
        heads: H.

    Returns:
        the same rows with pairs side by side, as Meta's LLaMA has them.
    """
    rows, inner = weight.shape
    pairs = weight.reshape(heads, 2, rows // heads // 2, inner)
    return pairs.transpose(1, 2).reshape(rows, inner)


def compare(
    table: list[Place], weights: Weights, shapes: Mapping[str, torch.Size], what: str
) -> None:
    """Raise one error that lists every difference between a checkpoint and a model.

    Args:
        table: of the model.
        weights: published ones.
        shapes: of the model's own weights. Axes of length 1 do not count: published modality
            tokens and tags have some in front.
        what: begins the message.

    Raises:
        CheckpointError: something is missing, unexpected or of another shape.
    """
    known = {place.official for place in table}
    wrong = set()
    for place in table:
        if place.official in weights.shapes:
            want = shapes[place.ours] if place.expert is None else shapes[place.ours][1:]
            got = weights.shapes[place.official]
            if [n for n in got if n != 1] != [n for n in want if n != 1]:
                wrong.add(f"{place.official}: expected {tuple(want)}, found {tuple(got)}")
    raise_differences(
        what,
        missing=known - weights.shapes.keys(),
        unexpected=weights.shapes.keys() - known - DROPPED,
        wrong_shape=wrong,
    )


class PublishedAsOurs:
    """Published weights under our names and in our shapes.

    Args:
        table: of the model; :func:`compare` has passed.
        weights: published ones.
        shapes: of the model's own weights. A name without a place in the table reads as zeros.
    """

    def __init__(
        self, table: list[Place], weights: Weights, shapes: Mapping[str, torch.Size]
    ) -> None:
        self._weights, self.shapes = weights, shapes
        self._places: dict[str, list[Place]] = {name: [] for name in shapes}
        for place in table:
            self._places[place.ours].append(place)
        usual = weights.dtypes[table[0].official]
        self.dtypes = {
            name: weights.dtypes[found[0].official] if found else usual
            for name, found in self._places.items()
        }

    def read(self, name: str) -> Tensor:
        """One tensor; experts are stacked, rotary rows reordered."""
        shape, found = self.shapes[name], self._places[name]
        if not found:
            return torch.zeros(shape, dtype=self.dtypes[name])
        parts = [self._weights.read(place.official) for place in found]
        if found[0].expert is not None:
            return torch.stack(parts).reshape(shape)
        tensor = half_split(parts[0], found[0].heads) if found[0].heads else parts[0]
        return tensor.reshape(shape)


class OursAsPublished:
    """Our weights under the published names and in the published shapes.

    Args:
        table: of the model.
        weights: ours.
        prefix: in front of every name.
    """

    def __init__(self, table: list[Place], weights: Weights, prefix: str = "") -> None:
        self._weights = weights
        self._places = {prefix + place.official: place for place in table}
        self.shapes = {key: self._shape(place) for key, place in self._places.items()}
        self.dtypes = {key: weights.dtypes[place.ours] for key, place in self._places.items()}

    def _shape(self, place: Place) -> torch.Size:
        shape = self._weights.shapes[place.ours]
        shape = shape if place.expert is None else shape[1:]
        return torch.Size([1] * _axes_in_front(place.official) + list(shape))

    def read(self, name: str) -> Tensor:
        """One tensor: an expert's slice, rotary rows in Meta's order."""
        place = self._places[name]
        tensor = self._weights.read(place.ours)
        tensor = tensor if place.expert is None else tensor[place.expert]
        tensor = interleaved(tensor, place.heads) if place.heads else tensor
        return tensor.reshape(self.shapes[name])


def _axes_in_front(key: str) -> int:
    """Axes of length 1 that the published tensors have and ours do not (spec §2.2)."""
    return {"resample_tokens": 1, "start_tag": 2, "end_tag": 2}.get(key.split(".")[0], 0)
