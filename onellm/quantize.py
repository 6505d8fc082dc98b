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
    what the kernels are made for; with 8 bits it does so in place of float16. A saved model
    is better loaded so (``OneLLM.from_pretrained(path, bits=8)``): its weights are then never
    whole in memory.

    Args:
        model: the model, on the device where it is to run.
        bits: 8 (a scale per row) or 4 (a scale per 32 weights).

    Raises:
        ConfigError: another number of bits.
        MissingExtra: torchao is not installed.
    """
    quantizer = Quantizer(model.llm, bits, model.device)
    for name in [name for name, _ in model.llm.named_parameters()]:
        quantizer.convert(name)


class Quantizer:
    """Converts an LLM's weights one by one, as they come.

    Args:
        llm: any causal LM, which may have no weights yet.
        bits: 8 or 4.
        device: where the weights are, or will be.

    Raises:
        ConfigError: another number of bits.
        MissingExtra: torchao is not installed.
    """

    def __init__(self, llm: nn.Module, bits: int, device: str | torch.device) -> None:
        if bits not in (4, 8):
            raise ConfigError(f"the LLM's weights can have 8 or 4 bits, not {bits}")
        try:
            from torchao.quantization import quantize_
        except ImportError as error:
            raise MissingExtra("torchao", "quant") from error
        self._quantize, self._settings = quantize_, _settings(bits, torch.device(device))
        self._llm, self._bits = llm, bits
        self._head = llm.get_output_embeddings()  # type: ignore[operator]

    def convert(self, name: str) -> None:
        """Convert one weight, if it is among those that are to have fewer bits.

        Args:
            name: of a parameter or buffer within the LLM, which has its numbers now.
        """
        home, _, leaf = name.rpartition(".")
        module = self._llm.get_submodule(home)
        parameter = module._parameters.get(leaf)
        if parameter is None:  # a buffer; rotary frequencies, say, stay in float32
            return
        # With 8 bits, whole numbers up to 127 are added up before they are scaled, which is more
        # than float16 holds: answers would be empty.
        if parameter.dtype == torch.float16 or (self._bits == 4 and parameter.is_floating_point()):
            parameter.data = parameter.data.to(torch.bfloat16)
        if leaf == "weight" and self._chosen(module):
            self._quantize(module, self._settings, filter_fn=lambda *_: True)

    def _chosen(self, module: nn.Module) -> bool:
        if not isinstance(module, nn.Linear) or module is self._head:
            return False
        even = module.in_features % GROUP == 0 and module.out_features % ROWS == 0
        return self._bits == 8 or even


def _settings(bits: int, device: torch.device) -> Any:
    """Describe the weights to torchao; its 4-bit kernels differ between devices."""
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig

    if bits == 8:
        return Int8WeightOnlyConfig()
    if device.type != "cpu":
        return Int4WeightOnlyConfig(group_size=GROUP, int4_packing_format="tile_packed_to_4d")
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

    return PrototypeInt4WeightOnlyConfig(group_size=GROUP, set_inductor_config=False)
