"""This library's models under lmms-eval, found by its entry points.

``python -m lmms_eval --model onellm --model_args pretrained=DIR --tasks …``. That toolkit knows
pictures, videos and sounds; of the other modalities it has no content type.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onellm.config import StrictModel, load_config
from onellm.errors import BadInput
from onellm.source import Source, suffix_of


def manifests() -> Any:
    """What lmms-eval's entry-point group ``lmms_eval.models`` asks for.

    Raises:
        ImportError: lmms-eval is not installed.
    """
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("onellm", simple_class_path="onellm.eval.lmms_model.OneLLMForLmms")


class ContentTypes(StrictModel):
    """Which modality a content type is.

    Attributes:
        picture: of a Pillow picture.
        clip: of a file with one of its suffixes.
        sound: of samples with their rate, and of a file with one of its suffixes.
    """

    picture: str
    clip: str
    sound: str


def content_types() -> ContentTypes:
    """The packaged ``lmms.yaml``."""
    return load_config(ContentTypes, Path(__file__).parent / "lmms.yaml")


def medium_of(visual: Any, types: ContentTypes) -> tuple[str, Source]:
    """One of our media from what a task of lmms-eval gives.

    Args:
        visual: a Pillow picture, a file's path, samples as ``{"array": …, "sampling_rate": …}``,
            or a decoder of its data sets.
        types: which modality is which.

    Returns:
        (modality, source).

    Raises:
        BadInput: something else.
    """
    from PIL import Image

    from onellm.registry import modality_classes

    if isinstance(visual, Image.Image):
        return types.picture, visual
    if hasattr(visual, "get_all_samples"):  # torchcodec's, in newer versions of datasets
        samples = visual.get_all_samples()
        return types.sound, {"data": samples.data.numpy(), "rate_hz": samples.sample_rate}
    if isinstance(visual, dict) and "array" in visual and "sampling_rate" in visual:
        return types.sound, {"data": visual["array"], "rate_hz": visual["sampling_rate"]}
    if isinstance(visual, str | Path):
        classes = modality_classes()
        for name in (types.picture, types.clip, types.sound):
            if suffix_of(visual) in classes[name].suffixes:
                return name, str(visual)
    raise BadInput(
        str(visual)[:80],
        expected="a picture, a video file or a sound of lmms-eval",
        found=type(visual).__name__,
        hint="Its other content types have no modality here.",
    )
