"""A LLaMA small enough for a smoke run, with a tokenizer trained on the data's own text."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from onellm.llm import build_llama
from onellm.preset import TinyLLM
from onellm.text import HFText


def build_tiny_llm(sizes: TinyLLM, texts: Iterable[str]) -> tuple[nn.Module, HFText]:
    """Build a LLaMA with random weights; a stage that trains ``llm.*`` on text teaches it.

    Args:
        sizes: of the model.
        texts: what the byte-level tokenizer is trained on.
    """
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    special = ["<s>", "</s>"]
    bpe.train_from_iterator(
        list(texts), vocab_size=sizes.vocab, special_tokens=special, show_progress=False
    )
    text = HFText(
        PreTrainedTokenizerFast(
            tokenizer_object=bpe._tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
        )
    )
    llm = build_llama(
        vocab=sizes.vocab,
        width=sizes.width,
        layers=sizes.layers,
        heads=sizes.heads,
        hidden=4 * sizes.width,
    )
    return llm, text
