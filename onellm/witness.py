"""A few recorded values of weights that are stored elsewhere, to recognise them by.

A model that leaves out its LLM's weights and names an id is right only with the weights it was
trained around. An id can be moved, and a folder can hold a fine-tuned copy; nothing in the shapes
would tell.
"""

from __future__ import annotations

from typing import Any

import torch

from onellm.errors import CheckpointError
from onellm.slots import Weights

_TENSORS, _VALUES = 256, 3


def witnesses(weights: Weights, prefix: str = "") -> dict[str, Any]:
    """Values at fixed places of up to 256 weights.

    Args:
        weights: where they are.
        prefix: only of weights whose name begins with it.

    Returns:
        plain data: the type of the weights, and name → values.
    """
    names = sorted(name for name in weights.shapes if name.startswith(prefix))
    step = max(1, -(-len(names) // _TENSORS))
    chosen = [name for name in names[::step] if weights.shapes[name].numel()]
    dtype = str(weights.dtypes[chosen[0]]).removeprefix("torch.") if chosen else ""
    return {"dtype": dtype, "values": {name: _values(weights, name) for name in chosen}}


def _values(weights: Weights, name: str) -> list[float]:
    flat = weights.read(name).detach().reshape(-1)
    at = torch.linspace(0, len(flat) - 1, _VALUES, dtype=torch.float64).long()
    return [float(value) for value in flat[at.to(flat.device)]]


def check_witnesses(recorded: dict[str, Any], weights: Weights, what: str) -> None:
    """Compare recorded values with those of weights from elsewhere.

    Values of the same type must be equal. After a conversion they may differ by 1 %, the rounding
    of bfloat16.

    Args:
        recorded: what :func:`witnesses` gave.
        weights: under the same names.
        what: begins the message.

    Raises:
        CheckpointError: a weight is missing, or has other values.
    """
    for name, before in recorded["values"].items():
        if name not in weights.shapes:
            raise CheckpointError(f"{what}: expected {name}; found no such weight")
        exact = str(weights.dtypes[name]) == f"torch.{recorded['dtype']}"
        now = torch.tensor(_values(weights, name))
        then = torch.tensor(before)
        rtol, atol = (0.0, 0.0) if exact else (1e-2, 1e-4)
        if not torch.allclose(now, then, rtol=rtol, atol=atol):
            raise CheckpointError(
                f"{what}: not the weights that this was saved with: expected {name} to hold "
                f"{_text(then)}; found {_text(now)}"
            )


def _text(values: torch.Tensor) -> str:
    return ", ".join(f"{value:.6g}" for value in values.tolist())
