"""Which numbers of each parameter a ZeRO process owns, and where DeepSpeed keeps them.

ZeRO 1 and 2 lay all parameters of a group end to end and cut the line evenly, so a process owns a
stretch of some parameters and nothing of others. ZeRO 3 cuts every parameter evenly.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from onellm.train.state import adam_state


class Shards(Protocol):
    """One process's stretches of the trained parameters and of what belongs to them."""

    def make_moments(self, updates: int) -> None:
        """Give AdamW its state, empty, as after so many updates."""
        ...

    def start(self, parameter: nn.Parameter) -> int:
        """First number of a parameter that this process owns."""
        ...

    def count(self, parameter: nn.Parameter) -> int:
        """How many numbers of a parameter this process owns."""
        ...

    def read(self, parameter: nn.Parameter, kind: str) -> Tensor:
        """The owned numbers, flat and float32: ``"parameter"`` or the name of a moment."""
        ...

    def write(self, parameter: nn.Parameter, kind: str, values: Tensor) -> None:
        """Overwrite the owned numbers."""
        ...

    def grad(self, parameter: nn.Parameter) -> Tensor | None:
        """The owned numbers of the gradient, between backward and step; None if none is."""
        ...


def shards_of(optimizer: Any, zero: int, rank: int, world: int) -> Shards:
    """The shards of DeepSpeed's optimiser.

    Args:
        optimizer: what ``deepspeed.initialize`` made.
        zero: stage, 1 to 3.
        rank: of this process.
        world: number of processes.
    """
    return EvenShards(optimizer, rank, world) if zero == 3 else LinedUpShards(optimizer)


class LinedUpShards:
    """ZeRO 1 and 2.

    Args:
        optimizer: DeepSpeed's.
    """

    def __init__(self, optimizer: Any) -> None:
        self.zero = optimizer

    def make_moments(self, updates: int) -> None:
        """Give AdamW its state before its first step, so that parameters are linked to all of it.

        DeepSpeed links after the first parameter group has stepped, and misses the others.
        """
        for flat in (p for group in self.zero.optimizer.param_groups for p in group["params"]):
            self.zero.optimizer.state[flat] = adam_state(flat, updates)
        self.zero._lazy_init_hp_params_optimizer_state()
        for group in self.zero.bit16_groups:
            for parameter in group:
                mapping = parameter._hp_mapping
                if mapping is not None:
                    flat = self.zero.single_partition_of_fp32_groups[mapping.param_group_index]
                    mapping.set_optim_state_fragment(flat, self.zero.optimizer.state[flat])

    def start(self, parameter: nn.Parameter) -> int:
        """First owned number."""
        mapping: Any = getattr(parameter, "_hp_mapping", None)
        return 0 if mapping is None else int(mapping.lp_fragment_address.start)

    def count(self, parameter: nn.Parameter) -> int:
        """How many are owned."""
        mapping: Any = getattr(parameter, "_hp_mapping", None)
        return 0 if mapping is None else int(mapping.lp_fragment_address.numel)

    def _fragment(self, parameter: nn.Parameter, kind: str) -> Tensor:
        mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
        fragment: Tensor = mapping.get_hp_fragment(None if kind == "parameter" else kind)
        return fragment

    def read(self, parameter: nn.Parameter, kind: str) -> Tensor:
        """The owned numbers."""
        return self._fragment(parameter, kind) if self.count(parameter) else torch.empty(0)

    def write(self, parameter: nn.Parameter, kind: str, values: Tensor) -> None:
        """Overwrite the owned numbers."""
        self._fragment(parameter, kind).copy_(values)

    def grad(self, parameter: nn.Parameter) -> Tensor | None:
        """The owned numbers of the gradient."""
        mapping: Any = getattr(parameter, "_hp_mapping", None)
        if mapping is None:
            return None
        try:
            grad: Tensor = mapping.get_lp_grad_fragment(parameter._index_in_param_group).flatten()  # type: ignore[attr-defined]
        except (KeyError, IndexError, ValueError, TypeError):
            return None
        address = mapping.lp_fragment_address
        if grad.numel() == parameter.numel() != address.numel:
            grad = grad[address.start : address.start + address.numel]
        return grad


class EvenShards:
    """ZeRO 3.

    Args:
        optimizer: DeepSpeed's.
        rank: of this process.
        world: number of processes.
    """

    def __init__(self, optimizer: Any, rank: int, world: int) -> None:
        self.zero, self.rank, self.world = optimizer, rank, world

    def make_moments(self, updates: int) -> None:
        """Give AdamW its state before its first step, which would make it otherwise."""
        for number, flat in enumerate(self.zero.fp32_partitioned_groups_flat):
            on_disk = self.zero._swappable_optimizer_subgroup(number)
            if on_disk:
                self.zero._optimizer_states_and_gradient_swap_in(number)
            self.zero.optimizer.state[flat] = adam_state(flat, updates)
            if on_disk:
                self.zero._optimizer_states_and_gradient_swap_out(number)

    def _width(self, parameter: nn.Parameter) -> int:
        """Numbers of a process's part, padding of the last one among them."""
        width: int = parameter.ds_tensor.ds_numel  # type: ignore[attr-defined]
        return width

    def start(self, parameter: nn.Parameter) -> int:
        """First owned number."""
        return min(self.rank * self._width(parameter), self._whole(parameter))

    def count(self, parameter: nn.Parameter) -> int:
        """How many are owned."""
        return min(self._width(parameter), self._whole(parameter) - self.start(parameter))

    def _whole(self, parameter: nn.Parameter) -> int:
        whole: int = parameter.ds_numel  # type: ignore[attr-defined]
        return whole

    def read(self, parameter: nn.Parameter, kind: str) -> Tensor:
        """The owned numbers."""
        key = None if kind == "parameter" else kind
        padded: Tensor = self.zero.get_local_fp32_param(parameter, key)
        return padded.flatten()[: self.count(parameter)]

    def write(self, parameter: nn.Parameter, kind: str, values: Tensor) -> None:
        """Overwrite the owned numbers."""
        padded = torch.zeros(self._width(parameter))
        padded[: len(values)] = values
        key = None if kind == "parameter" else kind
        self.zero.set_local_hp_param(padded, parameter, key)

    def grad(self, parameter: nn.Parameter) -> Tensor | None:
        """The owned numbers of the gradient; padding is zero."""
        grad: Tensor | None = self.zero.get_local_fp32_grad_for_param(parameter)
        return grad
