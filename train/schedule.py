"""Learning rate and optimiser, both counted in optimiser steps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from onellm.train.config import OptimConfig


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """Learning rate of an optimiser step, a pure function of it.

    Args:
        config: peak, end and warm-up.
        step: from 0; the first step of a warm-up is not 0 but one ``warmup_steps``-th of the peak.
        steps: length of the run.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * done)) / 2


def decays(name: str, config: OptimConfig) -> bool:
    """Whether weight decay applies to a parameter of that name."""
    return not any(fnmatchcase(name, glob) for glob in config.no_decay)


def build_adamw(
    parameters: Iterable[tuple[str, nn.Parameter]], config: OptimConfig
) -> torch.optim.AdamW:
    """AdamW over two groups, with and without weight decay.

    Args:
        parameters: trained parameters with the names that ``no_decay`` speaks of.
        config: betas and weight decay.
    """
    named = list(parameters)
    groups: list[dict[str, Any]] = []
    for decay in (True, False):
        members = [p for name, p in named if decays(name, config) is decay]
        if members:
            groups.append({"params": members, "weight_decay": config.weight_decay * decay})
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)
