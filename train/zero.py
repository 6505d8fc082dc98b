"""Training with DeepSpeed: its JSON, made from our configuration, and its engine behind ours.

The file is not called ``deepspeed`` because a script run from this folder would then import it in
place of the package.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from onellm.data.loader import Batch
from onellm.errors import ConfigError
from onellm.train.config import TrainConfig
from onellm.train.engine import (
    MOMENTS,
    Place,
    TrainState,
    check_state,
    load_torch_state,
    pick_device,
    read_torch_state,
    set_lr,
)
from onellm.train.objectives import Losses, Objective
from onellm.train.schedule import build_adamw


def deepspeed_json(config: TrainConfig, world: int) -> dict[str, Any]:
    """DeepSpeed's configuration for a run.

    Args:
        config: the run; its ``deepspeed.raw`` is laid over the result.
        world: number of processes.

    Raises:
        ConfigError: batches do not come out even, or ZeRO 2 with mixed micro-batches.
    """
    if config.deepspeed is None:
        raise ConfigError("the configuration has no deepspeed section")
    per_device, passes = config.batch.split(world)
    zero = config.deepspeed.zero
    if zero == 2 and world > 1 and config.batch.same_modality % (per_device * world):
        # ZeRO 2 reduces gradients in the order they arrive, which must be the same everywhere.
        raise ConfigError(
            f"deepspeed.zero=2: set batch.same_modality to a multiple of {per_device * world} "
            f"(batch.per_device x devices), or zero=1; found {config.batch.same_modality}"
        )
    made: dict[str, Any] = {
        "train_batch_size": config.batch.size,
        "train_micro_batch_size_per_gpu": per_device,
        "gradient_accumulation_steps": passes,
        "gradient_clipping": config.optim.grad_clip,
        "zero_optimization": {"stage": zero, "overlap_comm": False},
        "bf16": {"enabled": config.dtype == "bfloat16"},
        "fp16": {"enabled": config.dtype == "float16"},
        "steps_per_print": 2**31,  # the loop has its own log
        "zero_allow_untested_optimizer": True,
    }
    return _overlay(made, config.deepspeed.raw)


def _overlay(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = _overlay(old, value) if both else value  # type: ignore[arg-type]
    return merged


class DeepSpeedEngine:
    """One of several processes under DeepSpeed, ZeRO 0 to 2; gloo where there is no GPU.

    Args:
        objective: the loss.
        config: the run.
        place: this process among the others.
    """

    def __init__(self, objective: Objective, config: TrainConfig, place: Place) -> None:
        settings = deepspeed_json(config, place.world)
        deepspeed, self._environment = _start_deepspeed(place)
        self.rank, self.world = place.rank, place.world
        device = pick_device(place.local_rank)
        self.objective: Objective = objective.to(device)
        self.objective.in_step = True
        self.trained = objective.trained()
        self.engine, *_ = deepspeed.initialize(
            model=objective,
            # PyTorch's Adam: DeepSpeed's own must be compiled on the user's machine.
            optimizer=build_adamw(self.trained.items(), config.optim),
            config=settings,
            dist_init_required=False,
        )
        self.zero = config.deepspeed.zero if config.deepspeed else 0
        self.steps = 0
        if self.zero:
            self._make_moments()

    def forward(self, batch: Batch) -> Losses:
        """Losses of a micro-batch."""
        losses: Losses = self.engine(batch)
        return losses

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of a loss; DeepSpeed averages over processes, the loop wants sums."""
        self.engine.set_gradient_accumulation_boundary(last)  # packed rows: passes vary
        self.engine.backward(loss * self.world, scale_wrt_gas=False)
        if not last:
            self.engine.step()  # only counts the pass

    def step(self, lr: float) -> float:
        """Clip, update, forget the gradients; returns the gradient's norm."""
        set_lr(self.engine.optimizer, lr)
        # Without ZeRO, DeepSpeed clips but does not tell the norm.
        norm = self._norm() if self.zero == 0 else None
        self.engine.step()
        self.steps += 1
        return float(self.engine.get_global_grad_norm() if norm is None else norm)

    def _norm(self) -> Tensor:
        grads = [p.grad for p in self.trained.values() if p.grad is not None]
        return torch.nn.utils.get_total_norm(grads)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over processes."""
        moved = values.to(next(iter(self.trained.values())).device)
        torch.distributed.all_reduce(moved)
        return moved.cpu()

    def state(self) -> TrainState:
        """Trained parameters in float32 and optimiser state, gathered from all processes."""
        if self.zero == 0:
            return read_torch_state(self.objective, self.engine.optimizer, self.steps)
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        buffers = self.objective.head_buffers()
        tensors = {f"buffer/{n}": b.detach().float().cpu() for n, b in buffers.items()}
        for name, parameter in self.trained.items():
            tensors[f"parameter/{name}"] = safe_get_full_fp32_param(parameter).cpu()
            for key in MOMENTS:
                tensors[f"{key}/{name}"] = safe_get_full_optimizer_state(parameter, key).cpu()
        return TrainState(tensors, self.steps)

    @torch.no_grad()
    def load(self, state: TrainState) -> None:
        """Put back a state; each process keeps its part."""
        self.steps = state.step
        if self.zero == 0:
            load_torch_state(self.objective, self.engine.optimizer, state)
            return
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        check_state(self.objective, state)
        for flat_state in self.engine.optimizer.optimizer.state.values():
            flat_state["step"].fill_(float(state.step))
        for name, buffer in self.objective.head_buffers().items():
            buffer.copy_(state.tensors[f"buffer/{name}"])
        for name, parameter in self.trained.items():
            value = state.tensors[f"parameter/{name}"].to(parameter.device)
            parameter.copy_(value)
            safe_set_full_fp32_param(parameter, value)
            for key in MOMENTS:
                moment = state.tensors[f"{key}/{name}"].to(parameter.device)
                safe_set_full_optimizer_state(parameter, moment, key)

    def _make_moments(self) -> None:
        """Give AdamW its state before its first step, so that parameters are linked to all of it.

        DeepSpeed links after the first parameter group has stepped, and misses the others.
        """
        zero = self.engine.optimizer
        for flat in (p for group in zero.optimizer.param_groups for p in group["params"]):
            moments = {key: torch.zeros_like(flat) for key in MOMENTS}
            zero.optimizer.state[flat] = {"step": torch.tensor(0.0), **moments}
        zero._lazy_init_hp_params_optimizer_state()

    def barrier(self) -> None:
        """Wait for all processes."""
        torch.distributed.barrier()

    def close(self) -> None:
        """Leave the process group and the environment as they were."""
        from deepspeed import comm

        self.engine.destroy()
        comm.destroy_process_group()
        for name in self._environment:
            os.environ.pop(name, None)


def _start_deepspeed(place: Place) -> tuple[Any, list[str]]:
    """Import DeepSpeed and join the process group, alone if nothing launched us.

    Returns:
        the package, and the environment variables that were set for it.
    """
    wanted: dict[str, int | str] = {
        "RANK": place.rank,
        "WORLD_SIZE": place.world,
        "LOCAL_RANK": place.local_rank,
    }
    if "MASTER_PORT" not in os.environ:
        wanted |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
    added = {name: str(value) for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    if not on_gpu:
        # Gloo does all that training needs; the shared-memory extension, which only inference
        # uses, would be compiled on first use.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if on_gpu else "gloo")
    deepspeed.init_distributed(verbose=False)
    return deepspeed, list(added)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
