"""Getting a causal language model: from Hugging Face, GGUF, Meta's own files or bare sizes.

The LLM is never forked: whatever ``transformers`` returns is used through its public face.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from onellm.errors import CheckpointError
from onellm.text import HFText, TextTokenizer


def load_llm(
    source: str | Path, *, dtype: torch.dtype = torch.float32
) -> tuple[Any, TextTokenizer]:
    """Load any Hugging Face causal LM and its tokenizer.

    Args:
        source: a hub id, a folder, a ``.gguf`` file, or a folder of Meta's ``consolidated.*.pth``
            with ``params.json`` and ``tokenizer.model``.
        dtype: parameter type; bfloat16 matrix-vector products are slow on many CPUs.

    Raises:
        CheckpointError: it cannot be loaded; the message carries the reason.
    """
    if is_meta_folder(source):
        from onellm.meta_llama import load_meta_llama

        return load_meta_llama(source, dtype=dtype)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place, options = str(source), {}
    if place.endswith(".gguf"):
        options["gguf_file"] = Path(place).name
        place = str(Path(place).parent)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
        llm = AutoModelForCausalLM.from_pretrained(place, dtype=dtype, **options)
    except (OSError, ValueError, ImportError) as error:
        raise CheckpointError(f"{source}: cannot be loaded as a causal LM ({error})") from error
    return llm, HFText(tokenizer)


def is_meta_folder(source: str | Path) -> bool:
    """Whether it is a folder of Meta's checkpoint files rather than of Hugging Face's."""
    folder = Path(source)
    return any(folder.glob("consolidated.*.pth")) and not (folder / "config.json").is_file()


def build_llama(
    *,
    vocab: int,
    width: int,
    layers: int,
    heads: int,
    hidden: int,
    eps: float = 1e-5,
    kv_heads: int | None = None,
    rope_theta: float = 10000.0,
    positions: int = 2048,
) -> nn.Module:
    """Build a LLaMA with random weights.

    Args:
        vocab: number of token ids.
        width: D of the embeddings.
        layers: number of blocks.
        heads: attention heads per block.
        hidden: feed-forward width.
        eps: of the RMSNorms.
        kv_heads: heads of keys and values; as many as of queries if left out.
        rope_theta: base of the rotary frequencies.
        positions: longest sequence.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads or heads,
            intermediate_size=hidden,
            rms_norm_eps=eps,
            max_position_embeddings=positions,
            rope_theta=rope_theta,
            tie_word_embeddings=False,
        )
    )


def llm_from_config(config: dict[str, Any], dtype: torch.dtype) -> nn.Module:
    """Build the LLM that a saved model describes, before its weights are loaded.

    Args:
        config: what ``llm.config.to_dict()`` gave when it was saved.
        dtype: parameter type.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {k: v for k, v in config.items() if k not in {"model_type", "quantization_config"}}
    described = AutoConfig.for_model(config["model_type"], **settings)
    return AutoModelForCausalLM.from_config(described, dtype=dtype)
