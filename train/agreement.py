"""What all processes of a run must see alike, made sure of before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from onellm.data.order import Part
from onellm.errors import CheckpointError, ConfigError
from onellm.train.engine import Engine

_SLACK = timedelta(minutes=10)  # for the longest step and save, as PyTorch has it for GPUs
_FOR_EVER = timedelta(days=365)


def waiting_time(patience: float) -> timedelta:
    """How long processes wait for one of them before they give the run up.

    Longer than that one waits for a sample: whoever has lost patience names the sample, and who has
    waited for it knows nothing but a connection that timed out.

    Args:
        patience: ``data.patience``, in seconds; 0 for ever.
    """
    return _SLACK + timedelta(seconds=patience) if patience else _FOR_EVER


def check_same_step(engine: Engine, step: int, folder: Path) -> None:
    """Processes that begin at different steps would wait for each other for ever.

    Args:
        engine: of this process.
        step: at which it would begin.
        folder: where its checkpoints are.

    Raises:
        CheckpointError: they would.
    """
    seen = engine.share(step)
    if len(set(seen)) > 1:
        raise CheckpointError(
            f"{folder}: process {engine.rank} sees a checkpoint of step {step}, process "
            f"{_other(seen, engine.rank)} one of step {seen[_other(seen, engine.rank)]}; 'out' "
            "must be a folder that all machines share"
        )


def check_same_data(engine: Engine, parts: Sequence[Part]) -> None:
    """Each process draws for itself, so all must draw from the same.

    Args:
        engine: of this process.
        parts: what it draws from.

    Raises:
        ConfigError: one of them has found more, or other, samples than another.
    """
    seen = engine.share([(part.name, part.size) for part in parts])
    if all(own == seen[0] for own in seen):
        return
    other = _other(seen, engine.rank)
    mine, theirs = (dict(seen[rank]) for rank in (engine.rank, other))
    name = next(n for n in {**mine, **theirs} if mine.get(n) != theirs.get(n))
    raise ConfigError(
        f"data: {name} has {mine.get(name, 0)} samples in process {engine.rank} and "
        f"{theirs.get(name, 0)} in process {other}: all machines must be able to read the same "
        "files (onellm data check, on each of them)"
    )


def _other(seen: Sequence[object], rank: int) -> int:
    """A process that has seen something else than ours."""
    return next(other for other, value in enumerate(seen) if value != seen[rank])
