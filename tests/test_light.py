"""Norms and gates that are made again in the backward pass: less memory, as many products."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from open_clip.transformer import QuickGELU
from torch.utils._python_dispatch import TorchDispatchMode

from onellm import encoder
from onellm.encoder import LightQuickGELU
from onellm.light import light
from onellm.projection import experts
from onellm.projection.experts import ExpertBlock, hidden_width
from onellm.train.blocks import recompute
from onellm.train.memory import LiveBytes


class Calls(TorchDispatchMode):
    """Counts what is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def run(monkeypatch: Any, *, plain: bool) -> tuple[int, int, dict[str, torch.Tensor]]:
    """Bytes an expert block keeps for the backward pass, matrix products in all, gradients."""
    if plain:
        monkeypatch.setattr(experts, "light", lambda function, *inputs: function(*inputs))
    torch.manual_seed(0)
    block = ExpertBlock(3, 64, 4, hidden_width(64, 16))
    x = torch.randn(3, 2, 20, 64, requires_grad=True)
    with Calls() as calls:
        with LiveBytes("cpu") as live:
            live.know([*block.parameters(), x])
            out = block(x, active=3)
            kept = live.now
        out.square().sum().backward()
    grads = {name: p.grad for name, p in block.named_parameters()} | {"x": x.grad}
    return kept, calls.count["bmm"], grads


def test_an_expert_block_keeps_less_and_multiplies_no_more(monkeypatch):
    kept, products, grads = run(monkeypatch, plain=False)
    whole, plain_products, plain = run(monkeypatch, plain=True)
    assert kept < 0.68 * whole
    assert products == plain_products
    assert all(torch.equal(grads[name], plain[name]) for name in plain)


@pytest.mark.parametrize("again", [False, True], ids=["kept", "block recomputed"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "autocast"])
def test_gradients_are_the_same_in_any_surrounding(monkeypatch, dtype, again):
    """Under autocast, inside a block that is itself recomputed, and backwards twice."""

    def gradients() -> list[torch.Tensor]:
        torch.manual_seed(0)
        block = ExpertBlock(3, 32, 4, hidden_width(32, 16))
        if again:
            recompute(block)
        x = torch.randn(2, 2, 9, 32, requires_grad=True)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            loss = LightQuickGELU()(block(x, active=2, queries=4)).float().square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
        return [x.grad, *(p.grad for p in block.parameters())]

    light_ones = gradients()
    for module in (experts, encoder):
        monkeypatch.setattr(module, "light", lambda function, *inputs: function(*inputs))
    for one, plain in zip(light_ones, gradients(), strict=True):
        assert one.abs().sum() > 0
        assert torch.equal(one, plain)


def test_quick_gelu_keeps_its_input_alone():
    x = torch.randn(64, 64, requires_grad=True)
    grads = []
    for activation in (QuickGELU(), LightQuickGELU()):
        with LiveBytes("cpu") as live:
            live.know([x])
            out = activation(x)
            kept = live.now
        grads.append(torch.autograd.grad(out.square().sum(), x)[0])
    assert kept == out.nbytes
    assert torch.equal(*grads)


@pytest.mark.parametrize("learns", [True, False])
def test_what_cannot_learn_is_not_wrapped(learns, monkeypatch):
    called = []
    monkeypatch.setattr("onellm.light.checkpoint", lambda f, *x, **_: called.append(1) or f(*x))
    x = torch.ones(3, requires_grad=learns)
    assert torch.equal(light(torch.exp, x), x.exp())
    with torch.no_grad():
        light(torch.exp, x)
    assert len(called) == learns
