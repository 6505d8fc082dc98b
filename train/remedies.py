"""What to change where a run does not fit its GPU, each change tried before it is named."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from onellm.config import apply_overrides, parse
from onellm.errors import ConfigError
from onellm.train.config import TrainConfig

Estimate = Callable[[TrainConfig], float]
"""A configuration → bytes on each device at the highest moment."""
COMPARED = 8
"""Samples of a pass that are left at least where they are told from each other."""
Overrides = tuple[str, ...]


@dataclass(frozen=True)
class Remedy:
    """A change after which a run fits.

    Args:
        overrides: ``a.b.c=value`` strings, as ``onellm train`` takes them.
        peak: bytes on each device at the highest moment then.
    """

    overrides: Overrides
    peak: float


def remedies(
    config: TrainConfig, world: int, room: float, estimate: Estimate, most: int = 2
) -> list[Remedy]:
    """The cheapest changes after which a run fits.

    Args:
        config: a run that does not.
        world: number of devices.
        room: bytes that tensors can have on each.
        estimate: tells what a changed run takes.
        most: how many to look for.

    Returns:
        the cheapest first, each enough by itself; where none is, several together as one; none
        where that is not enough either.
    """
    found: list[Remedy] = []
    strongest: list[str] = []
    for whole, *parts in _changes(config, world):
        peak = _peak(config, whole, estimate)
        strongest += whole if peak is not None else ()
        if peak is not None and peak > room:
            continue  # nor would a part of it be enough
        for overrides in parts:
            less = _peak(config, overrides, estimate)
            if less is not None and less <= room:
                found.append(Remedy(overrides, less))
                break
        else:
            found += [] if peak is None else [Remedy(whole, peak)]
        if len(found) == most:
            return found
    if not found and len(strongest) > 1:
        peak = _peak(config, tuple(strongest), estimate)
        if peak is not None and peak <= room:
            return [Remedy(tuple(strongest), peak)]
    return found


def _peak(config: TrainConfig, overrides: Overrides, estimate: Estimate) -> float | None:
    """What a changed run takes; None where it would be refused."""
    plain = apply_overrides(copy.deepcopy(config.model_dump(mode="json")), overrides)
    try:
        return estimate(parse(TrainConfig, plain, where="a changed run"))
    except ConfigError:
        return None


def _changes(config: TrainConfig, world: int) -> Iterator[list[Overrides]]:
    """Changes by what they cost, the cheapest first: each whole, then parts of it, as cheap."""
    deepspeed, zero = config.deepspeed, config.deepspeed.zero if config.deepspeed else 0
    compared = config.stage.objective != "lm"  # fewer samples a pass are another task then
    fewer = _fewer(config, world)
    if fewer and not compared:
        yield fewer
    if config.dtype == "float32" and zero:
        yield [("dtype=bfloat16",)]
    parts = [p for p in ("projector", "encoder", "llm") if p not in config.compute.recompute]
    done = list(config.compute.recompute)
    if parts:
        forms = [[*done, *parts], *([*done, part] for part in parts if len(parts) > 1)]
        yield [(f"compute.recompute=[{', '.join(form)}]",) for form in forms]
    if deepspeed is not None and world > 1 and zero < 3:
        yield [(f"deepspeed.zero={stage}",) for stage in (3, 2) if stage > zero]
    if zero and deepspeed is not None and deepspeed.offload.optimizer == "none":
        yield [("deepspeed.offload.optimizer=cpu",)]
    if fewer and compared:
        yield fewer
    if config.stage.lora is None and any(g.startswith("llm") for g in config.stage.trainable):
        yield [("stage.lora={rank: 64, alpha: 128}",)]


def _fewer(config: TrainConfig, world: int) -> list[Overrides]:
    """Fewer samples a pass, the same update in more of them: the fewest, then about halves."""
    if config.batch.tokens:
        return [(f"batch.tokens={config.batch.tokens // n}",) for n in (4, 2)]
    least = 1 if config.stage.objective == "lm" else COMPARED
    most, _ = config.batch.split(world)
    even = [n for n in range(least, most) if not config.batch.size % (n * world)]
    halves = [[n for n in even if n <= most >> k] for k in range(1, most.bit_length())]
    counts = dict.fromkeys(below[-1] for below in halves if below)
    return [(f"batch.per_device={n}",) for n in (*even[:1], *counts)]
