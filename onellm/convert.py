"""Published checkpoints to our format and back, one file at a time.

Neither direction has more in memory than the file being written. Both together give the same bits:
rows are reordered and experts stacked, but no value is computed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onellm.checkpoint import (
    CONFIG,
    TEXT,
    Description,
    build_described,
    describe,
    read_description,
    write_model,
)
from onellm.encoder import EncoderConfig
from onellm.errors import CheckpointError, ConfigError
from onellm.model import OneLLM
from onellm.official import CLIP_HEAD_WIDTH, UPM_HEADS, build_empty, open_official, published_table
from onellm.progress import Progress, SilentProgress
from onellm.projection.experts import hidden_width
from onellm.published_files import PARAMS, PREFIX, TEXT_MODEL
from onellm.published_keys import DROPPED, OursAsPublished, PublishedAsOurs, compare, places
from onellm.slots import Slots, check_fit
from onellm.text import SentencePieceText, load_text_tokenizer
from onellm.weight_files import SHARD_BYTES, divide, nbytes, open_weights, put, write_text

PART_BYTES = 1_600_000_000  # the published model then has ten parts, as on the hub


@dataclass
class Conversion:
    """What a conversion did.

    Args:
        files: written weight files, with their sizes in bytes.
        tensors: weights in them.
        parameters: numbers in them.
        dropped: published keys that nothing reads and that were left out.
        notes: what the target format cannot record.
    """

    files: list[tuple[Path, int]]
    tensors: int
    parameters: int
    dropped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def from_published(
    source: str | Path,
    target: str | Path,
    *,
    params: Mapping[str, Any] | None = None,
    clip: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> Conversion:
    """Write a published checkpoint in our format.

    Args:
        source: a ``.pth`` file or a folder of parts or shards.
        target: a new folder.
        params: sizes; ``params.json`` beside the source if left out.
        clip: settings of the vision tower that its weights do not show.
        dtype: type of the weights; that of the source's word embeddings if left out.
        shard_bytes: of a written file.
        progress: told of every file.

    Raises:
        CheckpointError: the source is incomplete or damaged, or does not fit the model.
        ConfigError: the target holds a model already.
    """
    target = _fresh(target)
    weights, sizes, text, name = open_official(source, params)
    model = build_empty(weights, sizes, clip or {}, text)
    shapes = Slots(model).shapes
    table = published_table(model, weights)
    compare(table, weights, shapes, f"{name} does not fit the published model")
    dtype = dtype or weights.dtypes["tok_embeddings.weight"]
    described = describe(model)
    described.dtype = described.llm["dtype"] = str(dtype).removeprefix("torch.")
    progress = progress or SilentProgress()
    progress.phase("converting", len(shapes))
    ours = PublishedAsOurs(table, weights, shapes)
    advance = progress.advance
    files = write_model(
        target, described, ours, text, dtype=dtype, shard_bytes=shard_bytes, advance=advance
    )
    return Conversion(
        [(file, file.stat().st_size) for file in files],
        len(shapes),
        sum(shape.numel() for shape in shapes.values()),
        dropped=sorted(DROPPED & weights.shapes.keys()),
    )


def to_published(
    source: str | Path,
    target: str | Path,
    *,
    dtype: torch.dtype | None = None,
    part_bytes: int = PART_BYTES,
    progress: Progress | None = None,
) -> Conversion:
    """Write a saved model in the published format, for use with the published code.

    CLIP's text tower, which that code has in its files but never reads, is not written.

    Args:
        source: the folder of a saved model with all of its weights.
        target: a new folder: ``consolidated.00-of-01.pth`` or parts of it, ``params.json`` and,
            where the model has LLaMA's, ``tokenizer.model``.
        dtype: type of the weights; as saved if left out.
        part_bytes: of a written file.
        progress: told of every file.

    Raises:
        CheckpointError: the source is no saved model, is damaged, or lacks weights.
        ConfigError: the published format cannot hold the model, or the target holds one already.
    """
    source, target = Path(source), _fresh(target)
    described = read_description(source / CONFIG)
    if described.references:
        left_out = ", ".join(described.references)
        raise CheckpointError(
            f"{source}: expected all weights; {left_out} left out. Load it and save it whole first"
        )
    model = build_described(described)
    params = published_params(model)
    weights = open_weights(source)
    check_fit(Slots(model), weights, f"{source}: the weights do not fit {CONFIG}")
    published = OursAsPublished(list(places(model)), weights, PREFIX)
    target.mkdir(parents=True, exist_ok=True)
    files = _write_parts(target, published, dtype, part_bytes, progress or SilentProgress())
    if (source / TEXT).is_dir():
        text = load_text_tokenizer(source / TEXT)
        if isinstance(text, SentencePieceText):
            text.save(target)
    write_text(target / PARAMS, json.dumps(params))
    return Conversion(
        [(file, file.stat().st_size) for file in files],
        len(published.shapes),
        sum(shape.numel() for shape in published.shapes.values()),
        notes=_notes(model, described, (target / TEXT_MODEL).is_file()),
    )


def _fresh(target: str | Path) -> Path:
    """A target without another model in it, whose files would be mixed with ours."""
    target = Path(target)
    found = [f.name for pattern in ("*.pth", "*.safetensors", CONFIG) for f in target.glob(pattern)]
    if found:
        raise ConfigError(f"{target} holds a model already ({found[0]}); take a new folder")
    return target


def published_params(model: OneLLM) -> dict[str, Any]:
    """``params.json`` of a model.

    Args:
        model: may be empty.

    Raises:
        ConfigError: names all that the published format cannot hold.
    """
    llm, projector, encoder = model.llm.config, model.config.projector, model.config.encoder
    faults = _llm_faults(llm, projector.multiple_of)
    if (projector.heads, projector.gate) != (UPM_HEADS, "sigmoid"):
        faults.append(f"a projector of {projector.heads} heads with a {projector.gate} gate")
    usual = EncoderConfig()
    for key in ("mlp_ratio", "quick_gelu", "select_layer", "select", "post_norm"):
        if getattr(encoder, key) != getattr(usual, key):
            faults.append(f"encoder.{key} = {getattr(encoder, key)}")
    own = [m.name for m in model.modalities.values() if not m.published_name]
    if own:
        faults.append(f"modalities that are not published ({', '.join(own)})")
    if len(model.frames):
        faults.append(f"weighted frames ({', '.join(model.frames)})")
    if faults:
        raise ConfigError(f"the published format cannot hold {'; '.join(faults)}")
    return {
        "dim": llm.hidden_size,
        "n_layers": llm.num_hidden_layers,
        "n_heads": llm.num_attention_heads,
        "multiple_of": projector.multiple_of,
        "norm_eps": llm.rms_norm_eps,
        "vocab_size": -1,  # Meta's way to say: as the tokenizer has it
    }


def _llm_faults(llm: Any, multiple_of: int) -> list[str]:
    """What of an LLM the published format, which is LLaMA-2 7B's, cannot hold."""
    if llm.model_type != "llama":
        return [f"an LLM of type {llm.model_type}, not llama"]
    faults = []
    hidden = hidden_width(llm.hidden_size, multiple_of)
    if llm.intermediate_size != hidden:
        faults.append(f"a feed-forward width of {llm.intermediate_size}, not {hidden}")
    if llm.num_key_value_heads != llm.num_attention_heads:
        faults.append("fewer heads for keys than for queries")
    if llm.tie_word_embeddings:
        faults.append("an output head that is the embeddings")
    # transformers 5 gathers what was rope_theta and rope_scaling.
    rope = getattr(llm, "rope_parameters", None) or {"rope_theta": llm.rope_theta}
    if rope.get("rope_theta") != 10000.0 or rope.get("rope_type", "default") != "default":
        faults.append(f"rotary positions of the kind {rope}")
    return faults


def _notes(model: OneLLM, described: Description, has_text: bool) -> list[str]:
    """What the published format does not record and its code has as constants."""
    notes = []
    width, heads = model.config.encoder.width, model.config.encoder.heads
    if heads * CLIP_HEAD_WIDTH != width:
        notes.append(f"encoder.heads is not recorded: read it back with clip={{'heads': {heads}}}")
    for name, modality in model.modalities.items():
        published = type(modality)(**modality.published_options).model_dump()
        changed = [key for key, value in modality.model_dump().items() if published[key] != value]
        notes += [f"modalities.{name}.{key} is not recorded" for key in changed]
    if described.history:
        notes.append("the training history is not recorded")
    if not has_text:
        notes.append("tokenizer.model is not there: take LLaMA's")
    return notes


def _write_parts(
    folder: Path,
    weights: OursAsPublished,
    dtype: torch.dtype | None,
    part_bytes: int,
    progress: Progress,
) -> list[Path]:
    """Write ``.pth`` files; no more than one is in memory."""
    groups = divide({name: nbytes(weights, name, dtype) for name in weights.shapes}, part_bytes)
    progress.phase("converting", len(weights.shapes))
    files = []
    for number, names in enumerate(groups):
        part = f".s{number}" if len(groups) > 1 else ""
        file = folder / f"consolidated.00-of-01{part}.pth"
        temporary = file.with_name(f".{file.name}.tmp")
        torch.save({name: _own(weights.read(name), dtype) for name in names}, temporary)
        put(temporary, file)
        files.append(file)
        progress.advance(len(names))
    return files


def _own(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A copy: ``torch.save`` writes the whole storage behind a view."""
    to = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    return tensor.to(dtype=to, copy=True).contiguous()
