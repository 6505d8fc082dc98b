"""Cheap work that is done again in the backward pass, so that what it makes need not be kept.

Norms and gates cost next to no time and fill most of the memory between forward and backward pass.
Matrix products are never repeated here; ``compute.recompute`` does that, block by block.

Shape legend: E experts, B batch, N tokens, D width, F width of a product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

Make = Callable[..., Tensor]
SMALL = 2**17
"""Numbers in what is made, below which keeping them costs less than making them again: the work
is then in calling kernels, and 8 blocks of the projector hold some 20 MB at most."""


def light_products(make: Make, weights_EFD: Sequence[Tensor], *inputs: Tensor) -> list[Tensor]:
    """Matrix products of what a function makes, which is made again where their gradients need it.

    The products themselves are not.

    Args:
        make: pure and cheap, without randomness; it returns (E, B, N, D).
        weights_EFD: of each product, (E, F, D).
        inputs: all that ``make`` depends on.

    Returns:
        (E, B, N, F) for each weight.
    """
    if inputs[0].numel() < SMALL or _plain((*weights_EFD, *inputs)):
        made_EBND = make(*inputs)
        return [product(made_EBND, weight_EFD) for weight_EFD in weights_EFD]
    count = len(weights_EFD)
    return list(_Products.apply(make, count, *weights_EFD, *inputs))  # type: ignore[no-untyped-call]


def product(x_EBND: Tensor, weight_EFD: Tensor) -> Tensor:
    """One linear map per expert as a batched matrix product: (E, B, N, F)."""
    experts, batch, tokens, _ = x_EBND.shape
    flat = torch.bmm(x_EBND.flatten(1, 2), weight_EFD.transpose(1, 2))
    return flat.view(experts, batch, tokens, -1)


def quick_gelu(x: Tensor) -> Tensor:
    """x·σ(1.702x), the activation of OpenAI's towers; x alone is kept."""
    if _plain((x,)):
        return x * torch.sigmoid(1.702 * x)
    return cast(Tensor, _QuickGELU.apply(x))  # type: ignore[no-untyped-call]


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up, of which the two inputs are kept."""
    if _plain((gate, up)) or gate.dtype != up.dtype:
        return functional.silu(gate) * up
    return cast(Tensor, _Gated.apply(gate, up))  # type: ignore[no-untyped-call]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Llama's norm x / √(mean of x² + eps) · weight over the last axis; x alone is kept.

    Args:
        x: (…, D); below float32 it is normed in float32 and rounded before it is weighted.
        weight: (D,), or anything that broadcasts to x.
        eps: added to the mean square.
    """
    if _plain((x, weight)):
        return _normed(x, eps) * weight
    return cast(Tensor, _RMSNorm.apply(x, weight, eps))  # type: ignore[no-untyped-call]


def _plain(inputs: Sequence[Tensor]) -> bool:
    """Whether nothing is kept anyway, or the compiler decides what is."""
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    return not learns or torch.compiler.is_compiling()


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, make: Make, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.make, ctx.count, ctx.as_now = make, count, _as_now(tensors[0])
        ctx.save_for_backward(*tensors)
        made_EBND = make(*tensors[count:])
        return tuple(product(made_EBND, weight_EFD) for weight_EFD in tensors[:count])

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads_EBNF: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # asked for once: a block that is recomputed is, to give them
        weights, inputs = saved[: ctx.count], saved[ctx.count :]
        learn, needed = ctx.needs_input_grad[2:][: ctx.count], ctx.needs_input_grad[2 + ctx.count :]
        with ctx.as_now():
            made_EBND, leaves = _again(ctx.make, inputs, needed)
            x_END = made_EBND.detach().flatten(1, 2)
            flat = [grad_EBNF.flatten(1, 2) for grad_EBNF in grads_EBNF]
            of_weights = [
                torch.bmm(grad_ENF.transpose(1, 2), x_END).to(weight_EFD.dtype) if wanted else None
                for grad_ENF, weight_EFD, wanted in zip(flat, weights, learn, strict=True)
            ]
            of_made = None
            if any(needed):
                of_made = torch.bmm(flat[0], weights[0]).to(made_EBND.dtype)
                for grad_ENF, weight_EFD in zip(flat[1:], weights[1:], strict=True):
                    of_made += torch.bmm(grad_ENF, weight_EFD)
                of_made = of_made.view_as(made_EBND)
        del x_END
        return (None, None, *of_weights, *_through(made_EBND, leaves, of_made))


class _QuickGELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.sigmoid_(1.702 * x).mul_(x)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors  # x·σ(ax) = silu(ax) / a, whose slope is silu's at ax
        return torch.ops.aten.silu_backward(grad, 1.702 * x)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        of_gate = torch.ops.aten.silu_backward(grad * up, gate)
        return of_gate, functional.silu(gate).mul_(grad)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.eps = eps
        ctx.save_for_backward(x, weight)
        return _normed(x, eps) * weight

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        wide = x.float()
        scale = wide.square().mean(-1, keepdim=True).add_(ctx.eps).rsqrt_()
        normed = wide * scale
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = (grad * normed.to(x.dtype)).sum_to_size(weight.shape)
        # The gradient less what would only make x longer.
        of_x = (grad * weight).float()
        along = (of_x * normed).mean(-1, keepdim=True)
        of_x = of_x.addcmul_(normed, along, value=-1).mul_(scale)
        return of_x.to(x.dtype), of_weight, None


def _normed(x: Tensor, eps: float) -> Tensor:
    return functional.rms_norm(x, x.shape[-1:], eps=eps).to(x.dtype)  # autocast may widen it


def _as_now(x: Tensor) -> Callable[[], AbstractContextManager[Any]]:
    """What brings back, in the backward pass, how matrix products are cast now."""
    device = x.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return nullcontext
    return partial(torch.autocast, device, torch.get_autocast_dtype(device))


def _again(
    make: Make, inputs: Sequence[Tensor], needed: Sequence[bool]
) -> tuple[Tensor, list[Tensor]]:
    """What a function makes, and the copies of its inputs that it was made of this time."""
    leaves = [x.detach().requires_grad_(n) for x, n in zip(inputs, needed, strict=True)]
    with torch.enable_grad():
        return make(*leaves), leaves


def _through(made: Tensor, leaves: Sequence[Tensor], grad: Tensor | None) -> list[Tensor | None]:
    """Gradients of a function's inputs, None for those that need none."""
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    found = iter(torch.autograd.grad(made, wanted, grad) if wanted else ())
    return [next(found) if leaf.requires_grad else None for leaf in leaves]
