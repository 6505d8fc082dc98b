"""What changes while training: named tensors, whole or in slices, and a few facts.

Every process holds its share; a checkpoint holds all shares. Whoever reads one asks for tensors by
name, whole or in part, and need not know how many processes wrote them.

A slice is a stretch of a tensor's numbers in memory order: ZeRO divides weights and moments so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from onellm.errors import CheckpointError
from onellm.train.objectives import Objective

MOMENTS = ("exp_avg", "exp_avg_sq")
Shape = tuple[int, ...]


class Saved(Protocol):
    """A training state to go on from."""

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        ...

    @property
    def facts(self) -> Mapping[str, Any]:
        """What is no tensor: ``updates`` made (steps less those left out), ``loss_scale``."""
        ...

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Name → shape of the whole tensor."""
        ...

    def read(self, name: str, start: int = 0, count: int | None = None) -> Tensor:
        """Numbers ``start`` to ``start + count`` of a tensor, flat; all behind it by default."""
        ...

    def whole(self, name: str) -> Tensor:
        """A whole tensor in its shape."""
        ...


@dataclass
class TrainState:
    """One process's share of a training state, on the CPU.

    Args:
        tensors: ``"parameter/<name>"`` in float32, ``"exp_avg/<name>"``, ``"exp_avg_sq/<name>"``
            and ``"buffer/<name>"``; flat where ``slices`` has the name.
        step: optimiser steps done.
        slices: name → (first number, shape of the whole) of those tensors that are slices.
        facts: what is no tensor.
    """

    tensors: dict[str, Tensor]
    step: int
    slices: dict[str, tuple[int, Shape]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, Shape]:
        """Name → shape of the whole tensor."""
        return {
            name: self.slices[name][1] if name in self.slices else tuple(tensor.shape)
            for name, tensor in self.tensors.items()
        }

    def read(self, name: str, start: int = 0, count: int | None = None) -> Tensor:
        """Numbers of a tensor that is here as a whole."""
        if name in self.slices:
            raise CheckpointError(f"{name}: only a slice of it is here")
        flat = self.tensors[name].flatten()
        return flat[start:] if count is None else flat[start : start + count]

    def whole(self, name: str) -> Tensor:
        """A tensor that is here as a whole."""
        return self.read(name).view(self.shapes[name])

    def put_slice(self, name: str, values: Tensor, start: int, shape: Iterable[int]) -> None:
        """Add a stretch of a tensor's numbers; nothing if it is empty."""
        if values.numel():
            self.tensors[name] = values.detach().float().cpu().clone()
            self.slices[name] = start, tuple(shape)


def read_torch_state(
    objective: Objective, optimizer: torch.optim.Optimizer, step: int
) -> TrainState:
    """Training state of a PyTorch optimiser over the parameters themselves.

    Args:
        objective: owns the trained parameters.
        optimizer: owns their moments.
        step: optimiser steps done.
    """
    tensors = {f"buffer/{n}": b.detach().cpu().clone() for n, b in objective.head_buffers().items()}
    for name, parameter in objective.trained().items():
        tensors[f"parameter/{name}"] = parameter.detach().float().cpu().clone()
        moments = optimizer.state.get(parameter, {})
        for key in MOMENTS:
            # A run whose every update was left out has none yet; zeros are where Adam begins.
            moment = moments.get(key, torch.zeros_like(parameter))
            tensors[f"{key}/{name}"] = moment.detach().cpu().clone()
    return TrainState(tensors, step)


@torch.no_grad()
def load_torch_state(
    objective: Objective, optimizer: torch.optim.Optimizer, saved: Saved, updates: int
) -> None:
    """Inverse of :func:`read_torch_state`.

    Args:
        objective: owns the trained parameters.
        optimizer: gets their moments.
        saved: what to put back.
        updates: Adam's own count of steps.
    """
    check_state(objective, saved)
    load_buffers(objective, saved)
    for name, parameter in objective.trained().items():
        parameter.copy_(saved.whole(f"parameter/{name}"))
        optimizer.state[parameter] = adam_state(parameter, updates) | {
            key: saved.whole(f"{key}/{name}").to(parameter.device, copy=True) for key in MOMENTS
        }


def adam_state(parameter: Tensor, updates: int) -> dict[str, Tensor]:
    """AdamW's state of a parameter with empty moments.

    Args:
        parameter: the state is on its device; fused kernels want the count there, too.
        updates: made so far.
    """
    moments = {key: torch.zeros_like(parameter) for key in MOMENTS}
    return {"step": torch.tensor(float(updates), device=parameter.device), **moments}


@torch.no_grad()
def load_buffers(objective: Objective, saved: Saved) -> None:
    """Put back what heads computed once."""
    for name, buffer in objective.head_buffers().items():
        buffer.copy_(saved.whole(f"buffer/{name}"))


def full_shape(parameter: nn.Parameter) -> Shape:
    """Shape of a whole parameter; ZeRO 3 leaves an empty one in its place."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def check_state(objective: Objective, saved: Saved) -> None:
    """Compare a state's tensors with what an objective trains.

    Raises:
        CheckpointError: names or shapes differ; it lists them.
    """
    want = {f"buffer/{n}": tuple(b.shape) for n, b in objective.head_buffers().items()}
    for name, parameter in objective.trained().items():
        for kind in ("parameter", *MOMENTS):
            want[f"{kind}/{name}"] = full_shape(parameter)
    faults = list(_differences(want, saved.shapes))
    if faults:
        raise CheckpointError(
            f"the checkpoint does not fit what this stage trains: {'; '.join(faults[:8])}"
            + (f"; and {len(faults) - 8} more" if len(faults) > 8 else "")
        )


def _differences(want: Mapping[str, Shape], have: Mapping[str, Shape]) -> Iterator[str]:
    yield from (f"missing {n}" for n in sorted(want.keys() - have.keys()))
    yield from (f"unexpected {n}" for n in sorted(have.keys() - want.keys()))
    for name in sorted(want.keys() & have.keys()):
        if tuple(want[name]) != tuple(have[name]):
            yield f"{name}: expected {tuple(want[name])}, found {tuple(have[name])}"
