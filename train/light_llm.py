"""Norms and gates of an LLM from outside, so that they keep less for the backward pass.

``transformers`` writes the root-mean-square norm and the gated feed-forward part of the Llama
family in many classes that do the same. Which of them do is not told by name: each class's
own ``forward`` is asked, on a few numbers of each type, and where ours gives the same it is laid
over the class.

Shape legend: B batch, T positions, D width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from onellm.light import gated, rms_norm


class _LightNorm(nn.Module):
    """Mixed into a norm's class: only the input is kept, in its own type."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        own: Any = self
        return rms_norm(x_BTD, own.weight, own.variance_epsilon)


class _LightGate(nn.Module):
    """Mixed into a feed-forward part's class: the activated gate is not kept."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        own: Any = self
        out: Tensor = own.down_proj(gated(own.gate_proj(x_BTD), own.up_proj(x_BTD)))
        return out


def lighten(llm: nn.Module) -> int:
    """Make norms and gates keep less, in place.

    Args:
        llm: any causal LM; what is not of Llama's kind in it stays as it is.

    Returns:
        how many of its modules are light now.
    """
    known: dict[type, type | None] = {}
    count = 0
    for module in llm.modules():
        cls = type(module)
        if cls not in known:
            known[cls] = _light_class(module)
        light_cls = known[cls]
        if light_cls is not None:
            module.__class__ = light_cls
            count += 1
    return count


def plain(llm: nn.Module) -> None:
    """Undo :func:`lighten`."""
    for module in llm.modules():
        cls = type(module)
        if cls.__bases__[:1] in ((_LightNorm,), (_LightGate,)):
            module.__class__ = cls.__bases__[1]


def _light_class(module: nn.Module) -> type | None:
    """The class to lay over a module's, or None."""
    cls = type(module)
    if issubclass(cls, (_LightNorm, _LightGate)):
        return None
    for light_cls, stand_in in ((_LightNorm, _small_norm), (_LightGate, _small_gate)):
        if _does_the_same(cls, light_cls, stand_in, module):
            return type(cls.__name__, (light_cls, cls), {})
    return None


def _does_the_same(
    cls: type, light_cls: type, stand_in: Callable[..., SimpleNamespace | None], module: nn.Module
) -> bool:
    """Whether two classes' forwards agree on small stand-ins for a module, to the last bits.

    In 16 bits, too: some norms round after they have weighted, or always to the input's type.
    """
    if len(inspect.signature(cls.forward).parameters) != 2:  # type: ignore[attr-defined]
        return False  # such as a norm that may be given a gate
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, _WIDTH, generator=generator)
    for of_weights, of_x in _TYPES:
        small = stand_in(module, of_weights)
        if small is None:
            return False
        try:
            with torch.no_grad():
                own, ours = (c.forward(small, x.to(of_x)) for c in (cls, light_cls))  # type: ignore[attr-defined]
        except Exception:  # of another kind, whatever it says of a stand-in
            return False
        if not isinstance(own, Tensor) or own.dtype != ours.dtype:
            return False
        if not torch.allclose(own, ours, rtol=1e-6, atol=1e-6):
            return False
    return True


_TYPES = (
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float32, torch.bfloat16),  # autocast, in norms of queries and keys
)
"""Of weights and of what goes through them."""
_WIDTH = 8


def _small_norm(module: Any, dtype: torch.dtype) -> SimpleNamespace | None:
    """A norm of few numbers; its weights stand for any."""
    own = dict(module.named_parameters(recurse=False))
    if set(own) != {"weight"} or not hasattr(module, "variance_epsilon") or _parts(module):
        return None
    weight = torch.linspace(0.5, 2.0, _WIDTH).to(dtype)
    return SimpleNamespace(weight=weight, variance_epsilon=module.variance_epsilon)


def _small_gate(module: Any, dtype: torch.dtype) -> SimpleNamespace | None:
    """A feed-forward part of few numbers with its module's activation."""
    if not {"gate_proj", "up_proj", "down_proj", "act_fn"} <= _parts(module):
        return None
    generator = torch.Generator().manual_seed(1)
    up, down = (torch.randn(12, _WIDTH, generator=generator).to(dtype) for _ in range(2))
    return SimpleNamespace(
        act_fn=module.act_fn,
        gate_proj=lambda x: functional.linear(x.to(dtype), up.flip(0)),
        up_proj=lambda x: functional.linear(x.to(dtype), up),
        down_proj=lambda x: functional.linear(x, down.T),
        config=getattr(module, "config", None),
    )


def _parts(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}
