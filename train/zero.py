"""Training with DeepSpeed: its JSON, made from our configuration, and its engine behind ours.

The file is not called ``deepspeed`` because a script run from this folder would then import it in
place of the package.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from onellm.data.loader import Batch
from onellm.errors import ConfigError, plain_reason
from onellm.slots import StateDict, weights_of
from onellm.train.agreement import waiting_time
from onellm.train.config import TrainConfig
from onellm.train.engine import Place, Update, part_norms, part_squares, pick_device, set_lr
from onellm.train.objectives import Losses, Objective
from onellm.train.packaged import overlay
from onellm.train.schedule import build_adamw
from onellm.train.shards import Shards, shards_of
from onellm.train.state import (
    MOMENTS,
    Saved,
    TrainState,
    check_state,
    full_shape,
    load_buffers,
    load_torch_state,
    read_torch_state,
)

T = TypeVar("T")

BUCKET = 50_000_000
"""Numbers that are reduced at a time; larger buckets gain little and stand idle in memory."""


def deepspeed_json(config: TrainConfig, world: int) -> dict[str, Any]:
    """DeepSpeed's configuration for a run.

    Args:
        config: the run; its ``deepspeed.raw`` is laid over the result.
        world: number of processes.

    Raises:
        ConfigError: batches do not come out even; or ZeRO 2 or 3 with mixed micro-batches of an
            objective whose passes are not kept in step.
    """
    if config.deepspeed is None:
        raise ConfigError("the configuration has no deepspeed section")
    per_device, passes = config.batch.split(world)
    zero = config.deepspeed.zero
    lone = config.stage.objective != "lm" and config.batch.same_modality % (per_device * world)
    if zero >= 2 and world > 1 and lone:
        # From ZeRO 2 on gradients are reduced in the order they arrive, from 3 on weights are
        # gathered as they are used: both must be the same everywhere.
        raise ConfigError(
            f"deepspeed.zero={zero}: set batch.same_modality to a multiple of "
            f"{per_device * world} (batch.per_device x devices), or zero=1; found "
            f"{config.batch.same_modality}"
        )
    made: dict[str, Any] = {
        "train_batch_size": config.batch.size,
        "train_micro_batch_size_per_gpu": per_device,
        "gradient_accumulation_steps": passes,
        "gradient_clipping": config.optim.grad_clip,
        "zero_optimization": {
            "stage": zero,
            "overlap_comm": False,
            "reduce_bucket_size": BUCKET,
            **_offload(config),
        },
        "bf16": {"enabled": config.dtype == "bfloat16"},
        "fp16": {"enabled": config.dtype == "float16"},
        "steps_per_print": 2**31,  # the loop has its own log
        "zero_allow_untested_optimizer": True,
        # PyTorch's AdamW works on the CPU, too, and needs no compiler on the user's machine.
        "zero_force_ds_cpu_optimizer": False,
    }
    return overlay(made, config.deepspeed.raw)


def _offload(config: TrainConfig) -> dict[str, Any]:
    assert config.deepspeed is not None
    offload = config.deepspeed.offload
    common: dict[str, Any] = {"pin_memory": torch.cuda.is_available()}
    if offload.path is not None:
        common["nvme_path"] = offload.path
    wanted = {"offload_optimizer": offload.optimizer, "offload_param": offload.parameters}
    return {key: {"device": where, **common} for key, where in wanted.items() if where != "none"}


def _check_disk(config: TrainConfig) -> None:
    """Make sure that what goes to a disk can go there.

    Raises:
        ConfigError: DeepSpeed's extension for it cannot be built, or the folder cannot be made.
    """
    assert config.deepspeed is not None
    offload = config.deepspeed.offload
    if "nvme" not in (offload.optimizer, offload.parameters) or offload.path is None:
        return
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible(verbose=False):
        raise ConfigError(
            "deepspeed.offload: nvme needs libaio with its headers (package libaio-dev or "
            "libaio-devel) and a C++ compiler, from which DeepSpeed builds an extension"
        )
    try:
        Path(offload.path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = plain_reason(error)
        raise ConfigError(f"deepspeed.offload.path: {offload.path}: {reason}") from error


class DeepSpeedEngine:
    """One of several processes under DeepSpeed, ZeRO 0 to 3; gloo where there is no GPU.

    Args:
        objective: the loss.
        config: the run.
        place: this process among the others.
    """

    def __init__(self, objective: Objective, config: TrainConfig, place: Place) -> None:
        settings = deepspeed_json(config, place.world)
        wait = waiting_time(config.data.patience)
        deepspeed, self._environment = _start_deepspeed(place, wait)
        _check_disk(config)
        self.rank, self.world = place.rank, place.world
        # What the processes tell each other goes past the GPUs, which have enough to do.
        self.talk: Any = None
        if torch.distributed.get_backend() != "gloo":
            self.talk = torch.distributed.new_group(backend="gloo", timeout=wait)
        self.zero: int = config.deepspeed.zero if config.deepspeed else 0
        self.device = pick_device(place.local_rank)
        self.objective: Objective = objective if self.zero == 3 else objective.to(self.device)
        self.objective.in_step, self.objective.divided = True, self.zero == 3
        if self.zero >= 2 and self.world > 1:
            self.objective.agree = self._agree
        self.trained = objective.trained()
        buffers = _float_buffers(objective)
        self.engine, *_ = deepspeed.initialize(
            model=objective,
            # PyTorch's Adam: DeepSpeed's own must be compiled on the user's machine.
            optimizer=build_adamw(self.trained.items(), config.optim),
            config=settings,
            dist_init_required=False,
        )
        _restore(buffers, self.device)
        self.steps = self.updates = 0
        self.shards: Shards | None = None
        if self.zero:
            self.shards = shards_of(self.engine.optimizer, self.zero, self.rank, self.world)
            self.shards.make_moments(0)

    def _agree(self, counts: Mapping[str, int]) -> dict[str, int]:
        """The largest count of every modality over all processes."""
        names = list(self.objective.model.modalities)
        tensor = torch.tensor([counts.get(name, 0) for name in names], device=self.device)
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
        return dict(zip(names, tensor.tolist(), strict=True))

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

    def step(self, lr: float) -> Update:
        """Clip, update, forget the gradients; DeepSpeed leaves out what is not finite."""
        set_lr(self.engine.optimizer, lr)
        update = self._plain_step() if self.shards is None else self._sharded_step(self.shards)
        self.steps += 1
        self.updates += update.made
        return update

    def _plain_step(self) -> Update:
        """Without ZeRO, DeepSpeed clips but neither tells the norm nor looks at it."""
        grads = [p.grad for p in self.trained.values() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(grads))
        norms = part_norms((n, p.grad) for n, p in self.trained.items())
        if math.isfinite(norm):
            self.engine.step()
            return Update(norm, True, norms)
        self.engine.optimizer.zero_grad(set_to_none=True)
        self.engine.micro_steps += 1  # so that the next pass is the first of a step again
        return Update(norm, False, norms)

    def _sharded_step(self, shards: Shards) -> Update:
        squares = part_squares((n, shards.grad(p)) for n, p in self.trained.items())
        parts = sorted({name.partition(".")[0] for name in self.trained})
        mine = torch.tensor([float(squares.get(p, 0.0)) for p in parts], dtype=torch.float64)
        scale = float(getattr(self.engine.optimizer, "loss_scale", 1.0))
        norms = {p: float(s) ** 0.5 / scale for p, s in zip(parts, self.sum(mine), strict=True)}
        self.engine.step()
        norm = float(self.engine.get_global_grad_norm())
        made = math.isfinite(norm) and not self.engine.optimizer.overflow
        return Update(norm if made else math.inf, made, norms)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over processes."""
        moved = values.to(self.device)
        torch.distributed.all_reduce(moved)
        return moved.cpu()

    def share(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        told: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(told, value, group=self.talk)
        return told

    def state(self) -> TrainState:
        """This process's share of trained parameters, in float32, and optimiser state."""
        facts = {"updates": self.updates, **_scale_facts(self.engine.optimizer)}
        if self.shards is None:
            if self.rank:
                return TrainState({}, self.steps, facts=facts)
            state = read_torch_state(self.objective, self.engine.optimizer, self.steps)
            state.facts |= facts
            return state
        buffers = self.objective.head_buffers() if self.rank == 0 else {}
        tensors = {f"buffer/{n}": b.detach().cpu().clone() for n, b in buffers.items()}
        state = TrainState(tensors, self.steps, facts=facts)
        for name, parameter in self.trained.items():
            start, shape = self.shards.start(parameter), full_shape(parameter)
            for kind in ("parameter", *MOMENTS):
                state.put_slice(f"{kind}/{name}", self.shards.read(parameter, kind), start, shape)
        return state

    @torch.no_grad()
    def load(self, saved: Saved) -> None:
        """Put back a state; each process takes its part."""
        self.steps, self.updates = saved.step, saved.facts.get("updates", saved.step)
        _restore_scale(self.engine.optimizer, saved.facts)
        if self.shards is None:
            load_torch_state(self.objective, self.engine.optimizer, saved, self.updates)
            return
        check_state(self.objective, saved)
        load_buffers(self.objective, saved)
        self.shards.make_moments(self.updates)
        for name, parameter in self.trained.items():
            with self._changing(parameter) as mine:
                if mine:
                    parameter.copy_(saved.whole(f"parameter/{name}"))
            start, count = self.shards.start(parameter), self.shards.count(parameter)
            for kind in ("parameter", *MOMENTS) if count else ():
                self.shards.write(parameter, kind, saved.read(f"{kind}/{name}", start, count))

    def _changing(self, parameter: nn.Parameter) -> AbstractContextManager[Any]:
        """Within it a parameter is whole; what the processes that are told True write is kept."""
        if self.zero < 3:
            return nullcontext(True)
        return _Telling(_whole([parameter], modifier_rank=0), self.rank == 0)

    def gathered(self, parameters: Iterable[nn.Parameter]) -> AbstractContextManager[Any]:
        """Within it, these parameters are whole on every process."""
        if self.zero < 3:
            return nullcontext()
        return _whole(list(parameters))

    def weights(self) -> StateDict | None:
        """All weights of the model, gathered one by one, on the first process."""
        model = self.objective.model
        if self.zero < 3:
            return weights_of(model) if self.rank == 0 else None
        kept: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            with self.gathered([parameter]):
                if self.rank == 0:
                    kept[name] = parameter.detach().cpu().clone()
        own = weights_of(model)  # shapes are empty here; names of tied weights come once
        kept |= {n: own.read(n).cpu() for n in own.shapes if n not in kept}
        return StateDict({n: kept[n] for n in own.shapes}) if self.rank == 0 else None

    def barrier(self) -> None:
        """Wait for all processes."""
        torch.distributed.barrier()

    def close(self) -> None:
        """Leave the process group and the environment as they were."""
        from deepspeed import comm

        self.objective.in_step = self.objective.divided = False
        self.objective.agree = None
        self.engine.destroy()
        comm.destroy_process_group()
        for name in self._environment:
            os.environ.pop(name, None)


def _whole(parameters: list[nn.Parameter], **options: Any) -> AbstractContextManager[Any]:
    """Within it, parameters that ZeRO 3 has divided are whole."""
    import deepspeed

    context: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(parameters, **options)
    return context


class _Telling:
    """A context that gives a value in place of its own."""

    def __init__(self, context: AbstractContextManager[Any], value: bool) -> None:
        self.context, self.value = context, value

    def __enter__(self) -> bool:
        self.context.__enter__()
        return self.value

    def __exit__(self, *error: Any) -> Any:
        return self.context.__exit__(*error)


def _float_buffers(module: nn.Module) -> list[tuple[nn.Module, str, Tensor]]:
    """Buffers in float32, such as rotary frequencies, which bfloat16 would spoil."""
    return [
        (owner, name, buffer)
        for owner in module.modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None and buffer.dtype == torch.float32
    ]


def _restore(buffers: Iterable[tuple[nn.Module, str, Tensor]], device: torch.device) -> None:
    for owner, name, buffer in buffers:
        owner._buffers[name] = buffer.to(device)


_SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def _scale_facts(optimizer: Any) -> dict[str, Any]:
    """The dynamic loss scale of float16, where there is one."""
    scaler = getattr(optimizer, "loss_scaler", None)
    if not getattr(scaler, "dynamic", False):
        return {}
    return {"loss_scale": {key: getattr(scaler, key) for key in _SCALE if hasattr(scaler, key)}}


def _restore_scale(optimizer: Any, facts: Mapping[str, Any]) -> None:
    scaler = getattr(optimizer, "loss_scaler", None)
    if getattr(scaler, "dynamic", False):
        for key, value in facts.get("loss_scale", {}).items():
            setattr(scaler, key, value)


def _start_deepspeed(place: Place, wait: timedelta) -> tuple[Any, list[str]]:
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
    if on_gpu:
        torch.cuda.set_device(place.local_rank)
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    if not on_gpu:
        # Gloo does all that training needs; the shared-memory extension, which only inference
        # uses, would be compiled on first use.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=wait)
    deepspeed.init_distributed(verbose=False)
    return deepspeed, list(added)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
