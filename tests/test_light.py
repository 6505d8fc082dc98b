"""Norms and gates that are made again in the backward pass: less memory, as many products."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

import pytest
import torch
from open_clip.transformer import QuickGELU
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, LlamaConfig, Olmo2Config, Qwen2Config
from transformers.models.gemma import GemmaConfig

from onellm import light
from onellm.encoder import Encoder, EncoderConfig, LightQuickGELU, SelfAttention
from onellm.light import gated, light_products, product, rms_norm
from onellm.projection.experts import ExpertBlock, hidden_width
from onellm.sequence import TokenSeq
from onellm.train.blocks import recompute
from onellm.train.light_llm import lighten, plain
from onellm.train.memory import LiveBytes


class Calls(TorchDispatchMode):
    """Counts what is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def small_counts_too(monkeypatch):
    monkeypatch.setattr(light, "SMALL", 0)


def make_plain(monkeypatch: Any) -> None:
    monkeypatch.setattr(light, "_plain", lambda inputs: True)


def close(one: torch.Tensor, other: torch.Tensor, rtol: float = 1e-5) -> bool:
    return bool((one - other).norm() <= rtol * other.norm()) and bool(other.norm() > 0)


def run(block: nn.Module) -> tuple[int, int, dict[str, torch.Tensor]]:
    """Bytes an expert block keeps for the backward pass, matrix products in all, gradients."""
    x = torch.randn(3, 2, 20, 64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    with Calls() as calls:
        with LiveBytes("cpu") as live:
            live.know([*block.parameters(), x])
            out = block(x, active=3)
            kept = live.now
        out.square().sum().backward()
    grads = {name: p.grad for name, p in block.named_parameters()} | {"x": x.grad}
    block.zero_grad()
    return kept, calls.count["bmm"], grads


def test_an_expert_block_keeps_less_and_multiplies_no_more(monkeypatch):
    block = ExpertBlock(3, 64, 4, hidden_width(64, 16))
    kept, products, grads = run(block)
    make_plain(monkeypatch)
    whole, plain_products, plainly = run(block)
    assert kept < 0.55 * whole
    assert products == plain_products
    assert all(close(grads[name], plainly[name]) for name in plainly)


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
    make_plain(monkeypatch)
    for one, plainly in zip(light_ones, gradients(), strict=True):
        assert close(one, plainly, 1e-5 if dtype is None else 1e-2)
        assert one.dtype == plainly.dtype


@pytest.mark.parametrize("learns", [True, False], ids=["experts learn", "frozen"])
def test_weights_can_be_taken_away_between_the_passes(learns):
    """As ZeRO 3 does: nothing of them stays, and gradients are those of what is put back."""

    def gradients(*, taken: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        block = ExpertBlock(3, 64, 4, hidden_width(64, 16)).requires_grad_(learns)
        x, own = torch.randn(3, 2, 20, 64, requires_grad=True), list(block.parameters())
        freed: list[int] = []
        for parameter in own:
            weakref.finalize(parameter.untyped_storage(), freed.append, 1)
        loss = block(x, active=3, queries=4).square().sum()
        if taken:
            kept = [parameter.detach().clone() for parameter in own]
            for parameter in own:
                parameter.data = torch.empty(0)
            assert len(freed) == len(own)
            for parameter, data in zip(own, kept, strict=True):
                parameter.data = data
        return [*torch.autograd.grad(loss, [x, *own] if learns else [x])]

    for one, other in zip(gradients(taken=True), gradients(taken=False), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("learns", [True, False], ids=["experts learn", "frozen"])
def test_small_work_is_kept(monkeypatch, learns):
    """Below the limit nothing is made again; both ways agree, with frozen weights, too."""
    block = ExpertBlock(3, 64, 4, hidden_width(64, 16)).requires_grad_(learns)
    grads = []
    for limit in (0, 10**9):
        monkeypatch.setattr(light, "SMALL", limit)
        grads.append(run(block)[2]["x"])
    assert close(*grads)


def kept_and_gradients(function: Any, *inputs: torch.Tensor) -> tuple[int, list[torch.Tensor]]:
    with LiveBytes("cpu") as live:
        live.know(inputs)
        out = function(*inputs)
        kept = live.now
    made = torch.autograd.grad(out.float().sin().sum(), inputs)
    return kept - out.nbytes, [out.detach().float(), *(g.float() for g in made)]


def own_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)
    return weight * wide.to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_functions_keep_their_inputs_alone(dtype):
    x, y = (torch.randn(64, 64, dtype=dtype, requires_grad=True) for _ in range(2))
    weight = torch.rand(64, dtype=dtype, requires_grad=True)
    for function, rival, inputs in (
        (LightQuickGELU(), QuickGELU(), (x,)),
        (gated, lambda gate, up: functional.silu(gate) * up, (x, y)),
        (lambda x, weight: rms_norm(x, weight, 1e-5), own_norm, (x, weight)),
    ):
        kept, found = kept_and_gradients(function, *inputs)
        more, wanted = kept_and_gradients(rival, *inputs)
        assert kept == 0 < more
        for one, other in zip(found, wanted, strict=True):
            assert close(one, other, 1e-5 if dtype == torch.float32 else 2e-2)


def test_a_gate_of_another_type_is_not_rounded_to_it():
    gate = torch.randn(4, 4, dtype=torch.bfloat16, requires_grad=True)
    up = torch.randn(4, 4, requires_grad=True)
    assert torch.equal(gated(gate, up), functional.silu(gate) * up)


def test_what_cannot_learn_is_not_wrapped(monkeypatch):
    wrapped = []
    monkeypatch.setattr(light._Products, "apply", lambda *args: wrapped.append(1) or [args[0]])
    weight = torch.ones(1, 2, 3)
    for learns in (False, True):
        x = torch.ones(1, 1, 4, 3, requires_grad=learns)
        with torch.no_grad():
            (out,) = light_products(torch.exp, (weight,), x)
        assert torch.equal(out, product(x.exp(), weight))
        light_products(torch.exp, (weight,), x)
    assert len(wrapped) == 1


@pytest.mark.parametrize("masked", ["", "each", "all"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_of_the_encoder_is_pytorchs(masked, batch_first):
    own = nn.MultiheadAttention(32, 4, batch_first=batch_first)
    nn.init.normal_(own.in_proj_bias)
    x = torch.randn(2, 7, 32) if batch_first else torch.randn(7, 2, 32)
    mask = torch.zeros(8, 7, 7)
    mask[4:, :, 5:] = float("-inf")
    masks = {"": None, "each": mask, "all": mask[-1]}
    options = {"need_weights": False, "attn_mask": masks[masked]}
    wanted = own(x, x, x, **options)[0]
    own.__class__ = SelfAttention
    assert close(own(x, x, x, **options)[0], wanted)


def test_the_encoder_uses_it_and_keeps_its_names():
    config = EncoderConfig(image_size=28, width=32, layers=2, heads=2, output_dim=16)
    encoder = Encoder(config)
    names = list(encoder.state_dict())
    x = TokenSeq(torch.randn(2, 4, 32), torch.ones(2, 4, dtype=torch.bool), (4,), "image")
    found = encoder(x).x_BND
    for block in encoder.visual.transformer.resblocks:
        assert type(block.attn) is SelfAttention
        block.attn.__class__ = nn.MultiheadAttention
    assert close(found, encoder(x).x_BND)
    assert list(encoder.state_dict()) == names


SIZES = {
    **{"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"num_key_value_heads": 2, "intermediate_size": 48, "head_dim": 16},
}


@pytest.mark.parametrize(
    ("config", "light_ones"),
    [
        (LlamaConfig, 7),
        (Qwen2Config, 7),
        (GemmaConfig, 0),  # its norm adds 1, its gate is GELU
        (Olmo2Config, 2),  # its norms round after they have weighted
    ],
)
@pytest.mark.parametrize("cast", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_llm_keeps_less_and_learns_the_same(config, light_ones, dtype, cast):
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(config(**SIZES)).to(dtype).requires_grad_(False)
    for name, parameter in llm.named_parameters():  # norms of 1 would hide a forgotten weight
        if "norm" in name:
            parameter.uniform_(0.5, 1.5)
    classes = [type(module) for module in llm.modules()]
    x = torch.randn(2, 9, 32, dtype=dtype, requires_grad=True)

    def step() -> tuple[int, torch.Tensor, torch.Tensor]:
        with LiveBytes("cpu") as live, torch.autocast("cpu", torch.bfloat16, enabled=cast):
            live.know([*llm.parameters(), *llm.buffers(), x])
            out = llm(inputs_embeds=x, use_cache=False).logits.float()
            kept = live.now
        return kept, out, torch.autograd.grad(out.log_softmax(-1)[..., 0].sum(), x)[0].float()

    kept, out, wanted = step()
    assert lighten(llm) == light_ones
    less, again, found = step()
    assert torch.equal(again, out)
    assert close(found, wanted, 3e-2 if cast or dtype == torch.bfloat16 else 1e-5)
    assert less < kept if light_ones else less == kept
    assert lighten(llm) == 0  # once is enough
    plain(llm)
    assert [type(module) for module in llm.modules()] == classes


def test_a_norm_that_may_be_given_a_gate_is_left_alone():
    """As those of state space models, which do the same as Llama's as long as they get none."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.variance_epsilon = nn.Parameter(torch.ones(8)), 1e-5

        def forward(self, x: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
            return own_norm(x if gate is None else x * functional.silu(gate), self.weight)

    norm, x = Gated(), torch.randn(2, 8)
    wanted = norm(x, x)
    assert lighten(norm) == 0
    assert torch.equal(norm(x, x), wanted)
