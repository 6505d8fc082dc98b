"""LoRA of the LLM in any stage, over 16-bit or 4-bit weights.

The additions are put into the LLM itself, so that its class, its names and whatever else of the
training knows it stay as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from onellm.errors import ConfigError, MissingExtra
from onellm.model import OneLLM
from onellm.train.compute import LoraConfig


def add_lora(model: OneLLM, config: LoraConfig, seed: int) -> None:
    """Put trainable low-rank additions into the LLM and freeze the rest of it.

    Args:
        model: its other parts' trainable parameters are left as they are.
        config: rank, scale, targets.
        seed: of the initial weights.

    Raises:
        MissingExtra: peft is not installed.
        ConfigError: no layer of the LLM is meant by ``targets``.
    """
    try:
        from peft import LoraConfig as Peft
        from peft import inject_adapter_in_model
    except ImportError as error:
        raise MissingExtra("peft", "lora") from error
    targets = config.targets if isinstance(config.targets, str) else list(config.targets)
    wanted = Peft(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    model.llm.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(wanted, model.llm)
        except ValueError as error:
            said = " ".join(str(error).split())[:200]
            raise ConfigError(f"stage.lora.targets: {said}") from error
    # In float32 over whatever the frozen weights are, as small steps need.
    for name, parameter in model.llm.named_parameters():
        if "lora_" in name and not parameter.is_meta:
            parameter.data = parameter.data.float()
        parameter.requires_grad_("lora_" in name)


def has_lora(llm: nn.Module) -> bool:
    """Whether low-rank additions are inside an LLM."""
    return any("lora_" in name for name, _ in llm.named_parameters())


def lora_layers(llm: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """Layers with additions, as (owner, name in it, layer)."""
    return [
        (owner, name, child)
        for owner in llm.modules()
        for name, child in owner.named_children()
        if hasattr(child, "lora_A") and hasattr(child, "base_layer")
    ]


@torch.no_grad()
def merge_lora(model: OneLLM) -> None:
    """Add the additions to the LLM's weights, in place, and leave an ordinary LLM.

    Raises:
        ConfigError: the weights have 4 bits, into which nothing can be added exactly.
    """
    layers = lora_layers(model.llm)
    if any(not _is_plain(layer.base_layer.weight) for _, _, layer in layers):
        raise ConfigError("a LoRA over 4-bit weights cannot be merged; save it alone")
    for owner, name, layer in layers:
        layer.merge()
        setattr(owner, name, layer.base_layer)
    if hasattr(model.llm, "peft_config"):
        del model.llm.peft_config


NF4_BLOCK = 64
"""Weights that share a scale, as in the QLoRA paper."""


def quantize_frozen(llm: nn.Module, device: torch.device) -> int:
    """Keep the frozen linear weights of an LLM in 4-bit NF4, in place; gradients pass through.

    The output layer keeps its type, and so do layers with a bias or of odd sizes.

    Args:
        llm: with its LoRA inside.
        device: where the weights are to be.

    Returns:
        how many weights' layers were changed.

    Raises:
        MissingExtra: torchao is not installed.
    """
    try:
        from torchao.quantization import to_nf4
    except ImportError as error:
        raise MissingExtra("torchao", "quant") from error
    head = llm.get_output_embeddings()  # type: ignore[operator]
    done = 0
    for name, module in llm.named_modules():
        plain = isinstance(module, nn.Linear) and module is not head and module.bias is None
        if not plain or "lora_" in name or module.weight.numel() % NF4_BLOCK:
            continue
        scalers = _largest_divisor(module.weight.numel() // NF4_BLOCK, 256)
        packed = to_nf4(module.weight.detach().to(device), NF4_BLOCK, scalers)
        module.weight = nn.Parameter(packed, requires_grad=False)
        done += 1
    return done


def _largest_divisor(number: int, limit: int) -> int:
    return next(d for d in range(min(limit, number), 0, -1) if number % d == 0)


def _is_plain(weight: torch.Tensor) -> bool:
    return type(weight.data) is torch.Tensor
