"""Saved models: ``config.json``, ``model.safetensors`` and the tokenizer in one folder."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

import onellm
from onellm.config import parse
from onellm.errors import CheckpointError
from onellm.llm import llm_from_config
from onellm.model import OneLLM, OneLLMConfig
from onellm.text import load_text_tokenizer

FORMAT_VERSION = 1
CONFIG, WEIGHTS, TEXT = "config.json", "model.safetensors", "tokenizer"


def save_pretrained(model: OneLLM, folder: str | Path) -> None:
    """Write a model so that :func:`load_pretrained` gives it back.

    Args:
        model: the model; parameters are written in their own type.
        folder: made if it is not there; each file is written under a temporary name, synced
            and renamed.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # A crash in the middle leaves a folder without a config, not one of mixed versions.
    (folder / CONFIG).unlink(missing_ok=True)
    tied = _tied(model)
    state = {k: v.contiguous() for k, v in model.state_dict().items() if k not in tied}
    temporary = folder / f".{WEIGHTS}.tmp"
    save_file(state, str(temporary), metadata={"format": "pt"})
    _put(temporary, folder / WEIGHTS)
    if model.text is not None:
        model.text.save(folder / TEXT)
    described = {
        "format_version": FORMAT_VERSION,
        "onellm_version": onellm.__version__,
        "model": model.config.model_dump(),
        "llm": model.llm.config.to_dict(),
    }
    temporary = folder / f".{CONFIG}.tmp"
    temporary.write_text(json.dumps(described, indent=1, default=str), encoding="utf-8")
    _put(temporary, folder / CONFIG)  # last: a folder with a config is complete


def _put(temporary: Path, final: Path) -> None:
    """Sync a finished file to disk, then give it its name."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(final)


def _tied(model: OneLLM) -> set[str]:
    """Names of weights that are another name's tensor (an output head that is the embedding)."""
    seen: dict[int, str] = {}
    tied = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in seen:
            tied.add(name)
        seen.setdefault(id(tensor), name)
    return tied


def load_pretrained(
    path_or_hub_id: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> OneLLM:
    """Load a model that :func:`save_pretrained` wrote.

    Args:
        path_or_hub_id: a folder, or a Hugging Face Hub id.
        device: where to put it.
        dtype: parameter type.

    Raises:
        CheckpointError: missing, damaged, of a newer format, or not fitting; it names the file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = _folder_of(path_or_hub_id)
    described = _read_config(folder / CONFIG)
    config = parse(OneLLMConfig, described["model"], where=str(folder / CONFIG))
    text = load_text_tokenizer(folder / TEXT) if (folder / TEXT).is_dir() else None
    model = OneLLM(config, llm_from_config(described["llm"], dtype), text)
    try:
        state = load_file(str(folder / WEIGHTS))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder / WEIGHTS}: expected safetensors; found a missing or damaged file ({error})"
        ) from error
    _fit(model, state, folder / WEIGHTS)
    model.load_state_dict(state, strict=False)
    return model.to(device=device, dtype=dtype).eval()


def _fit(model: OneLLM, state: dict[str, Any], file: Path) -> None:
    own, tied = model.state_dict(), _tied(model)
    missing = sorted(own.keys() - state.keys() - tied)
    unexpected = sorted(state.keys() - own.keys())
    shapes = sorted(
        f"{k} (expected {tuple(own[k].shape)}, found {tuple(v.shape)})"
        for k, v in state.items()
        if k in own and own[k].shape != v.shape
    )
    faults = [
        f"{len(names)} {what}: {', '.join(names[:8])}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("wrong shape", shapes),
        )
        if names
    ]
    if faults:
        raise CheckpointError(f"{file}: does not fit its config.json: {'; '.join(faults)}")


def _folder_of(place: str | Path) -> Path:
    path = Path(place)
    if path.is_dir():
        return path
    if path.exists() or str(place).count("/") != 1 or str(place).startswith((".", "/", "~")):
        raise CheckpointError(f"{place}: expected a folder with {CONFIG}; found none")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(place)))
    except (OSError, ValueError) as error:  # offline, unknown repository, no access
        raise CheckpointError(f"{place}: no such folder, and no such model on the hub") from error


def _read_config(file: Path) -> dict[str, Any]:
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{file.parent}: expected a saved OneLLM model; found no {CONFIG}"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{file}: expected JSON; found a damaged file ({error})") from error
    if not isinstance(described, dict) or not {"model", "llm"} <= described.keys():
        raise CheckpointError(f"{file}: expected a OneLLM config; found another kind of file")
    if described.get("format_version", 0) > FORMAT_VERSION:
        raise CheckpointError(
            f"{file}: format {described['format_version']} is newer than this library's "
            f"{FORMAT_VERSION}; upgrade onellm"
        )
    return described


def push_to_hub(model: OneLLM, repo_id: str, *, private: bool = False) -> None:
    """Upload a model to the Hugging Face Hub.

    Args:
        model: the model.
        repo_id: ``owner/name``.
        private: make the repository private if it is new.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder)
        api.upload_folder(repo_id=repo_id, folder_path=folder)
