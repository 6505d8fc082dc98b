"""A new model out of ready parts: any causal LM and any of open_clip's vision towers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from onellm.clip_tower import load_tower
from onellm.llm import load_llm
from onellm.model import OneLLM, OneLLMConfig
from onellm.projection.upm import UPMConfig
from onellm.registry import modality_classes
from onellm.slots import Slots, check_fit, fill


def assemble(
    llm: str | Path,
    encoder: str = "ViT-L-14/openai",
    *,
    modalities: Iterable[str] | Mapping[str, Mapping[str, Any]] | None = None,
    projector: UPMConfig | None = None,
    prompt_format: str = "plain",
    dtype: torch.dtype = torch.float32,
) -> OneLLM:
    """Put a model together whose projector and tokenizers are still to be trained.

    Args:
        llm: what :func:`onellm.llm.load_llm` takes: a hub id, a folder of Hugging Face's or
            Meta's files, or a ``.gguf`` file.
        encoder: what :func:`onellm.clip_tower.load_tower` takes: ``MODEL/TAG`` or ``MODEL/FILE``.
        modalities: names, or options by name; all that are registered if left out. Those made of
            pictures take the tower's picture size unless their options say otherwise.
        projector: sizes of the projector; the published ones if left out.
        prompt_format: a key of :data:`onellm.prompts.FORMATS`.
        dtype: parameter type of all parts.

    Raises:
        CheckpointError: the LLM or the tower is not to be had.
        ConfigError: unknown names or options, or sizes that do not go together.
    """
    tower = load_tower(encoder)
    language, text = load_llm(llm, dtype=dtype)
    if not isinstance(modalities, Mapping):
        modalities = {name: {} for name in modalities or modality_classes()}
    side = tower.config.image_size
    config = OneLLMConfig(
        encoder=tower.config,
        projector=projector or UPMConfig(),
        modalities={name: _sized(name, options, side) for name, options in modalities.items()},
        prompt_format=prompt_format,
    )
    model = OneLLM(config, language, text)
    for parameter in model.parameters():  # not .to(dtype): rotary frequencies stay in float32
        parameter.data = parameter.data.to(dtype)
    slots = Slots(model.encoder.visual)
    check_fit(slots, tower.weights, encoder)
    fill(slots, tower.weights, dtype=dtype)
    return model.eval()


def _sized(name: str, options: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Options with the tower's picture size, for a modality that uses the tower's positions."""
    cls = modality_classes().get(name)
    if cls is not None and cls.positions == "shared" and "size" in cls.model_fields:
        return {"size": size, **options}
    return dict(options)
