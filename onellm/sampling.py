"""Choosing the next token: greedy, or by temperature and nucleus.

Shape legend: B batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from onellm.errors import ConfigError

Chooser = Callable[[Tensor], Tensor]


def random_streams(seed: int | Sequence[int], batch: int) -> list[torch.Generator]:
    """A random stream for every sample of a batch.

    Args:
        seed: one number, from which each sample gets a stream of its own; or a number per sample,
            whose answer is then the one it gets alone under that number.
        batch: B.

    Raises:
        ConfigError: another number of seeds than of samples.
    """
    if isinstance(seed, int):
        states = [seed * 1_000_003 + b for b in range(batch)]
    else:
        if len(seed) != batch:
            raise ConfigError(f"{len(seed)} seeds for {batch} prompts")
        states = [int(one) * 1_000_003 for one in seed]
    return [torch.Generator().manual_seed(state) for state in states]


def greedy(logits_BV: Tensor) -> Tensor:
    """The likeliest tokens (B,)."""
    return logits_BV.argmax(-1)


def nucleus(temperature: float, top_p: float, streams: Sequence[torch.Generator]) -> Chooser:
    """Sample from the likeliest tokens that together have ``top_p`` of the probability.

    Args:
        temperature: logits are divided by it.
        top_p: nucleus mass, 0 to 1; the likeliest token is always in.
        streams: a random stream per sample, on the CPU: a seed gives the same draws on any device.
    """

    def sample(logits_BV: Tensor) -> Tensor:
        chance_BV = (logits_BV.float() / temperature).softmax(-1)
        chance_BV, order_BV = chance_BV.sort(-1, descending=True)
        before_BV = chance_BV.cumsum(-1) - chance_BV
        upto_BV = chance_BV.masked_fill(before_BV > top_p, 0.0).cumsum(-1)
        draw_B1 = torch.stack([torch.rand(1, generator=stream) for stream in streams])
        # The token in whose share of the kept probability the draw falls; because the shares are
        # sorted, rounding can hit neither a token that was cut off nor the end of the table.
        at_B1 = (upto_BV < draw_B1.to(upto_BV.device) * upto_BV[:, -1:]).sum(-1, keepdim=True)
        return order_BV.gather(-1, at_B1)[:, 0]

    return sample
