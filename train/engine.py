"""What the loop asks of whatever computes gradients and steps: plain PyTorch or DeepSpeed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from onellm.data.loader import Batch
from onellm.errors import ConfigError
from onellm.slots import StateDict, weights_of
from onellm.train.config import TrainConfig
from onellm.train.objectives import Losses, Objective
from onellm.train.schedule import build_adamw
from onellm.train.state import Saved, TrainState, load_torch_state, read_torch_state

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """This process among the others.

    Args:
        rank: 0 ≤ rank < world.
        world: number of processes.
        local_rank: among those of this machine; picks the GPU.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0


@dataclass(frozen=True)
class Update:
    """What became of one optimiser step.

    Args:
        norm: of the whole gradient before clipping.
        made: False where it was left out, because the gradient is not finite.
        norms: of the gradient's parts, by the first word of the parameters' names.
    """

    norm: float
    made: bool = True
    norms: Mapping[str, float] = field(default_factory=dict)


class Engine(Protocol):
    """One process's part in the training.

    Attributes:
        objective: the loss, with the model in it.
        rank: of this process.
        world: number of processes.
    """

    objective: Objective
    rank: int
    world: int

    def forward(self, batch: Batch) -> Losses:
        """Losses of a micro-batch."""
        ...

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of a loss; over all processes gradients are summed.

        Args:
            loss: scalar; this process's share of the step's loss.
            last: whether it is the step's last pass.
        """
        ...

    def step(self, lr: float) -> Update:
        """Clip, update, forget the gradients; leave the update out if they are not finite.

        Args:
            lr: learning rate of this step.
        """
        ...

    def sum(self, values: Tensor) -> Tensor:
        """Sum of a small float64 tensor over processes."""
        ...

    def share(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        ...

    def state(self) -> TrainState:
        """This process's share of trained parameters and optimiser state."""
        ...

    def load(self, saved: Saved) -> None:
        """Put back a state, whichever engine and number of processes it is from.

        Raises:
            CheckpointError: it is of other parameters.
        """
        ...

    def gathered(self, parameters: Iterable[nn.Parameter]) -> AbstractContextManager[Any]:
        """Within it, these parameters are whole on every process."""
        ...

    def weights(self) -> StateDict | None:
        """All weights of the model, on the first process; every process must call it."""
        ...

    def barrier(self) -> None:
        """Wait for all processes."""
        ...

    def close(self) -> None:
        """Leave the process group."""
        ...


class PlainEngine:
    """One process and PyTorch's AdamW.

    Args:
        objective: the loss.
        config: optimiser and number type.
        device: where to train.
    """

    rank, world = 0, 1

    def __init__(self, objective: Objective, config: TrainConfig, device: torch.device) -> None:
        self.objective: Objective = objective.to(device)
        self.device, self.config, self.steps, self.updates = device, config, 0, 0
        self.trained = objective.trained()
        self.optimizer = build_adamw(self.trained.items(), config.optim)

    def forward(self, batch: Batch) -> Losses:
        """Losses of a micro-batch."""
        with self._autocast():
            losses: Losses = self.objective(batch)
        return losses

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = autocast_type(self.config, self.device)
        return torch.autocast(self.device.type, dtype=dtype) if dtype else nullcontext()

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of a loss; one that reaches no trained parameter has none."""
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]

    def step(self, lr: float) -> Update:
        """Clip, update, forget the gradients."""
        for parameter in self.trained.values():
            # AdamW skips parameters without a gradient; ZeRO does not. One rule for both.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norms = part_norms((n, p.grad) for n, p in self.trained.items())
        norm = float(nn.utils.clip_grad_norm_(self.trained.values(), self.config.optim.grad_clip))
        made = math.isfinite(norm)
        if made:
            set_lr(self.optimizer, lr)
            self.optimizer.step()
            self.updates += 1
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        return Update(norm, made, norms)

    def sum(self, values: Tensor) -> Tensor:
        """The values themselves: there is one process."""
        return values

    def share(self, value: T) -> list[T]:
        """The value of the one process."""
        return [value]

    def state(self) -> TrainState:
        """Trained parameters and optimiser state."""
        state = read_torch_state(self.objective, self.optimizer, self.steps)
        state.facts["updates"] = self.updates
        return state

    def load(self, saved: Saved) -> None:
        """Put back what :meth:`state` gave."""
        self.steps, self.updates = saved.step, saved.facts.get("updates", saved.step)
        load_torch_state(self.objective, self.optimizer, saved, self.updates)

    def gathered(self, parameters: Iterable[nn.Parameter]) -> AbstractContextManager[Any]:
        """They are always whole here."""
        return nullcontext()

    def weights(self) -> StateDict:
        """All weights of the model."""
        return weights_of(self.objective.model)

    def barrier(self) -> None:
        """Nothing to wait for."""

    def close(self) -> None:
        """Nothing to leave."""


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to.

    Example:
        >>> part_of("projector.experts.0.wq")
        'projector'
    """
    return name.partition(".")[0]


def part_squares(grads: Iterable[tuple[str, Tensor | None]]) -> dict[str, Tensor]:
    """Squared length of the gradient of each part of the model, scalars in float32.

    Args:
        grads: parameter names with gradients, or parts of them.
    """
    by_part: dict[str, list[Tensor]] = defaultdict(list)
    for name, grad in grads:
        if grad is not None:
            by_part[part_of(name)].append(grad)
    return {
        part: torch.stack([n.float() for n in torch._foreach_norm(found)]).square().sum()
        for part, found in by_part.items()
    }


def part_norms(grads: Iterable[tuple[str, Tensor | None]]) -> dict[str, float]:
    """Length of the gradient of each part of the model."""
    return {part: float(square) ** 0.5 for part, square in part_squares(grads).items()}


def weight_type(config: TrainConfig) -> torch.dtype:
    """The type that a run's weights are read in.

    DeepSpeed makes its float32 masters from 16-bit weights, so reading more would be for nothing;
    and so would be more for weights that will have 4 bits.
    """
    if config.compute.llm_bits is not None:
        return torch.bfloat16
    if config.deepspeed is None or config.dtype in ("float32", "auto"):
        return torch.float32
    return torch.bfloat16 if config.dtype == "bfloat16" else torch.float16


def autocast_type(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    """What matrix products are cast to; None where they run in the type of the weights.

    Args:
        config: the run.
        device: where it is.
    """
    plain = config.deepspeed is None
    wanted = config.dtype == "bfloat16" or (config.dtype == "auto" and bfloat16_is_faster(device))
    return torch.bfloat16 if plain and wanted else None


def bfloat16_is_faster(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 matrices faster than float32 ones.

    GPUs that have the type do; of CPUs those with AMX tiles (measured: docs/lab-notes.md).
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has_tiles = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return device.type == "cpu" and bool(has_tiles())


def set_lr(optimizer: Any, lr: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("factor", 1.0)


def pick_device(local_rank: int = 0) -> torch.device:
    """The GPU of a local rank, or the CPU where there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", local_rank)
    return torch.device("cpu")


def build_engine(objective: Objective, config: TrainConfig, place: Place) -> Engine:
    """The engine a configuration asks for.

    Args:
        objective: the loss, with trainable parameters selected.
        config: the run.
        place: this process among the others.

    Raises:
        ConfigError: several processes without a ``deepspeed`` section.
    """
    if config.deepspeed is not None:
        from onellm.train.zero import DeepSpeedEngine

        return DeepSpeedEngine(objective, config, place)
    if place.world > 1:
        raise ConfigError(f"{place.world} processes need a deepspeed section in the configuration")
    return PlainEngine(objective, config, pick_device(place.local_rank))
