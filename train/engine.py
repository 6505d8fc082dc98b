"""What the loop asks of whatever computes gradients and steps: plain PyTorch or DeepSpeed."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from onellm.data.loader import Batch
from onellm.errors import CheckpointError, ConfigError
from onellm.train.config import TrainConfig
from onellm.train.objectives import Losses, Objective
from onellm.train.schedule import build_adamw

MOMENTS = ("exp_avg", "exp_avg_sq")


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


@dataclass
class TrainState:
    """Everything that changes while training, whole and on the CPU, whichever engine made it.

    Args:
        tensors: ``"parameter/<name>"`` in float32, ``"exp_avg/<name>"``, ``"exp_avg_sq/<name>"``
            and ``"buffer/<name>"``.
        step: optimiser steps done.
    """

    tensors: dict[str, Tensor]
    step: int


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

    def step(self, lr: float) -> float:
        """Clip, update, forget the gradients.

        Args:
            lr: learning rate of this step.

        Returns:
            norm of the whole gradient before clipping.
        """
        ...

    def sum(self, values: Tensor) -> Tensor:
        """Sum of a small float64 tensor over processes."""
        ...

    def state(self) -> TrainState:
        """Trained parameters and optimiser state; every process must call it."""
        ...

    def load(self, state: TrainState) -> None:
        """Put back what :meth:`state` gave, under any engine and number of processes.

        Raises:
            CheckpointError: it is of other parameters.
        """
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
        self.device, self.config, self.steps = device, config, 0
        self.trained = objective.trained()
        self.optimizer = build_adamw(self.trained.items(), config.optim)

    def forward(self, batch: Batch) -> Losses:
        """Losses of a micro-batch."""
        with self._autocast():
            losses: Losses = self.objective(batch)
        return losses

    def _autocast(self) -> AbstractContextManager[Any]:
        wanted = self.config.dtype
        if wanted == "float32" or (wanted == "auto" and not bfloat16_is_faster(self.device)):
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of a loss; one that reaches no trained parameter has none."""
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]

    def step(self, lr: float) -> float:
        """Clip, update, forget the gradients; returns the gradient's norm."""
        for parameter in self.trained.values():
            # AdamW skips parameters without a gradient; ZeRO does not. One rule for both.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norm = nn.utils.clip_grad_norm_(self.trained.values(), self.config.optim.grad_clip)
        set_lr(self.optimizer, lr)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        return float(norm)

    def sum(self, values: Tensor) -> Tensor:
        """The values themselves: there is one process."""
        return values

    def state(self) -> TrainState:
        """Trained parameters and optimiser state."""
        return read_torch_state(self.objective, self.optimizer, self.steps)

    def load(self, state: TrainState) -> None:
        """Put back what :meth:`state` gave."""
        load_torch_state(self.objective, self.optimizer, state)
        self.steps = state.step

    def barrier(self) -> None:
        """Nothing to wait for."""

    def close(self) -> None:
        """Nothing to leave."""


def bfloat16_is_faster(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 matrices faster than float32 ones.

    GPUs that have the type do; of CPUs those with AMX tiles (measured: docs/lab-notes.md).
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    has_tiles = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return device.type == "cpu" and bool(has_tiles())


def set_lr(optimizer: Any, lr: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("factor", 1.0)


def read_torch_state(
    objective: Objective, optimizer: torch.optim.Optimizer, step: int
) -> TrainState:
    """Training state of a PyTorch optimiser over the parameters themselves."""
    tensors = {f"buffer/{n}": b.detach().cpu().clone() for n, b in objective.head_buffers().items()}
    for name, parameter in objective.trained().items():
        tensors[f"parameter/{name}"] = parameter.detach().float().cpu().clone()
        moments = optimizer.state.get(parameter, {})
        for key in MOMENTS:
            if key in moments:
                tensors[f"{key}/{name}"] = moments[key].detach().cpu().clone()
    return TrainState(tensors, step)


@torch.no_grad()
def load_torch_state(
    objective: Objective, optimizer: torch.optim.Optimizer, state: TrainState
) -> None:
    """Inverse of :func:`read_torch_state`."""
    check_state(objective, state)
    for name, buffer in objective.head_buffers().items():
        buffer.copy_(state.tensors[f"buffer/{name}"])
    for name, parameter in objective.trained().items():
        parameter.copy_(state.tensors[f"parameter/{name}"])
        optimizer.state[parameter] = {"step": torch.tensor(float(state.step))} | {
            key: state.tensors[f"{key}/{name}"].to(parameter.device, copy=True) for key in MOMENTS
        }


def check_state(objective: Objective, state: TrainState) -> None:
    """Compare a state's tensors with what an objective trains.

    Raises:
        CheckpointError: names or shapes differ; it lists them.
    """
    want = {f"buffer/{n}": b.shape for n, b in objective.head_buffers().items()}
    for name, parameter in objective.trained().items():
        want |= {f"{kind}/{name}": parameter.shape for kind in ("parameter", *MOMENTS)}
    have = {name: tensor.shape for name, tensor in state.tensors.items()}
    faults = [f"missing {n}" for n in sorted(want.keys() - have.keys())]
    faults += [f"unexpected {n}" for n in sorted(have.keys() - want.keys())]
    faults += [
        f"{n}: expected {tuple(want[n])}, found {tuple(have[n])}"
        for n in sorted(want.keys() & have.keys())
        if want[n] != have[n]
    ]
    if faults:
        raise CheckpointError(
            f"the checkpoint does not fit what this stage trains: {'; '.join(faults[:8])}"
            + (f"; and {len(faults) - 8} more" if len(faults) > 8 else "")
        )


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
