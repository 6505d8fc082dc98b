"""Timing for the benchmarks: what is compared runs in turns, in one process."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


def wait(device: torch.device) -> None:
    """Wait for what was started on a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(
    runs: Mapping[str, Callable[[], Any]],
    device: torch.device,
    rounds: int,
    *,
    warm: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of several ways to do a thing, run in turns so that all see the same machine.

    Args:
        runs: what to time, by name.
        device: where they work.
        rounds: times that each is run.
        warm: run each once beforehand, untimed; False where that has been done.
        clock: seconds, rising; ``time.process_time`` where other work would be in the way.
    """
    for run in runs.values() if warm else ():
        run()
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            wait(device)
            began = clock()
            run()
            wait(device)
            taken[name].append(clock() - began)
    return {name: statistics.median(times) for name, times in taken.items()}


def bandwidth(device: torch.device, megabytes: int) -> float:
    """Bytes per second that the memory of a device gives to one reader of a large array.

    Args:
        device: where to measure.
        megabytes: size of the array; it must be larger than the caches to mean anything.
    """
    data = torch.ones(megabytes * 2**18, dtype=torch.float32, device=device)
    out = torch.empty_like(data)
    runs = {"sum": data.sum, "copy": lambda: out.copy_(data)}
    taken = seconds_of(runs, device, rounds=7)
    return max(data.nbytes / taken["sum"], 2 * data.nbytes / taken["copy"])


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "device": name or platform.machine(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
    }
