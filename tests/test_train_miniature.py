"""Whether an LLM keeps packed samples apart, found before there are weights."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import ENCODER, MODALITIES, PROJECTOR, tiny_model, tiny_text
from tiny_runs import tiny_config, write_shards
from torch import nn
from typer.testing import CliRunner

from onellm.cli import app
from onellm.errors import ConfigError
from onellm.llm import build_llama
from onellm.model import OneLLM, OneLLMConfig
from onellm.slots import empty_parameters
from onellm.train.compute import ComputeConfig
from onellm.train.dry_run import dry_run
from onellm.train.launch import prepare
from onellm.train.lm_head import check_packing
from onellm.train.miniature import foresee_packing, layers_to_see_all, miniatures

SIZES = {"vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 4}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
WINDOWS = {"layer_types": ["sliding_attention"] * 3 + ["full_attention"], "sliding_window": 8}
LONG = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "factor": 2.0}
FAMILIES: dict[str, tuple[dict[str, Any], bool]] = {  # settings, and whether samples stay apart
    "llama": (HEADS, True),
    "qwen3": (HEADS | {"head_dim": 32}, True),
    "gemma3_text": (HEADS | WINDOWS | {"head_dim": 32}, True),
    "mixtral": (HEADS | {"num_local_experts": 4}, True),
    "gpt2": ({"num_attention_heads": 4}, True),
    "phi3": (HEADS | {"pad_token_id": 0, "eos_token_id": 1, "rope_scaling": LONG}, True),
    "opt": ({"num_attention_heads": 4, "ffn_dim": 96, "word_embed_proj_dim": 64}, False),
    "bloom": ({"num_attention_heads": 4}, False),
    "mamba": ({"state_size": 4}, False),
    "jamba": (HEADS | {"num_experts": 2, "attn_layer_period": 4, "attn_layer_offset": 2}, False),
}


def llm_of(family: str, **settings: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings))


def refused(check: Any, *args: Any) -> bool:
    try:
        check(*args)
    except ConfigError as error:
        assert "set batch.pack=false" in str(error)
        return True
    return False


@pytest.mark.parametrize("family", FAMILIES)
def test_a_miniature_is_refused_where_the_model_itself_is(family):
    settings, apart = FAMILIES[family]
    torch.manual_seed(0)
    real = llm_of(family, **SIZES, **settings)
    for name, parameter in real.named_parameters():  # not so near zero that nothing shows
        if parameter.ndim > 1 and "embed" not in name:
            parameter.data.mul_(5)
    assert refused(check_packing, real) == (not apart)
    with empty_parameters():
        empty = llm_of(family, **SIZES, **settings)
    assert refused(foresee_packing, empty, ComputeConfig()) == (not apart)
    if apart:
        assert foresee_packing(empty, ComputeConfig()) == ""


def test_every_kind_of_layer_is_there_and_heads_keep_their_width():
    with empty_parameters():
        llm = llm_of("gemma3_text", **SIZES, **FAMILIES["gemma3_text"][0])
    assert layers_to_see_all(llm) == 4
    small = next(iter(miniatures(llm, "eager")))
    assert set(small.config.layer_types) == {"sliding_attention", "full_attention"}
    assert small.config.sliding_window == 8
    assert small.config.head_dim == 32
    assert small.config._attn_implementation == "eager"
    assert not any(p.is_meta for p in small.parameters())
    assert llm.config.vocab_size == 320  # it is left as it was


def test_layers_of_seven_billion_parameters_take_neither_time_nor_memory():
    with empty_parameters():
        llm = build_llama(vocab=32000, width=4096, layers=4, heads=32, hidden=11008)
    before, began = torch.random.get_rng_state(), time.process_time()
    assert foresee_packing(llm, ComputeConfig(attention="sdpa")) == ""
    assert time.process_time() - began < 5
    assert torch.equal(torch.random.get_rng_state(), before)
    (small, *_) = miniatures(llm, "sdpa")
    assert sum(p.numel() for p in small.parameters()) < 1e6
    assert small.config.hidden_size // small.config.num_attention_heads == 128


def test_what_cannot_be_tried_is_said():
    class Own(nn.Module):
        """Code of its own, without transformers' ways to build it."""

        def __init__(self) -> None:
            super().__init__()
            self.config = build_llama(vocab=8, width=8, layers=1, heads=1, hidden=8).config

    said = foresee_packing(Own(), ComputeConfig())
    assert "whether Own keeps the samples of a row apart cannot be tried" in said
    assert "checked as the run starts" in said
    fused = ComputeConfig(attention="flash_attention_2")
    llm = build_llama(vocab=32, width=8, layers=1, heads=1, hidden=8)
    assert foresee_packing(llm, fused).endswith("as the run starts; with sdpa it does")
    mixing = llm_of("jamba", **SIZES, **FAMILIES["jamba"][0])
    assert foresee_packing(mixing, fused).endswith("as the run starts")


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("packing")
    write_shards(folder / "shards")
    tiny_model("image", "imu").save_pretrained(folder / "llama")
    described = OneLLMConfig(
        encoder=ENCODER,
        projector=PROJECTOR,
        modalities={name: MODALITIES[name] for name in ("image", "imu")},
    )
    recurrent = llm_of("mamba", vocab_size=320, hidden_size=32, num_hidden_layers=2, state_size=4)
    OneLLM(described, recurrent, tiny_text()).save_pretrained(folder / "mamba")
    return folder


def config_of(place: Path, model: str, **compute: Any) -> Any:
    batch = {"size": 8, "per_device": 4, "arrange": "length", "pack": True}
    sections = {"model": str(place / model), "batch": batch, "compute": compute}
    return tiny_config(place / "shards", place / "out", **sections)


def test_a_dry_run_is_refused_as_the_run_would_be(place):
    config = config_of(place, "mamba")
    said = "MambaForCausalLM attends across the samples of a packed row"
    with pytest.raises(ConfigError, match=said):
        dry_run(config)
    from onellm.train.engine import Place

    with pytest.raises(ConfigError, match=said):
        prepare(config, OneLLM.from_pretrained(place / "mamba"), Place())
    assert dry_run(config_of(place, "llama")).notes == []


def test_the_verb_says_what_it_could_not_try(place, tmp_path):
    import json

    file = tmp_path / "run.yaml"
    config = config_of(place, "llama", attention="flash_attention_2")
    file.write_text(json.dumps(config.model_dump(mode="json")))
    done = CliRunner().invoke(app, ["train", str(file), "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "with flash_attention_2 cannot be tried" in " ".join(done.output.split())
