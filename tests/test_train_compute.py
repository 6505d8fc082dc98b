"""Recomputation, compilation, attention, LoRA and 4-bit weights: the same mathematics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_model
from tiny_runs import tiny_config, tiny_run, write_shards
from torch import nn

from onellm.errors import ConfigError
from onellm.model import OneLLM
from onellm.train.blocks import blocks_of, keep, recompute
from onellm.train.compute import LoraConfig
from onellm.train.finish import export_run
from onellm.train.launch import run_training
from onellm.train.lora import add_lora, has_lora, merge_lora, quantize_frozen
from onellm.train.objectives import LanguageModelling
from onellm.train.trainables import select

PARTS = ["encoder", "projector", "llm"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("compute")
    write_shards(folder / "shards")
    tiny_model("image", "imu").save_pretrained(folder / "start")
    return folder


def losses(records: list[dict[str, Any]]) -> list[float]:
    return [record["loss"] for record in records]


@pytest.mark.parametrize("trainable", [["*"], ["projector.*", "tokenizers.*", "tags.*"]])
def test_recomputing_changes_nothing_and_keeps_less(place, tmp_path, trainable):
    sections: dict[str, Any] = {"stage": {"trainable": trainable}}
    plain, a = tiny_run(place / "shards", tmp_path / "a", **sections)
    sections["compute"] = {"recompute": PARTS}
    again, b = tiny_run(place / "shards", tmp_path / "b", **sections)
    assert losses(a) == losses(b)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert all(r["hfu"] > r["mfu"] for r in b)
    assert all(r["hfu"] == r["mfu"] for r in a)
    for part in PARTS:  # the trained model is like any other again
        assert "_Recomputed" not in str(type(blocks_of(again, part)[0]).__mro__)


def test_recomputed_blocks_keep_only_their_input():
    block = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64))
    x = torch.randn(8, 64, requires_grad=True)

    def kept() -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.append(t.numel()) or t, lambda t: t
        ):
            block(x).sum().backward()
        return sum(sizes)

    plain = kept()
    grad, x.grad = x.grad, None
    recompute(block)
    recompute(block)  # twice is once
    assert isinstance(block, nn.Sequential)
    kept()
    assert torch.equal(grad, x.grad)
    keep(block)
    assert type(block) is nn.Sequential
    assert kept() == plain


@pytest.mark.parametrize("part", PARTS)
def test_blocks_are_found(part):
    model = tiny_model("imu")
    assert len(blocks_of(model, part)) == 2


def test_an_llm_without_a_list_of_blocks_is_refused():
    model = tiny_model("imu")
    model.llm.config.num_hidden_layers = 7
    with pytest.raises(ConfigError, match="no list of 7 blocks"):
        blocks_of(model, "llm")


def test_compiled_blocks_give_the_same_losses(place, tmp_path, monkeypatch):
    compiled: list[nn.Module] = []
    usual = nn.Module.compile

    def with_eager(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        compiled.append(self)
        usual(self, *args, backend="eager", **kwargs)  # the default needs a C++ compiler

    monkeypatch.setattr(nn.Module, "compile", with_eager)
    _, a = tiny_run(place / "shards", tmp_path / "a", length={"steps": 2})
    _, b = tiny_run(
        place / "shards",
        tmp_path / "b",
        length={"steps": 2},
        compute={"compile": ["llm", "projector"], "recompute": ["llm"]},
    )
    assert losses(b) == pytest.approx(losses(a), abs=1e-5)
    assert len(compiled) == 4


def test_attention_is_set_on_the_llm(place, tmp_path):
    _, a = tiny_run(place / "shards", tmp_path / "a", compute={"attention": "sdpa"})
    model, b = tiny_run(place / "shards", tmp_path / "b", compute={"attention": "eager"})
    assert model.llm.config._attn_implementation == "eager"
    assert losses(b) == pytest.approx(losses(a), abs=1e-4)


# -- LoRA ---------------------------------------------------------------------------------------

LORA = {"rank": 4, "alpha": 8}


def test_lora_trains_the_additions_alone_in_any_stage(place, tmp_path):
    before = {n: t.clone() for n, t in tiny_model("image", "imu").state_dict().items()}
    stage = {"trainable": ["llm.*", "tags.*"], "lora": LORA}
    model, records = tiny_run(
        place / "shards", tmp_path, stage=stage, optim={"lr": 1e-2}, length={"steps": 8}
    )
    assert records[-1]["loss"] < records[0]["loss"]
    assert not has_lora(model.llm)
    after = model.state_dict()
    assert before.keys() == after.keys()
    moved = {n for n in after if not torch.equal(after[n], before[n])}
    linear = {n for n in after if n.startswith("llm.") and "proj" in n}
    assert moved == linear | {n for n in after if n.startswith("tags.")}
    loaded = OneLLM.from_pretrained(tmp_path)
    assert all(torch.equal(loaded.state_dict()[n], after[n]) for n in after)


def test_a_merged_lora_answers_like_the_additions():
    model = tiny_model("imu")
    ids = torch.tensor([[1, 5, 9, 7]])
    add_lora(model, LoraConfig(**LORA), seed=3)
    with torch.no_grad():
        for name, parameter in model.llm.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
        apart = model.llm(input_ids=ids).logits
        merge_lora(model)
        torch.testing.assert_close(model.llm(input_ids=ids).logits, apart, atol=1e-5, rtol=1e-5)
    assert not hasattr(model.llm, "peft_config")


def test_a_lora_run_resumes_bit_for_bit_and_exports(place, tmp_path):
    def run(name: str, steps: int) -> OneLLM:
        config = tiny_config(
            *(place / "shards", tmp_path / name),
            model=str(place / "start"),
            stage={"trainable": ["llm.*", "projector.*"], "lora": LORA},
            length={"steps": steps},
            optim={"schedule": "constant"},
        )
        run_training(config)
        return OneLLM.from_pretrained(tmp_path / name)

    whole = run("whole", 6)
    run("cut", 4)
    cut = run("cut", 6)
    names = list(whole.state_dict())
    assert all(torch.equal(whole.state_dict()[n], cut.state_dict()[n]) for n in names)
    export_run(tmp_path / "cut", tmp_path / "exported")
    exported = OneLLM.from_pretrained(tmp_path / "exported")
    assert all(torch.equal(whole.state_dict()[n], exported.state_dict()[n]) for n in names)


def test_targets_that_the_llm_has_not():
    with pytest.raises(ConfigError, match=r"stage\.lora\.targets"):
        add_lora(tiny_model("imu"), LoraConfig(targets=("nowhere",)), seed=0)


def test_lora_over_4_bit_weights_learns_and_is_saved_alone(place, tmp_path):
    config = tiny_config(
        *(place / "shards", tmp_path),
        model=str(place / "start"),
        dtype="bfloat16",
        stage={"trainable": ["llm.*", "tags.*"], "lora": LORA},
        compute={"llm_bits": 4, "recompute": ["llm"]},
        optim={"lr": 1e-2},
        length={"steps": 8},
    )
    run_training(config)
    import json

    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    first, last = (json.loads(lines[i])["loss"] for i in (0, -1))
    assert last < first
    base = OneLLM.from_pretrained(place / "start")
    model = base.with_additions(tmp_path)
    assert has_lora(model.llm)
    assert model.generate("What is this?", max_new_tokens=2) is not None


def test_4_bit_weights_are_near_and_small_and_pass_gradients():
    model = tiny_model("imu")
    ids = torch.tensor([[1, 5, 9, 7]])
    want = model.llm(input_ids=ids).logits
    add_lora(model, LoraConfig(**LORA), seed=0)
    assert quantize_frozen(model.llm, torch.device("cpu")) == 14
    logits = model.llm(input_ids=ids).logits
    assert float((logits - want).detach().norm() / want.norm()) < 0.3
    logits.sum().backward()
    reached = [n for n, p in model.llm.named_parameters() if p.grad is not None]
    assert reached
    assert all("lora_" in name for name in reached)
    with pytest.raises(ConfigError, match="4-bit"):
        merge_lora(model)


# -- experts ------------------------------------------------------------------------------------


def plain_mix(model: OneLLM, name: str, x_BND: torch.Tensor) -> torch.Tensor:
    """The projector as it is usually written: expert by expert, all tokens in every block."""
    upm, count = model.projector, model.projector.config.queries
    x_BND = upm.proj_in[name](x_BND)
    x_BND = torch.cat([upm.queries[name].expand(len(x_BND), -1, -1), x_BND], 1)
    weight_BNE = upm.routers[name](x_BND)
    mixed = 0
    for e in range(upm.config.experts):
        y = x_BND
        for block in upm.experts:
            normed = (
                nn.functional.rms_norm(y, y.shape[-1:], eps=block.eps) * block.attention_norm[e]
            )
            q, k, v = (
                (normed @ w[e].T).unflatten(-1, (block.heads, -1)).transpose(1, 2)
                for w in (block.wq, block.wk, block.wv)
            )
            share = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
            y = y + (share @ v).transpose(1, 2).flatten(2) @ block.wo[e].T
            normed = nn.functional.rms_norm(y, y.shape[-1:], eps=block.eps) * block.ffn_norm[e]
            hidden = nn.functional.silu(normed @ block.w1[e].T) * (normed @ block.w3[e].T)
            y = y + hidden @ block.w2[e].T
        mixed = mixed + weight_BNE[:, :count, e, None] * y[:, :count]
    return mixed


def test_fused_experts_and_trimmed_last_block_have_the_gradients_of_the_plain_form():
    model = tiny_model("imu").train()
    select(model, ["projector.*"], ["imu"])
    features = model.features("imu", torch.randn(3, 6, 40))
    features.x_BND.requires_grad_()
    weights = torch.randn(3, 4, 32)
    parameters = dict(model.projector.named_parameters())

    def gradients(mixed: torch.Tensor) -> dict[str, torch.Tensor]:
        inputs = [features.x_BND, *parameters.values()]
        found = torch.autograd.grad((mixed * weights).sum(), inputs, allow_unused=True)
        names = ["input", *parameters]
        return {n: g for n, g in zip(names, found, strict=True) if g is not None}

    ours = gradients(model.projector.mix(features))
    plain = gradients(plain_mix(model, "imu", features.x_BND))
    assert ours.keys() == plain.keys()
    assert len(ours) > 20
    for name, grad in ours.items():
        assert float((grad - plain[name]).abs().max()) <= 1e-5 * float(grad.abs().max()), name


def test_recomputing_reaches_tokenizers_through_a_frozen_encoder_and_llm(place, tmp_path):
    model = tiny_model("image", "imu").train()
    select(model, ["tokenizers.*"], ["imu"])
    for part in ("encoder", "llm"):
        getattr(model, part).eval()
    from onellm.data.loader import Example, Medium

    ids = torch.arange(3, 12)
    medium = Medium("imu", "imu/0", torch.randn(6, 40))
    batch = [Example("0", "imu", (medium,), ids, ids.clone(), "")]
    objective = LanguageModelling(model)

    def grad() -> torch.Tensor:
        model.zero_grad()
        objective(batch).total.backward()
        return model.tokenizers["imu"].conv.weight.grad.clone()

    want = grad()
    for part in PARTS:
        for block in blocks_of(model, part):
            recompute(block)
    assert float(want.abs().max()) > 0
    torch.testing.assert_close(grad(), want)
