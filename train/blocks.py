"""How the blocks of a model are computed: kept or recomputed, compiled, with which attention.

All of it attaches to the blocks from outside; the encoder is open_clip's and the LLM transformers'.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from onellm.errors import ConfigError
from onellm.model import OneLLM
from onellm.train.compute import ComputeConfig
from onellm.train.light_llm import lighten, plain
from onellm.train.packed_attention import use_own_attention, use_packed_attention


def apply_compute(model: OneLLM, config: ComputeConfig) -> None:
    """Set a model up as its configuration says, in place.

    Args:
        model: with its LoRA, if it gets one.
        config: parts to recompute and to compile, attention of the LLM.

    Raises:
        ConfigError: the LLM does not offer that attention, or flash-attn is not installed.
    """
    if config.attention != "as_is":
        _set_attention(model.llm, config.attention)
    use_packed_attention(model.llm)
    lighten(model.llm)
    for part in config.recompute:
        for block in blocks_of(model, part):
            recompute(block)
    for part in config.compile:
        for block in blocks_of(model, part):
            block.compile()


def blocks_of(model: OneLLM, part: str) -> list[nn.Module]:
    """The transformer blocks of a part, in order.

    Args:
        model: the model.
        part: ``"encoder"``, ``"projector"`` or ``"llm"``.
    """
    if part == "encoder":
        return list(model.encoder.visual.transformer.resblocks)
    if part == "projector":
        return list(model.projector.experts)
    return layers_of(model.llm)


def layers_of(llm: Any) -> list[nn.Module]:
    """The transformer blocks of an LLM, in order.

    Raises:
        ConfigError: it has no list of as many blocks as its configuration says.
    """
    lists = [module for module in llm.modules() if isinstance(module, nn.ModuleList)]
    depth = llm.config.get_text_config().num_hidden_layers
    found = [blocks for blocks in lists if len(blocks) == depth]
    if not found:
        raise ConfigError(f"compute: {type(llm).__name__} has no list of {depth} blocks")
    return list(found[0])


class _Recomputed(nn.Module):
    """Mixed into a block's class: keep its input alone, and run it again in the backward pass."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return super().__call__(*args, **kwargs)
        # The whole call, hooks included: ZeRO 3 gathers weights in them.
        return checkpoint(super().__call__, *args, use_reentrant=False, **kwargs)


def recompute(block: nn.Module) -> None:
    """Make a block keep only its input for the backward pass, in place.

    Not ``gradient_checkpointing_enable``: that does nothing in evaluation mode, in which the
    frozen LLM of an alignment stage is, and gradients flow through it all the same.

    Args:
        block: any module; one that is recomputed already is left as it is.
    """
    cls = type(block)
    if not issubclass(cls, _Recomputed):
        block.__class__ = type(cls.__name__, (_Recomputed, cls), {})


def keep(block: nn.Module) -> None:
    """Undo :func:`recompute`."""
    cls = type(block)
    if _Recomputed in cls.__bases__:
        block.__class__ = cls.__bases__[1]


def restore(model: OneLLM, config: ComputeConfig) -> None:
    """Leave a trained model as any other: nothing is recomputed any more."""
    plain(model.llm)
    use_own_attention(model.llm)
    for part in config.recompute:
        for block in blocks_of(model, part):
            keep(block)


def _set_attention(llm: Any, name: str) -> None:
    try:
        llm.set_attn_implementation(name)
    except ImportError as error:
        raise ConfigError(
            f"compute.attention={name} needs the package flash-attn: pip install flash-attn"
        ) from error
    except ValueError as error:
        said = " ".join(str(error).split())[:200]
        raise ConfigError(f"compute.attention={name}: the LLM cannot ({said})") from error
