"""Vision towers of open_clip: their sizes and weights, by name or from a file.

OpenAI's towers were trained with QuickGELU, x·σ(1.702x). Loaded into a tower with the exact GELU
they run without an error and answer worse, so the activation follows the weights here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onellm.encoder import Encoder, EncoderConfig
from onellm.errors import CheckpointError, ConfigError
from onellm.published_files import load_pth
from onellm.slots import Slots, StateDict, Weights, check_fit, empty_parameters, fill
from onellm.spelling import did_you_mean
from onellm.weight_files import SafetensorsFiles

_SIZES = ("image_size", "patch_size", "width", "layers", "mlp_ratio")
# Settings of open_clip's towers that leave the plain transformer as it is at these values.
_HARMLESS = {"patch_dropout": None, "output_tokens": None, "pool_type": None, "head_width": None}


@dataclass(frozen=True)
class Tower:
    """A pre-trained vision tower.

    Args:
        config: its sizes and activation.
        weights: under the names of open_clip's ``VisionTransformer``.
    """

    config: EncoderConfig
    weights: Weights


def load_tower(identifier: str) -> Tower:
    """Get a tower's sizes and weights.

    Args:
        identifier: ``MODEL/TAG`` as open_clip lists them, such as ``"ViT-L-14/openai"``, which is
            downloaded; or ``MODEL/FILE`` with weights on disk, of the tower or of the whole CLIP.
            From a file take ``ViT-L-14-quickgelu`` and the like if the weights are OpenAI's: a file
            does not tell.

    Raises:
        ConfigError: unknown model or tag, or a tower of another kind.
        CheckpointError: the weights are missing, damaged, not to be had, or do not fit.
    """
    model, _, source = identifier.partition("/")
    if not source:
        raise ConfigError(f"{identifier}: expected MODEL/TAG or MODEL/FILE, as ViT-L-14/openai")
    described = _model_config(model)
    if Path(source).is_file():
        quick = bool(described.get("quick_gelu", False))
        weights: Weights = _from_file(Path(source))
    else:
        quick, weights = _from_open_clip(model, source, described)
    config = _config(model, described, quick)
    with empty_parameters():
        slots = Slots(Encoder(config).visual)
    check_fit(slots, weights, f"{identifier}: the weights do not fit the tower")
    return Tower(config, weights)


def load_encoder(identifier: str, *, dtype: torch.dtype | None = None, **options: Any) -> Encoder:
    """A ready encoder with pre-trained weights.

    Args:
        identifier: as for :func:`load_tower`.
        dtype: parameter type; left out, that of the weights.
        **options: of :class:`~onellm.encoder.EncoderConfig`: what to read out of the tower.
    """
    tower = load_tower(identifier)
    config = tower.config.model_copy(update=options)
    with empty_parameters():
        encoder = Encoder(EncoderConfig.model_validate(config.model_dump()))
    fill(Slots(encoder.visual), tower.weights, dtype=dtype)
    return encoder


def _model_config(model: str) -> dict[str, Any]:
    import open_clip

    described = open_clip.get_model_config(model)
    if described is None:
        hint = did_you_mean(model, open_clip.list_models())
        raise ConfigError(f"{model!r} is no model of open_clip.{hint}")
    return dict(described)


def _config(model: str, described: Mapping[str, Any], quick_gelu: bool) -> EncoderConfig:
    """Sizes of a plain vision transformer; any other kind of tower is refused."""
    vision = dict(described["vision_cfg"])
    sizes = {key: vision.pop(key) for key in _SIZES if key in vision}
    head = vision.get("head_width", 64)
    other = sorted(key for key, value in vision.items() if value and key not in _HARMLESS)
    if other or not isinstance(sizes.get("layers", 12), int):
        what = ", ".join(other) or "a convolutional tower"
        raise ConfigError(f"{model}: expected a plain vision transformer; found {what}")
    width = sizes.get("width", 768)
    # open_clip's defaults, where its description leaves them out (ours are ViT-L/14's).
    usual = {"image_size": 224, "patch_size": 16, "layers": 12, "width": 768}
    return EncoderConfig(
        **{**usual, **sizes},
        heads=width // head,
        output_dim=described["embed_dim"],
        quick_gelu=quick_gelu,
    )


def _from_open_clip(model: str, tag: str, described: Mapping[str, Any]) -> tuple[bool, Weights]:
    """Weights that open_clip fetches, and whether they were trained with QuickGELU."""
    import open_clip

    known = open_clip.get_pretrained_cfg(model, tag)
    if not known:
        tags = open_clip.list_pretrained_tags_by_model(model)
        listed = ", ".join(tags) or "none"
        raise ConfigError(
            f"{model}: no weights {tag!r}, and no such file.{did_you_mean(tag, tags)} "
            f"There are: {listed}"
        )
    quick = bool(known.get("quick_gelu", described.get("quick_gelu", False)))
    try:
        clip = open_clip.create_model(model, pretrained=tag, force_quick_gelu=quick)
    except (OSError, RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{model}/{tag}: open_clip cannot fetch the weights ({said})"
        ) from error
    return quick, StateDict(clip.visual.state_dict())


def _from_file(file: Path) -> Weights:
    """The tower's weights in a file that may hold the whole CLIP."""
    if file.suffix == ".safetensors":
        files = SafetensorsFiles([file])
        state = {name: files.read(name) for name in files.shapes}
    else:
        state = load_pth(file, inside="state_dict")  # where open_clip's training puts them
    state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    inner: dict[str, Tensor] = {
        key.removeprefix("visual."): tensor
        for key, tensor in state.items()
        if key.startswith("visual.")
    }
    return StateDict(inner or state)
