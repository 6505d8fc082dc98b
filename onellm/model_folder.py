"""What can be known of a saved model without loading it: its folder, and the names in its config.

Nothing heavy is imported, so that a mistake on the command line is answered at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from onellm.errors import CheckpointError, ConfigError, plain_reason
from onellm.spelling import did_you_mean, nearest

CONFIG = "config.json"


def folder_of(place: str | Path) -> Path:
    """The folder of a saved model, fetched from the hub if it is an id.

    Raises:
        CheckpointError: there is neither.
    """
    path = Path(place)
    if path.is_dir():
        return path
    _check_hub(str(place))
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(place)))
    except (OSError, ValueError) as error:
        raise _unreachable(str(place), error) from error


def config_of(place: str | Path) -> dict[str, Any]:
    """A saved model's ``config.json``, which alone is fetched if the place is a hub id.

    Raises:
        CheckpointError: there is none, or it is damaged or of another kind.
    """
    path = Path(place)
    return read_model_config((path if path.is_dir() else _fetched(str(place))) / CONFIG)


@cache
def _fetched(place: str) -> Path:
    """A folder with the config of a model on the hub, which is asked once."""
    _check_hub(place)
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(place, CONFIG)).parent
    except (OSError, ValueError) as error:
        raise _unreachable(place, error) from error


def _check_hub(place: str) -> None:
    """Ask the hub for a model once; a download would ask six times, for half a minute.

    Raises:
        CheckpointError: it is no id, there is no such model, or the hub cannot be reached.
    """
    if Path(place).exists() or place.count("/") != 1 or place.startswith((".", "/", "~")):
        raise CheckpointError(f"{place}: expected a folder with {CONFIG}; found none")
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        if not isinstance(try_to_load_from_cache(place, CONFIG), str):
            get_hf_file_metadata(hf_hub_url(place, CONFIG))
    except (HfHubHTTPError, HFValidationError) as error:  # unknown, no model of ours, no access
        raise CheckpointError(f"{place}: no such folder, and no such model on the hub") from error
    except Exception as error:  # of whichever library the hub's goes through
        raise _unreachable(place, error) from error


def _unreachable(place: str, error: Exception) -> CheckpointError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return CheckpointError(f"{place}: no such folder, and the hub cannot be asked ({reason})")


def read_model_config(file: Path) -> dict[str, Any]:
    """Read ``config.json``.

    Raises:
        CheckpointError: missing, damaged, or of another kind.
    """
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{file.parent}: expected a saved OneLLM model; found no {CONFIG}"
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"{plain_reason(error)}; expected a saved OneLLM model's {CONFIG}"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{file}: expected JSON; found a damaged file ({error})") from error
    if not isinstance(plain, dict) or not {"model", "llm"} <= plain.keys():
        raise CheckpointError(f"{file}: expected a OneLLM config; found another kind of file")
    return plain


def modality_names(place: str | Path) -> list[str]:
    """The registered names of a saved model's modalities; see :func:`config_of`."""
    model = config_of(place)["model"]
    names = model.get("modalities") if isinstance(model, dict) else None
    return list(names) if isinstance(names, dict) else []


def check_options(typed: Iterable[str], modalities: Sequence[str], options: Sequence[str]) -> None:
    """Tell misspelt options from modalities.

    Args:
        typed: names that were typed as options.
        modalities: those of the model.
        options: those of the verb.

    Raises:
        ConfigError: one is nearly an option or a modality.
    """
    for name in typed:
        near = None if name in modalities else nearest(name, [*modalities, *options])
        if near is not None:
            raise ConfigError(f"unknown option --{name}. Did you mean --{near}?")


def registered_name(typed: str, modalities: Sequence[str]) -> str:
    """The modality that somebody means, by its registered or its published name.

    Args:
        typed: what was typed.
        modalities: those of the model.

    Raises:
        ConfigError: none of the model's, with the nearest spelling.
    """
    if typed in modalities:
        return typed
    if nearest(typed, modalities) is None:
        # Published names are known to the modalities' classes, which need torch.
        from onellm.registry import modality_classes

        for name, cls in modality_classes().items():
            if name in modalities and typed == cls.published_name:
                return name
    hint = did_you_mean(typed, modalities, f"It has {', '.join(modalities)}.")
    raise ConfigError(f"this model has no modality {typed!r}.{hint}")
