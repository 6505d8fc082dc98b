"""The packaged stages and hardware presets, and how a run's configuration is read from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onellm.config import apply_overrides, parse, read_yaml
from onellm.errors import CheckpointError, ConfigError
from onellm.model_folder import folder_of
from onellm.spelling import did_you_mean
from onellm.train.config import IDLE_WITH_DATASETS, TrainConfig

CONFIGS = Path(__file__).parent / "configs"
HARDWARE = Path(__file__).parent / "hardware"
PRESET_KEYS = {"all", "stages", "devices", "gpu"}


@dataclass(frozen=True)
class Machine:
    """What a hardware preset is made for.

    Args:
        devices: number of GPUs.
        gpu: their name, a key of :data:`onellm.train.gpus.GPUS`; empty where it says none.
    """

    devices: int = 1
    gpu: str = ""


def stage_names() -> list[str]:
    """Names of the packaged stage files."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def hardware_names() -> list[str]:
    """Names of the packaged hardware presets."""
    return sorted(path.stem for path in HARDWARE.glob("*.yaml"))


def read_config(
    path: str | Path, overrides: Iterable[str] = (), hardware: str | None = None
) -> TrainConfig:
    """Read a run's configuration.

    Args:
        path: a YAML file, or the name of a packaged stage such as ``"instruct"``.
        overrides: ``a.b.c=value`` strings; they are laid over all else.
        hardware: name of a packaged hardware preset such as ``"1x24gb"``, or a YAML file of that
            form; it is laid over the stage.

    Raises:
        ConfigError: missing file, unknown key or wrong value, each with its dotted path.
    """
    file = _find(path, CONFIGS, "stage", stage_names())
    data, overrides = read_yaml(file), list(overrides)
    if hardware is None:
        return parse(TrainConfig, _overridden(data, overrides), where=str(file))
    name = data.get("stage", {}).get("name", "")
    preset = _read_preset(hardware)
    for layer in (preset.get("all", {}), preset.get("stages", {}).get(name, {})):
        data = overlay(data, layer)
    return parse(TrainConfig, _overridden(data, overrides), where=f"{file} on {hardware}")


def _overridden(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A file's data under overrides; its choice of data or length gives way to another one."""
    keys = {override.partition("=")[0] for override in overrides}
    if len(keys & {"length.steps", "length.epochs"}) == 1:
        data = {**data, "length": {}}
    section = data.get("data")
    if isinstance(section, Mapping):
        if "data.datasets" in keys:
            kept = {k: v for k, v in section.items() if k not in IDLE_WITH_DATASETS}
            data = {**data, "data": kept}
        elif "data.folder" in keys:
            data = {**data, "data": {k: v for k, v in section.items() if k != "datasets"}}
    return apply_overrides(data, overrides)


def read_machine(hardware: str) -> Machine:
    """What a hardware preset is made for.

    Args:
        hardware: name of a packaged hardware preset, or a YAML file of that form.

    Raises:
        ConfigError: there is none, or it has unknown keys.
    """
    preset = _read_preset(hardware)
    return Machine(int(preset.get("devices", 1)), str(preset.get("gpu", "")))


def _read_preset(hardware: str) -> dict[str, Any]:
    preset = read_yaml(_find(hardware, HARDWARE, "hardware preset", hardware_names()))
    strangers = set(preset) - PRESET_KEYS
    if strangers:
        raise ConfigError(
            f"{hardware}: expected the keys {', '.join(sorted(PRESET_KEYS))}; found "
            f"{', '.join(sorted(strangers))}"
        )
    return preset


def starting_folder(config: TrainConfig) -> Path:
    """The folder of the model that a run starts from, fetched if it is a hub id.

    Raises:
        CheckpointError: there is none.
    """
    try:
        return folder_of(config.model)
    except CheckpointError as error:
        hint = "Name the model that the run starts from: model=DIR"
        raise CheckpointError(f"{error}. {hint}") from error


def _find(path: str | Path, folder: Path, what: str, names: list[str]) -> Path:
    file = Path(path)
    if file.is_file():
        return file
    if file.is_dir():
        raise ConfigError(f"{path}: expected the YAML file of a {what}; found a folder")
    if file.suffix:
        beside = [p.name for p in file.parent.glob("*") if p.suffix in (".yaml", ".yml")]
        hint = did_you_mean(file.name, [*beside, *names], f"Packaged are: {', '.join(names)}.")
        raise ConfigError(f"{path}: expected the YAML file of a {what}; found no such file.{hint}")
    file = folder / f"{path}.yaml"
    if not file.exists():
        raise ConfigError(f"unknown {what} {str(path)!r}.{did_you_mean(str(path), names)}")
    return file


def overlay(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Lay nested plain data over other: sections are merged, all else is replaced.

    Example:
        >>> overlay({"batch": {"size": 8, "per_device": 4}}, {"batch": {"per_device": 1}})
        {'batch': {'size': 8, 'per_device': 1}}
    """
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = overlay(old, value) if both else value  # type: ignore[arg-type]
    return merged
