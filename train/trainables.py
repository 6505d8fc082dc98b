"""What a stage trains: the only place that sets ``requires_grad``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from onellm.errors import ConfigError
from onellm.spelling import did_you_mean

PLACEHOLDER = "{modality}"


def select(model: nn.Module, globs: Sequence[str], modalities: Iterable[str]) -> list[str]:
    """Train the parameters that match, freeze all others.

    Args:
        model: the built model.
        globs: shell patterns over parameter names; ``*`` spans dots, and ``{modality}`` stands
            for each of ``modalities`` in turn.
        modalities: of the stage.

    Returns:
        names of the trained parameters, in the model's order.

    Raises:
        ConfigError: a glob that, after all its expansions, matches no parameter.
    """
    names = [name for name, _ in model.named_parameters()]
    chosen: set[str] = set()
    for glob in globs:
        matched = matches(names, glob, modalities)
        if not matched:
            raise ConfigError(
                f"stage.trainable: {glob!r} matches no parameter.{_nearest(glob, names)}"
            )
        chosen |= matched
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return [name for name in names if name in chosen]


def matches(names: Iterable[str], glob: str, modalities: Iterable[str]) -> set[str]:
    """The names that a glob, or any of its expansions, matches."""
    globs = expand(glob, modalities)
    return {n for n in names if any(fnmatchcase(n, g) for g in globs)}


def expand(glob: str, modalities: Iterable[str]) -> list[str]:
    """A glob for each modality, or the glob itself where it names none.

    Example:
        >>> expand("tags.*.{modality}", ["audio", "imu"])
        ['tags.*.audio', 'tags.*.imu']
    """
    if PLACEHOLDER not in glob:
        return [glob]
    return [glob.replace(PLACEHOLDER, name) for name in modalities]


def _nearest(glob: str, names: Sequence[str]) -> str:
    """Spelling help: by the parts of names at the depth where the glob leaves them."""
    parts = glob.split(".")
    for depth in range(1, len(parts) + 1):
        prefix = ".".join(parts[:depth])
        heads = {".".join(name.split(".")[:depth]) for name in names}
        if PLACEHOLDER not in prefix and not any(fnmatchcase(head, prefix) for head in heads):
            return did_you_mean(prefix, heads if len(heads) < 40 else [])
    return ""
