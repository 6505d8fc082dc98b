"""How fast a device is taken to be, before anything has run on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from onellm.errors import ConfigError
from onellm.spelling import did_you_mean
from onellm.train.config import TrainConfig
from onellm.train.engine import pick_device
from onellm.train.flops import PEAK_TFLOPS, peak_flops

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
        gpu: a key of :data:`onellm.train.flops.PEAK_TFLOPS`; empty for the device of this machine.
        tflops: 10^12 operations per second, if known; nothing is assumed then.

    Raises:
        ConfigError: an unknown GPU.
    """
    if tflops is not None:
        return Speed(tflops, "as told")
    if gpu:
        if gpu not in PEAK_TFLOPS:
            raise ConfigError(f"unknown GPU {gpu!r}.{did_you_mean(gpu, PEAK_TFLOPS)}")
        return _share(PEAK_TFLOPS[gpu], f"the {gpu}'s")
    device = pick_device()
    here = torch.cuda.get_device_name(device) if device.type == "cuda" else "processor"
    return _share(peak_flops(device, config) / 1e12, f"this machine's {here}'s")


def _share(peak: float, whose: str) -> Speed:
    words = f"{REACHED:.0%}, an assumption, of {whose} {peak:.3g} (--tflops says otherwise)"
    return Speed(REACHED * peak, words)
