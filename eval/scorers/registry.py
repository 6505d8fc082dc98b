"""The table of scorers and what they return."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from onellm.errors import BadInput, ConfigError
from onellm.spelling import did_you_mean

Record = Mapping[str, Any]
Records = Sequence[Record]


@dataclass(frozen=True)
class Score:
    """What a scorer makes of a file of answers.

    Args:
        metrics: by name, the primary one first; in percent where the literature prints percent
            (CIDEr times 100, MME in its points).
        primary: name of the metric that stands for the task.
        samples: per record, in the records' order, on a scale of which the primary metric is 100
            times the mean wherever it is a mean: 0 to 1 for answers, 0 to 10 for CIDEr. None
            where the metric leaves the record out or has no value for a single one.
        parsed: per record, what the answer was read as. None is unparsed and counts as wrong.
        unparsed: how many there are of those.
        groups: breakdowns by name: group → value of the primary metric, unless the name says
            another.
        intervals: 95 % intervals, per metric that has one.
        empty: how many answers were empty.
        notes: what the numbers depend on and what is missing, one sentence each.
    """

    metrics: dict[str, float]
    primary: str
    samples: list[float | None]
    parsed: list[str | None]
    unparsed: int
    groups: dict[str, dict[str, float]] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    empty: int = 0
    notes: tuple[str, ...] = ()


Scorer = Callable[..., Score]
S = TypeVar("S", bound=Scorer)
_SCORERS: dict[str, Scorer] = {}
_discovered = False


def scorer(*names: str) -> Callable[[S], S]:
    """Decorator that makes a function of records and options known under some names.

    A function with several names is told by which it was called: it takes it as ``name``.

    Raises:
        ConfigError: a name is taken.
    """

    def register(function: S) -> S:
        for name in names:
            old = _SCORERS.get(name)
            if old is not None and old.__module__ != function.__module__:
                raise ConfigError(f"scorer {name!r} is already registered by {old.__module__}")
            _SCORERS[name] = function
        return function

    return register


def _discover() -> None:
    global _discovered
    if not _discovered:
        import onellm.eval.scorers as package

        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
        _discovered = True


def names() -> list[str]:
    """Names of all scorers."""
    _discover()
    return sorted(_SCORERS)


def _named(name: str) -> Scorer:
    _discover()
    if name not in _SCORERS:
        raise ConfigError(f"unknown scorer {name!r}.{did_you_mean(name, _SCORERS)}")
    return _SCORERS[name]


def describe(name: str) -> str:
    """A scorer's documentation: the shape of its targets, its options and its metrics.

    Raises:
        ConfigError: unknown name, with the nearest spelling.
    """
    return inspect.getdoc(_named(name)) or ""


def score(name: str, records: Records, /, **options: Any) -> Score:
    """Score records.

    Args:
        name: one of :func:`names`.
        records: all answers of one task.
        **options: the scorer's own; see :func:`describe`.

    Raises:
        ConfigError: unknown scorer or option, with the nearest spelling.
        BadInput: no records, or one that lacks what the scorer needs.
    """
    function = _named(name)
    known = list(inspect.signature(function).parameters)[1:]
    for option in options:
        if option not in known or option == "name":
            raise ConfigError(
                f"scorer {name!r} has no option {option!r}.{did_you_mean(option, known)}"
            )
    if not records:
        raise BadInput(f"scorer {name}", expected="answers", found="none")
    for record in records:
        if not isinstance(record.get("answer"), str):
            found = "none" if record.get("answer") is None else repr(record["answer"])
            raise BadInput(f"record {record.get('id')}", expected="an answer's text", found=found)
    if "name" in known:
        options["name"] = name
    return function(records, **options)
