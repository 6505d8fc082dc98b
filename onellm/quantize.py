"""8-bit and 4-bit weights for the LLM, through torchao (extra ``quant``).

Tokenizers, encoder, projector, the LLM's embeddings and its output head stay as they are: together
they are a tenth of the published model, and what is lost in them is lost in every token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from onellm.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from onellm.model import OneLLM

# 4-bit weights share a scale in groups of this many, and kernels take rows by 16.
GROUP, ROWS = 32, 16


def quantize_llm(model: OneLLM, bits: int) -> None:
    """Replace the LLM's linear layers by ones with 8-bit or 4-bit weights, in place.

    For answering, not for training or saving. With 4 bits the LLM computes in bfloat16, which is
    what the kernels are made for.

    Args:
        model: the model, on the device where it is to run.
        bits: 8 (a scale per row) or 4 (a scale per 32 weights).

    Raises:
        ConfigError: another number of bits.
        MissingExtra: torchao is not installed.
    """
    if bits not in (4, 8):
        raise ConfigError(f"the LLM's weights can have 8 or 4 bits, not {bits}")
    try:
        from torchao.quantization import quantize_
    except ImportError as error:
        raise MissingExtra("torchao", "quant") from error
    llm = model.llm
    head = llm.get_output_embeddings()
    if bits == 4:
        llm.to(torch.bfloat16)
    settings = _settings(bits, llm.device)

    def chosen(module: nn.Module, name: str) -> bool:
        if not isinstance(module, nn.Linear) or module is head:
            return False
        return bits == 8 or (module.in_features % GROUP == 0 and module.out_features % ROWS == 0)

    quantize_(llm, settings, filter_fn=chosen)


def _settings(bits: int, device: torch.device) -> Any:
    """Describe the weights to torchao; its 4-bit kernels differ between devices."""
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig

    if bits == 8:
        return Int8WeightOnlyConfig()
    if device.type != "cpu":
        return Int4WeightOnlyConfig(group_size=GROUP, int4_packing_format="tile_packed_to_4d")
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

    return PrototypeInt4WeightOnlyConfig(group_size=GROUP, set_inductor_config=False)
