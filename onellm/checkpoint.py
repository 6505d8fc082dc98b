"""Saved models: ``config.json``, weights in safetensors, tokenizer and model card in one folder.

The weights of the LLM and of the vision tower can be left out and named by id instead: their
licences may not allow passing them on, and they are most of the bytes. A few of their values are
recorded, so that loading another model under that id is an error and not nonsense.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import onellm
from onellm.clip_tower import load_tower
from onellm.config import parse
from onellm.errors import CheckpointError, ConfigError
from onellm.llm import llm_from_config, load_llm
from onellm.model import OneLLM, OneLLMConfig
from onellm.model_card import model_card
from onellm.model_folder import CONFIG, folder_of, read_model_config
from onellm.quantize import Quantizer, quantize_llm
from onellm.slots import (
    Joined,
    Slots,
    Weights,
    check_fit,
    empty_parameters,
    fill,
    weights_of,
)
from onellm.text import TextTokenizer, load_text_tokenizer
from onellm.weight_files import SHARD_BYTES, open_weights, write_text, write_weights
from onellm.witness import check_witnesses, witnesses

FORMAT_VERSION = 2  # 1 had one file of weights, and neither references nor history
TEXT, CARD = "tokenizer", "README.md"


@dataclass(frozen=True)
class Part:
    """A part of a model whose weights can be left out.

    Args:
        prefix: of its weights' names.
        what: for messages.
    """

    prefix: str
    what: str


PARTS = {"llm": Part("llm.", "the LLM"), "encoder": Part("encoder.", "the vision tower")}


@dataclass
class Description:
    """What ``config.json`` says.

    Args:
        model: everything but the LLM.
        llm: what ``llm.config.to_dict()`` gave.
        dtype: type of the weights, such as ``"bfloat16"``.
        history: finished stages, oldest first: ``{"stage": name, "trained": [names]}``.
        references: part → ``{"id": …, "witnesses": …}`` for the weights that are left out.
    """

    model: OneLLMConfig
    llm: dict[str, Any]
    dtype: str = "float32"
    history: list[dict[str, Any]] = field(default_factory=list)
    references: dict[str, dict[str, Any]] = field(default_factory=dict)

    def as_json(self) -> str:
        """The text of ``config.json``."""
        plain = {
            "format_version": FORMAT_VERSION,
            "onellm_version": onellm.__version__,
            "dtype": self.dtype,
            "history": self.history,
            "references": self.references,
            "model": self.model.model_dump(),
            "llm": self.llm,
        }
        return json.dumps(plain, indent=1, default=str)


def describe(model: OneLLM) -> Description:
    """A model's description, with no weights left out."""
    dtype = str(model.dtype).removeprefix("torch.")
    return Description(model.config, model.llm.config.to_dict(), dtype, list(model.history))


# -- saving -------------------------------------------------------------------------------------


def save_pretrained(
    model: OneLLM,
    folder: str | Path,
    *,
    llm_id: str = "",
    encoder_id: str = "",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a model so that :func:`load_pretrained` gives it back.

    Args:
        model: the model; parameters are written in their own type.
        folder: made if it is not there; each file is written under a temporary name, synced
            and renamed.
        llm_id: leave the LLM's weights out and take them from here when loading: what
            :func:`onellm.llm.load_llm` takes.
        encoder_id: leave the vision tower's weights out and take them from here: what
            :func:`onellm.clip_tower.load_tower` takes, such as ``"ViT-L-14/openai"``.
        shard_bytes: of a weight file; larger models are divided.

    Raises:
        ConfigError: a part that was trained, or carries a LoRA, would be left out or lost; or
            weights have been replaced by ones of fewer bits.
    """
    for name, weight in model.llm.named_parameters():
        # A subclass is what torchao puts in a weight's place; its numbers are rounded for good.
        if type(weight.data) is not torch.Tensor:
            raise ConfigError(
                f"llm.{name} has been quantised ({type(weight.data).__name__}): a quantised model "
                "is for answering. Save it before quantize_llm, or load it anew and save that"
            )
    if hasattr(model.llm, "peft_config"):
        raise ConfigError(
            "the LLM carries a LoRA: save it alone (save_additions(folder, lora=True)), or merge "
            "it first (model.llm = model.llm.merge_and_unload())"
        )
    described = describe(model)
    for part, identifier in (("llm", llm_id), ("encoder", encoder_id)):
        if identifier:
            described.references[part] = _reference(model, part, identifier)
    left_out = tuple(PARTS[part].prefix for part in described.references)
    weights = weights_of(model, left_out)
    write_model(folder, described, weights, model.text, shard_bytes=shard_bytes)


def _reference(model: OneLLM, part: str, identifier: str) -> dict[str, Any]:
    prefix, what = PARTS[part].prefix, PARTS[part].what
    for stage in model.history:
        if any(name.startswith(prefix) for name in stage["trained"]):
            raise ConfigError(
                f"{what} was trained in stage {stage['stage']!r}: {identifier} does not have "
                "these weights, so they cannot be left out"
            )
    return {"id": identifier, "witnesses": witnesses(weights_of(model), prefix)}


def write_model(
    folder: str | Path,
    described: Description,
    weights: Weights,
    text: TextTokenizer | None,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    advance: Callable[[int], Any] | None = None,
) -> list[Path]:
    """Write a model folder from weights that need not be in memory.

    Args:
        folder: made if it is not there.
        described: for ``config.json``.
        weights: all but those left out.
        text: the LLM's tokenizer.
        dtype: type of floating-point weights on disk; None keeps each.
        shard_bytes: of a weight file.
        advance: called with the number of weights just written.

    Returns:
        the weight files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # A crash in the middle leaves a folder without a config, not one of mixed versions.
    (folder / CONFIG).unlink(missing_ok=True)
    files = write_weights(folder, weights, dtype=dtype, shard_bytes=shard_bytes, advance=advance)
    if text is not None:
        text.save(folder / TEXT)
    ids = {part: reference["id"] for part, reference in described.references.items()}
    write_text(
        folder / CARD, model_card(described.model, described.llm, described.history, ids, weights)
    )
    write_text(folder / CONFIG, described.as_json())  # last: a folder with a config is complete
    return files


def push_to_hub(model: OneLLM, repo_id: str, *, private: bool = False, **options: Any) -> None:
    """Upload a model and its card to the Hugging Face Hub.

    Args:
        model: the model.
        repo_id: ``owner/name``.
        private: make the repository private if it is new.
        **options: as for :func:`save_pretrained`.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, **options)  # before the repository: it may refuse
        api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder)


# -- loading ------------------------------------------------------------------------------------


def load_pretrained(
    path_or_hub_id: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    bits: int = 0,
) -> OneLLM:
    """Load a model that :func:`save_pretrained` wrote.

    Args:
        path_or_hub_id: a folder, or a Hugging Face Hub id.
        device: where to put it, weight by weight.
        dtype: parameter type; left out, each stays as it was saved.
        bits: 8 or 4 give the LLM weights of fewer bits, each as it is loaded, so that they are
            never whole in memory (only where the LLM is not left out); for answering, see
            :func:`onellm.quantize.quantize_llm`.

    Raises:
        ConfigError: another number of bits.
        MissingExtra: ``bits`` without torchao.
        CheckpointError: missing, damaged, of a newer format, or not fitting; it names the file.
            Also where weights were left out and the named id has other ones.
    """
    folder = folder_of(path_or_hub_id)
    described = read_description(folder / CONFIG)
    text = load_text_tokenizer(folder / TEXT) if (folder / TEXT).is_dir() else None
    weights: Weights = open_weights(folder)
    llm = None
    if "llm" in described.references:
        kind = dtype or getattr(torch, described.dtype)
        llm, its_text = load_llm(described.references["llm"]["id"], dtype=kind)
        text = text or its_text
    if "encoder" in described.references:
        tower = load_tower(described.references["encoder"]["id"])
        weights = Joined(("", weights), (f"{PARTS['encoder'].prefix}visual.", tower.weights))
    model = build_described(described, text, llm)
    prefix = PARTS["llm"].prefix
    slots = Slots(model, (prefix,) if llm is not None else ())
    check_fit(slots, weights, f"{folder}: the weights do not fit {CONFIG}")
    quantizer = Quantizer(model.llm, bits, device) if bits else None

    def placed(name: str) -> None:
        if quantizer is not None and name.startswith(prefix):
            quantizer.convert(name.removeprefix(prefix))

    fill(slots, weights, device=device, dtype=dtype, placed=placed)
    own = weights_of(model)
    for part, reference in described.references.items():
        what = f"{folder / CONFIG}: {PARTS[part].what} {reference['id']}"
        check_witnesses(reference["witnesses"], own, what)
    model.to(device).eval()
    if bits and llm is not None:
        quantize_llm(model, bits)
    return model


def build_described(
    described: Description, text: TextTokenizer | None = None, llm: Any = None
) -> OneLLM:
    """An empty model of a description.

    Args:
        described: what ``config.json`` says.
        text: the LLM's tokenizer.
        llm: take this one with its weights; an empty one is built if left out.
    """
    with empty_parameters():
        if llm is None:
            llm = llm_from_config(described.llm, getattr(torch, described.dtype))
        model = OneLLM(described.model, llm, text)
    model.history = list(described.history)
    return model


def read_description(file: Path) -> Description:
    """Read ``config.json``.

    Raises:
        CheckpointError: missing, damaged, of another kind or of a newer format.
        ConfigError: it names an unknown key or a wrong value.
    """
    plain = read_model_config(file)
    if plain.get("format_version", 0) > FORMAT_VERSION:
        raise CheckpointError(
            f"{file}: format {plain['format_version']} is newer than this library's "
            f"{FORMAT_VERSION}; upgrade onellm"
        )
    unknown = plain.get("references", {}).keys() - PARTS.keys()
    if unknown:
        raise CheckpointError(f"{file}: expected references to {list(PARTS)}; found {unknown}")
    return Description(
        parse(OneLLMConfig, plain["model"], where=str(file)),
        plain["llm"],
        plain.get("dtype", "float32"),
        plain.get("history", []),
        plain.get("references", {}),
    )
