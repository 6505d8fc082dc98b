"""Small LLMs of the same class, to try what needs numbers before there are any weights.

Whether a model keeps the samples of a packed row apart is decided by its code and its settings,
not by its size. So heads keep their width, for which rotary settings are made, and every kind of
layer is there once; the other sizes are cut down.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from onellm.errors import ConfigError
from onellm.train.blocks import layers_of
from onellm.train.compute import ComputeConfig
from onellm.train.lm_head import check_packing

MOST = 300_000_000
"""Parameters of a miniature at most; a larger one is not built."""
_WORDS, _HIDDEN = 64, 16
_FEED_FORWARD = (
    *("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size"),
    *("intermediate_size_mlp", "ffn_dim", "n_inner"),
)
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")


def foresee_packing(llm: Any, compute: ComputeConfig) -> str:
    """Check packed rows before a run, and say where that could not be done.

    Args:
        llm: as a run will start from it; it may have no memory for its weights.
        compute: how the run will compute.

    Returns:
        a line for the person who asks; empty where all is known.

    Raises:
        ConfigError: the run would be refused.
    """
    asked = compute.attention
    if asked == "flash_attention_2":  # nothing but a GPU has it
        with_sdpa = ""
        with suppress(ConfigError):
            with_sdpa = "; with sdpa it does" if try_packing(llm, "sdpa") else ""
        return f"{_UNKNOWN.format(type(llm).__name__)} with {asked} {_LATER}{with_sdpa}"
    known = try_packing(llm, llm.config._attn_implementation if asked == "as_is" else asked)
    return "" if known else f"{_UNKNOWN.format(type(llm).__name__)} {_LATER}"


_UNKNOWN = "batch.pack: whether {} keeps the samples of a row apart"
_LATER = "cannot be tried before there are weights; it is checked as the run starts"


def try_packing(llm: Any, attention: str) -> bool:
    """Make sure by a miniature that an LLM keeps the samples of a packed row apart.

    Args:
        llm: of ``transformers``; it may have no memory for its weights.
        attention: implementation, as ``transformers`` names it.

    Returns:
        False where no miniature can be built or run, so that nothing is known.

    Raises:
        ConfigError: it does not keep them apart.
    """
    for small in miniatures(llm, attention):
        try:
            check_packing(small, 1e-4)
        except ConfigError:
            raise
        except Exception:  # sizes that only clash when it runs
            continue
        return True
    return False


def miniatures(llm: Any, attention: str) -> Iterator[nn.Module]:
    """Small LLMs with random float32 weights, the smallest first.

    A model whose sizes hang together in a way that is not known here refuses some of them, and may
    refuse all; so may one with code of its own.

    Args:
        llm: of ``transformers``; it may have no memory for its weights.
        attention: implementation, as ``transformers`` names it.
    """
    for shrink in (_narrow, _shallow):
        config = copy.deepcopy(llm.config)
        try:
            shrink(config.get_text_config(), llm)
            with torch.device("meta"):
                size = sum(p.numel() for p in _built(llm, config, attention).parameters())
            if size > MOST:
                continue
            with torch.random.fork_rng(devices=[]):
                small = _built(llm, config, attention).eval()
        except Exception:  # whatever a class of others says of sizes that it does not expect
            continue
        yield small


def _built(llm: Any, config: Any, attention: str) -> nn.Module:
    built: nn.Module = type(llm)._from_config(
        config, dtype=torch.float32, attn_implementation=attention
    )
    return built


def _shallow(config: Any, llm: Any) -> None:
    """Few layers, few words."""
    layers = layers_to_see_all(llm)
    if getattr(config, "layer_types", None):
        with suppress(AttributeError):  # those of some follow from other settings
            config.layer_types = list(config.layer_types[:layers])
    config.num_hidden_layers = layers
    for name in _TOKENS:
        if getattr(config, name, None) is not None:
            setattr(config, name, 0)
    config.vocab_size = _WORDS


def _narrow(config: Any, llm: Any) -> None:
    """Few heads and narrow feed-forward layers, too."""
    _shallow(config, llm)
    heads = config.num_attention_heads
    keys = getattr(config, "num_key_value_heads", None)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    few_keys = min(2, keys or heads)
    few = few_keys * min(2, heads // (keys or heads))
    config.num_attention_heads, config.hidden_size = few, few * width
    if keys:
        config.num_key_value_heads = few_keys
    for name in _FEED_FORWARD:
        if getattr(config, name, None):
            setattr(config, name, _HIDDEN)
    if getattr(config, "mamba_n_heads", None) and not getattr(config, "mamba_d_ssm", None):
        inner = config.mamba_expand * config.hidden_size
        config.mamba_n_heads = inner // config.mamba_d_head


def layers_to_see_all(llm: Any) -> int:
    """How many layers from the first on have every kind of layer among them.

    Args:
        llm: of ``transformers``.

    Raises:
        ConfigError: it has no list of as many layers as its configuration says.
    """
    types = getattr(llm.config.get_text_config(), "layer_types", None) or ()
    kinds = [
        (*types[n : n + 1], *((name, type(module)) for name, module in block.named_modules()))
        for n, block in enumerate(layers_of(llm))
    ]
    return max(kinds.index(kind) for kind in set(kinds)) + 1
