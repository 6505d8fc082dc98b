"""TensorBoard and Weights & Biases, beside ``metrics.jsonl``, which is always written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onellm.errors import MissingExtra
from onellm.train.config import TrainConfig
from onellm.train.metrics import Sink, flat


def open_sinks(config: TrainConfig, start: int = 0) -> list[Sink]:
    """The sinks a run asks for.

    Args:
        config: the run.
        start: optimiser steps already done.

    Raises:
        MissingExtra: a package is not installed.
    """
    sinks: list[Sink] = []
    if config.log.tensorboard:
        sinks.append(TensorBoard(Path(config.out) / "tensorboard", start))
    if config.log.wandb is not None:
        sinks.append(WeightsAndBiases(config.log.wandb, config))
    return sinks


class TensorBoard:
    """Event files.

    Args:
        folder: for them.
        start: steps already done; later ones, of a run that died behind its last checkpoint, are
            not shown any more.
    """

    def __init__(self, folder: Path, start: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtra("tensorboard", "log") from error
        self.writer: Any = SummaryWriter(str(folder), purge_step=start + 1 if start else None)

    def write(self, step: int, record: Mapping[str, Any]) -> None:
        """Write a step's numbers."""
        for name, value in flat(record).items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush the event file."""
        self.writer.close()


class WeightsAndBiases:
    """A run of a project; run again, the same one goes on.

    Args:
        project: its name.
        config: shown with it; its folder's name and place identify the run.
    """

    def __init__(self, project: str, config: TrainConfig) -> None:
        try:
            import wandb
        except ImportError as error:
            raise MissingExtra("wandb", "log") from error
        from onellm.data.order import stable_hash

        out = Path(config.out)
        out.mkdir(parents=True, exist_ok=True)
        self.run: Any = wandb.init(
            project=project,
            name=out.name,
            id=f"{stable_hash(str(out.resolve())):016x}",
            resume="allow",
            dir=str(out),
            config=config.model_dump(mode="json"),
        )

    def write(self, step: int, record: Mapping[str, Any]) -> None:
        """Write a step's numbers."""
        self.run.log(flat(record), step=step)

    def close(self) -> None:
        """Tell that the run is over."""
        self.run.finish()
