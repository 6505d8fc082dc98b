"""Cheap work that is done again in the backward pass, so that what it makes need not be kept.

Norms and gates cost next to no time and fill most of the memory between forward and backward pass.
Matrix products are never repeated here; ``compute.recompute`` does that, block by block.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def light(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Call a function and keep nothing but its inputs and what it returns.

    In the backward pass it is run again up to the last tensor that is needed there. So it may end
    in a matrix product: the product's input is made again, the product itself is not.

    Args:
        function: pure, without randomness.
        inputs: all that it depends on.
    """
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    if not learns or torch.compiler.is_compiling():  # the compiler decides that by itself
        return function(*inputs)
    made: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return made
