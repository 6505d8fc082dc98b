"""Presets of the quick start: sizes, stages and evaluation, as YAML files in ``onellm/presets``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt

from onellm.config import StrictModel, load_config
from onellm.errors import ConfigError
from onellm.model import OneLLMConfig
from onellm.spelling import did_you_mean

PRESETS = Path(__file__).parent / "presets"


class TinyLLM(StrictModel):
    """A LLaMA of the preset's own, with a tokenizer trained on the data's text.

    Attributes:
        vocab: number of token ids.
        width: of the embeddings.
        layers: number of blocks.
        heads: attention heads per block.
    """

    vocab: PositiveInt = 1024
    width: PositiveInt = 128
    layers: PositiveInt = 2
    heads: PositiveInt = 4


class Evaluation(StrictModel):
    """How the trained model is measured.

    Attributes:
        batch: prompts answered at a time.
        answer_tokens: longest answer to a closed question.
        caption_tokens: longest caption.
    """

    batch: PositiveInt = 64
    answer_tokens: PositiveInt = 12
    caption_tokens: PositiveInt = 20


class Preset(StrictModel):
    """Everything the quick start needs to know.

    Attributes:
        minutes: what it takes on two cores, roughly; shown before it starts.
        llm: ``"smollm2"``, or the sizes of a tiny LLaMA.
        model: encoder, projector, modalities.
        stages: in order; each a training configuration without ``model``, ``out``, ``seed`` and
            ``data.folder``, which the quick start fills in.
        evaluation: the last phase.
    """

    minutes: float
    llm: Literal["smollm2"] | TinyLLM
    model: OneLLMConfig
    stages: list[dict[str, Any]] = Field(min_length=1)
    evaluation: Evaluation = Evaluation()


def preset_names() -> list[str]:
    """Names of the packaged presets."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_preset(name: str) -> Preset:
    """Read a packaged preset, or a YAML file of that form.

    Args:
        name: a packaged name, or the path of a file.

    Raises:
        ConfigError: unknown, with the nearest spelling; or a fault in the file.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else PRESETS / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"unknown preset {name!r}.{did_you_mean(name, preset_names())}")
    return load_config(Preset, path)
