"""How fast a device is taken to be, before anything has run on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from onellm.train.config import TrainConfig
from onellm.train.engine import pick_device
from onellm.train.flops import peak_flops, product_type
from onellm.train.gpus import gpu_of

REACHED = 0.4
"""Share of the best rate that a step is taken to reach. Assumed, not measured: published runs of 7B
models reach between a third and two thirds."""


@dataclass(frozen=True)
class Speed:
    """What a device is taken to do.

    Args:
        tflops: 10^12 operations per second.
        source: where that is from, in words for the person who reads it.
    """

    tflops: float
    source: str


def speed_of(config: TrainConfig, gpu: str = "", tflops: float | None = None) -> Speed:
    """What each device of a run is taken to do.

    Args:
        config: the run.
        gpu: a key of :data:`onellm.train.gpus.GPUS`; empty for the device of this machine.
        tflops: 10^12 operations per second, if known; nothing is assumed then.

    Raises:
        ConfigError: an unknown GPU.
    """
    named = gpu_of(gpu) if gpu else None
    if tflops is not None:
        return Speed(tflops, "as told")
    device = pick_device()
    dtype = product_type(config, device)
    if named is not None:
        if config.dtype == "auto":  # as the run will choose there, not here
            dtype = torch.bfloat16 if named.bfloat16 else torch.float32
        return _share(named.tflops(dtype), f"the {gpu}'s", dtype)
    here = torch.cuda.get_device_name(device) if device.type == "cuda" else "processor"
    return _share(peak_flops(device, config) / 1e12, f"this machine's {here}'s", dtype)


def _share(peak: float, whose: str, dtype: torch.dtype) -> Speed:
    kind = str(dtype).removeprefix("torch.")
    words = f"{REACHED:.0%}, an assumption, of {whose} {peak:.3g} in {kind}"
    return Speed(REACHED * peak, f"{words} (--tflops says otherwise)")
