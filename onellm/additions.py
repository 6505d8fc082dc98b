"""What was added to a model, saved alone: new modalities, or a LoRA of its LLM.

A modality's own weights (tokenizer, positions, queries, projections, router, tags) are some 19 MB
in 16 bits at the published sizes; the model that they were added to is 15 GB. The folder holds
``additions.json`` and ``additions.safetensors``, and peft's own files for the LoRA.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onellm
from onellm.errors import CheckpointError, ConfigError, MissingExtra
from onellm.model import OneLLM, OneLLMConfig
from onellm.slots import Joined, Slots, StateDict, check_fit, empty_parameters, weights_of
from onellm.weight_files import SafetensorsFiles, put, write_text
from onellm.witness import check_witnesses, witnesses

FORMAT_VERSION = 1
FACTS, WEIGHTS, LORA = "additions.json", "additions.safetensors", "lora"

# What the added weights were trained against and would mean nothing without.
_BASE = ("encoder.", "projector.experts.")
# Where a modality's own weights are: each of these has entries by the modality's name.
_HOMES = (
    *("tokenizers", "positions", "frames", "tags.start", "tags.end"),
    *("projector.queries", "projector.proj_in", "projector.proj_out", "projector.routers"),
)


def save_additions(
    model: OneLLM, folder: str | Path, modalities: Iterable[str] = (), *, lora: bool = False
) -> None:
    """Write modalities, a LoRA, or both, without the model around them.

    Args:
        model: the model that has them.
        folder: made if it is not there.
        modalities: registered names.
        lora: write the LoRA that ``peft.get_peft_model`` put around ``model.llm``, or a training
            into it.

    Raises:
        ConfigError: nothing to save, a modality that the model does not have, or no LoRA.
    """
    from safetensors.torch import save_file

    names = [model.modality(name).name for name in modalities]
    if not names and not lora:
        raise ConfigError("nothing to save: name modalities, or set lora=True")
    if lora and not hasattr(model.llm, "peft_config"):
        raise ConfigError("model.llm carries no LoRA: it is added with peft.get_peft_model")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FACTS).unlink(missing_ok=True)
    own = weights_of(model, ("llm.",))
    state = {key: own.read(key).contiguous() for name in names for key in _keys(own, name)}
    temporary = folder / f".{WEIGHTS}.tmp"
    save_file(state, str(temporary), metadata={"format": "pt"})
    put(temporary, folder / WEIGHTS)
    if lora:
        _write_lora(model.llm, folder / LORA)
    facts = {
        "format_version": FORMAT_VERSION,
        "onellm_version": onellm.__version__,
        "modalities": {name: model.config.modalities[name] for name in names},
        "lora": lora,
        "history": model.history,
        "base": {prefix: witnesses(own, prefix) for prefix in _BASE},
    }
    write_text(folder / FACTS, json.dumps(facts, indent=1, default=str))


def _write_lora(llm: Any, folder: Path) -> None:
    """Write a LoRA in peft's own form."""
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import save_file

    if isinstance(llm, PeftModel):
        llm.save_pretrained(folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    # Inside the LLM names lack the prefix that peft's wrapper would give them.
    state = {f"base_model.model.{n}": t for n, t in get_peft_model_state_dict(llm).items()}
    temporary = folder / ".adapter.tmp"
    save_file({n: t.detach().cpu().contiguous() for n, t in state.items()}, str(temporary))
    put(temporary, folder / "adapter_model.safetensors")
    llm.peft_config["default"].save_pretrained(folder)


def _keys(weights: StateDict, modality: str) -> list[str]:
    """Names of a modality's own weights."""
    homes = tuple(f"{home}.{modality}." for home in _HOMES)
    return [key for key in weights.shapes if f"{key}.".startswith(homes)]


def load_additions(base: OneLLM, folder: str | Path, *, strict: bool = True) -> OneLLM:
    """Put saved additions onto a model.

    Args:
        base: the model; it is left as it is, and shares its weights with the result. A LoRA is
            the exception: peft puts it into ``base.llm`` itself.
        folder: what :func:`save_additions` wrote.
        strict: refuse a base whose encoder or experts are not those that the additions were
            trained with.

    Returns:
        the model with the additions; a modality that the base has already is replaced.

    Raises:
        CheckpointError: damaged, of a newer format, or not fitting the base; it names the file.
    """
    folder = Path(folder)
    facts = _read(folder / FACTS)
    own = weights_of(base, ("llm.",))
    for recorded in facts["base"].values() if strict and facts["modalities"] else ():
        check_witnesses(recorded, own, f"{folder / FACTS}: the base model")
    model = _extended(base, own, facts["modalities"], folder / WEIGHTS)
    model.history = [*base.history, *(s for s in facts["history"] if s not in base.history)]
    if facts["lora"]:
        model.llm = _with_lora(model.llm, folder / LORA)
    return model.eval()


def _extended(base: OneLLM, own: StateDict, modalities: dict[str, Any], file: Path) -> OneLLM:
    """A model around the base's own modules' weights, with more modalities."""
    config = base.config.model_copy(update={"modalities": base.config.modalities | modalities})
    with empty_parameters():
        model = OneLLM(OneLLMConfig.model_validate(config.model_dump()), base.llm, base.text)
    replaced = {key for name in modalities for key in _keys(own, name)}
    kept = StateDict({key: own.read(key) for key in own.shapes if key not in replaced})
    weights = Joined(("", kept), ("", SafetensorsFiles([file])))
    slots = Slots(model, ("llm.",))
    check_fit(slots, weights, f"{file}: does not fit the base model")
    for name in slots.shapes:
        tensor = weights.read(name)
        # The base's tensors are shared; the file's are copied out of its mapping.
        shared = name in kept.shapes
        slots.put(name, tensor if shared else tensor.to(base.device, base.dtype, copy=True))
    return model


def _read(file: Path) -> dict[str, Any]:
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{file.parent}: expected saved additions; found no {FACTS}"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{file}: expected JSON; found a damaged file ({error})") from error
    keys = {"format_version", "modalities", "lora", "history", "base"}
    if not isinstance(facts, dict) or not keys <= facts.keys():
        raise CheckpointError(f"{file}: expected facts of additions; found another kind of file")
    if facts["format_version"] > FORMAT_VERSION:
        raise CheckpointError(
            f"{file}: format {facts['format_version']} is newer than this library's "
            f"{FORMAT_VERSION}; upgrade onellm"
        )
    return facts


def _with_lora(llm: Any, folder: Path) -> Any:
    try:
        from peft import PeftModel
    except ImportError as error:
        raise MissingExtra("peft", "lora") from error
    try:
        return PeftModel.from_pretrained(llm, str(folder))
    except (OSError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{folder}: the LoRA does not fit the base's LLM ({said})") from error
