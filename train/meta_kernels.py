"""What kernels of real devices keep in memory, on PyTorch's meta device, which has none of them.

A function mode would be simpler than replacing functions, but is off in the backward pass, where
blocks are recomputed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

META = torch.device("meta")


@contextmanager
def real_kernels(autocast: torch.dtype | None = None) -> Iterator[None]:
    """Attention without its table of weights, and autocast to a type, on meta tensors.

    Args:
        autocast: what matrix products are computed in; None to leave their inputs as they are.
    """
    with ExitStack() as stack:
        stack.enter_context(_replaced(functional, "scaled_dot_product_attention", _attend))
        if autocast is not None:
            for owner, name in (
                *((functional, "linear"), (functional, "scaled_dot_product_attention")),
                *((torch, "bmm"), (torch, "matmul")),
            ):
                narrow = _narrowed(getattr(owner, name), autocast)
                stack.enter_context(_replaced(owner, name, narrow))
        yield


@contextmanager
def _replaced(owner: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    usual = getattr(owner, name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        setattr(owner, name, usual)


def _narrowed(function: Callable[..., Any], dtype: torch.dtype) -> Callable[..., Any]:
    """A function of which all float32 inputs are cast first; the casts live as long as it wants."""

    def cast(value: Any) -> Any:
        wide = isinstance(value, Tensor) and value.dtype == torch.float32
        return value.to(dtype) if wide else value

    def narrow(*args: Any, **kwargs: Any) -> Any:
        return function(*map(cast, args), **{key: cast(value) for key, value in kwargs.items()})

    return narrow


class _FlashShape(torch.autograd.Function):
    """What a fused attention kernel keeps: its inputs, its output, a number per row."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty(*query.shape[:-1], value.shape[-1], dtype=query.dtype, device=META)
        rows = torch.empty(query.shape[:-1], dtype=torch.float32, device=META)
        ctx.save_for_backward(query, key, value, out, rows)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _attend(*args: Any, **kwargs: Any) -> Any:
    query, key, value = args[:3] if len(args) >= 3 else _named(args, kwargs)
    return _FlashShape.apply(query, key, value)  # type: ignore[no-untyped-call]


def _named(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    found = dict(zip(("query", "key", "value"), args, strict=False)) | dict(kwargs)
    return found["query"], found["key"], found["value"]
