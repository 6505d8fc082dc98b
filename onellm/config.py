"""Configuration: pydantic models, YAML files, dotted overrides, errors that offer a spelling."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from onellm.errors import ConfigError
from onellm.spelling import did_you_mean

C = TypeVar("C", bound=BaseModel)


class StrictModel(BaseModel):
    """Base of every configuration: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def parse(schema: type[C], data: Mapping[str, Any], *, where: str) -> C:
    """Validate plain data against a schema.

    Args:
        schema: a pydantic model with ``extra="forbid"``.
        data: nested plain data.
        where: the file or section, for the error message.

    Raises:
        ConfigError: one line per fault, each with the dotted path of the key.
    """
    try:
        return schema.model_validate(dict(data))
    except ValidationError as error:
        lines = [_explain(schema, e) for e in error.errors()]
        raise ConfigError(f"{where}: " + "; ".join(lines)) from error


def _explain(schema: type[BaseModel], error: Any) -> str:
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "value_error":  # a validator of ours, which says what it found
        return f"{path}: {error['ctx']['error']}" if path else str(error["ctx"]["error"])
    if error["type"] != "extra_forbidden":
        return f"{path}: {error['msg']} (found {error.get('input')!r})"
    known = _keys_at(schema, error["loc"][:-1])
    return f"unknown key {path!r}.{did_you_mean(str(error['loc'][-1]), known)}"


def _keys_at(schema: Any, loc: Iterable[Any]) -> list[str]:
    """Field names that would have been accepted at a place, found by walking annotations."""
    for part in loc:
        if isinstance(schema, type) and issubclass(schema, BaseModel):
            field = schema.model_fields.get(str(part))
            if field is not None:
                schema = field.annotation
        schema = _first_model(schema) or schema
    model = _first_model(schema)
    return list(model.model_fields) if model else []


def _first_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _first_model(inner)
        if found is not None:
            return found
    return None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        ConfigError: missing, unreadable or no mapping.
    """
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        near = did_you_mean(Path(path).name, (p.name for p in Path(path).parent.glob("*.y*ml")), "")
        raise ConfigError(f"{path}: expected a YAML file; found no such file.{near}") from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"{path}: expected a YAML file; it cannot be read ({reason})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML ({error})") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping of keys, found {type(data).__name__}")
    return data


def apply_overrides(data: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Apply ``a.b.c=value`` overrides; values are read as YAML.

    Example:
        >>> apply_overrides({"optim": {"lr": 1e-4}}, ["optim.lr=2e-4"])
        {'optim': {'lr': 0.0002}}
    """
    result = _deep_copy(data)
    for override in overrides:
        path, sep, text = override.partition("=")
        if not sep or not path:
            raise ConfigError(f"override {override!r}: expected key.path=value")
        node = result
        *parents, last = path.split(".")
        for part in parents:
            child = node.setdefault(part, {})
            if not isinstance(child, dict):
                raise ConfigError(f"override {override!r}: {part!r} is not a section")
            node = child
        try:
            node[last] = _scalar(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"override {override!r}: not valid YAML ({error})") from error
    return result


def _scalar(text: str) -> Any:
    """Read an override's value as YAML, and ``2e-4`` as the number YAML 1.1 does not see in it."""
    value = yaml.safe_load(text)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _deep_copy(data: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _deep_copy(v) if isinstance(v, Mapping) else v for k, v in data.items()}


def load_config(schema: type[C], path: str | Path, overrides: Iterable[str] = ()) -> C:
    """Read a YAML file, apply overrides and validate.

    Args:
        schema: the pydantic model to build.
        path: a YAML file.
        overrides: ``a.b.c=value`` strings.
    """
    return parse(schema, apply_overrides(read_yaml(path), overrides), where=str(path))
