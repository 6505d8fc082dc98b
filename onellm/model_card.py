"""The model card: ``README.md`` of a saved model, as the Hugging Face Hub shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onellm.model import OneLLMConfig
from onellm.registry import get_modality
from onellm.slots import Weights

_HEAD = """\
---
library_name: onellm
pipeline_tag: any-to-any
tags:
- onellm
- multimodal
---
"""


def model_card(
    config: OneLLMConfig,
    llm: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    references: Mapping[str, str],
    weights: Weights,
) -> str:
    """The text of a model card, from what is known of the model itself.

    Args:
        config: everything but the LLM.
        llm: its Hugging Face configuration.
        history: finished stages.
        references: part → id of the weights that are left out.
        weights: those that are stored.
    """
    stored = sum(shape.numel() for shape in weights.shapes.values())
    name = llm.get("_name_or_path") or llm.get("model_type", "an LLM")
    name = Path(name).name if Path(name).is_absolute() else name  # folders are nobody's business
    sections = [
        _HEAD,
        "# A OneLLM model\n",
        f"A language model that takes {_listed(list(config.modalities))}. "
        f"Its LLM is {name}; {stored:,} parameters are stored here.\n",
        _modalities(config),
        _use(config),
        _training(history),
        _references(references),
        "## Licence\n\nNone is stated here: the weights are bound by the licences of the LLM and "
        "the vision tower that they come from, and of the training data.\n",
    ]
    return "\n".join(section for section in sections if section)


def _modalities(config: OneLLMConfig) -> str:
    rows = ["## What it reads\n", "| modality | files | signal |", "|---|---|---|"]
    for name, options in config.modalities.items():
        modality = get_modality(name, **options)
        shape = " × ".join(str(n) for n in modality.example().shape)
        rows.append(f"| {name} | {', '.join(modality.suffixes)} | {shape} |")
    return "\n".join(rows) + "\n"


def _use(config: OneLLMConfig) -> str:
    name = next(iter(config.modalities), "")
    media = f', media=[("{name}", "FILE")]' if name else ""
    return (
        "## Use\n\n```python\nimport onellm\n\n"
        'model = onellm.OneLLM.from_pretrained("FOLDER_OR_HUB_ID")\n'
        f'print(model.generate("What is this?"{media}))\n```\n'
    )


def _training(history: Sequence[Mapping[str, Any]]) -> str:
    if not history:
        return ""
    rows = ["## Training\n", "| stage | trained weights | of |", "|---|---|---|"]
    for stage in history:
        parts = sorted({str(name).split(".")[0] for name in stage["trained"]})
        rows.append(f"| {stage['stage']} | {len(stage['trained'])} | {', '.join(parts)} |")
    return "\n".join(rows) + "\n"


def _references(references: Mapping[str, str]) -> str:
    if not references:
        return ""
    lines = [f"- {part}: `{identifier}`" for part, identifier in references.items()]
    return (
        "## Weights that are not here\n\nThey are fetched from where they were published, under "
        "their own licences:\n\n" + "\n".join(lines) + "\n"
    )


def _listed(names: list[str]) -> str:
    if len(names) < 2:
        return names[0] if names else "text alone"
    return f"{', '.join(names[:-1])} and {names[-1]}"
