"""The one table of modalities: built-in files, other packages' entry points, the user's own."""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from typing import Any, TypeVar

from onellm.errors import ConfigError
from onellm.modality import Modality
from onellm.spelling import did_you_mean

ENTRY_POINT_GROUP = "onellm.modalities"

_MODALITIES: dict[str, type[Modality]] = {}
_discovered = False

M = TypeVar("M", bound=type[Modality])


def register_modality(cls: M) -> M:
    """Class decorator that makes a :class:`Modality` known under its ``name``.

    Raises:
        ConfigError: another class already has that name, or a class attribute is missing.

    Example:
        >>> @onellm.register_modality
        ... class Tactile(onellm.Modality):
        ...     name, suffixes = "tactile", (".npy",)
        ...     caption_prompt = "Describe the touch."
    """
    missing = [a for a in ("name", "suffixes", "caption_prompt") if not hasattr(cls, a)]
    if missing:
        raise ConfigError(f"modality class {cls.__name__} lacks {', '.join(missing)}")
    old = _MODALITIES.get(cls.name)
    if old is not None and (old.__module__, old.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ConfigError(
            f"modality {cls.name!r} of {cls.__module__} is already registered by {old.__module__}"
        )
    _MODALITIES[cls.name] = cls
    return cls


def _discover() -> None:
    global _discovered
    if _discovered:
        return
    _discovered = True
    try:
        import onellm.tokenizers

        for module in pkgutil.iter_modules(onellm.tokenizers.__path__):
            importlib.import_module(f"onellm.tokenizers.{module.name}")
        for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
            found = entry.load()  # importing it runs the decorator, if there is one
            if isinstance(found, type) and issubclass(found, Modality):
                register_modality(found)
    except BaseException:
        _discovered = False  # or the next call would see half a registry without an error
        raise


def modality_classes() -> dict[str, type[Modality]]:
    """All registered modalities by name, in order of registration."""
    _discover()
    return dict(_MODALITIES)


def get_modality(name: str, **options: Any) -> Modality:
    """Build a modality with options; published names are accepted too.

    Args:
        name: registered or published name.
        **options: fields of the modality's class.

    Raises:
        ConfigError: unknown name or option, with the nearest spelling.
    """
    from onellm.config import parse

    classes = modality_classes()
    aliases = {c.published_name: n for n, c in classes.items() if c.published_name}
    key = name if name in classes else aliases.get(name, name)
    if key not in classes:
        raise ConfigError(f"unknown modality {name!r}.{did_you_mean(name, classes)}")
    return parse(classes[key], options, where=f"modalities.{key}")
