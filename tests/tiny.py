"""A model small enough to build in a second, with any of the eight modalities."""

from __future__ import annotations

from typing import Any

import torch

from onellm.encoder import EncoderConfig
from onellm.llm import build_llama
from onellm.model import OneLLM, OneLLMConfig
from onellm.projection.upm import UPMConfig
from onellm.text import HFText

SENTENCES = [
    "What is this? It is a chair, a table, a plant or a lamp.",
    "Which instrument is playing? A piano, a violin and a flute.",
    "Is the person walking? Answer yes or no. The person is running.",
    "Provide a one-sentence caption for the provided image, video or audio.",
]
ENCODER = EncoderConfig(image_size=28, patch_size=14, width=32, layers=2, heads=2, output_dim=16)
PROJECTOR = UPMConfig(width=32, queries=4, experts=3, depth=2, heads=2, multiple_of=16)
MODALITIES: dict[str, dict[str, Any]] = {
    "image": {"size": 28},
    "video": {"size": 28, "sampling": "uniform", "frames": 3},
    "audio": {"frames": 36},
    "point": {"points": 64, "groups": 8, "neighbours": 4},
    "depth": {"size": 28},
    "normal": {"size": 28},
    "imu": {"steps": 40},
    "fmri": {"voxels": 60, "tokens": 4},
}


def tiny_text() -> HFText:
    """A byte-level tokenizer trained on four sentences."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        SENTENCES, vocab_size=320, special_tokens=["<s>", "</s>"], show_progress=False
    )
    return HFText(
        PreTrainedTokenizerFast(
            tokenizer_object=bpe._tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
        )
    )


def tiny_model(*modalities: str, seed: int = 0, prompt_format: str = "plain") -> OneLLM:
    """A random model with the named modalities, all eight if none is named."""
    torch.manual_seed(seed)
    names = modalities or tuple(MODALITIES)
    config = OneLLMConfig(
        encoder=ENCODER,
        projector=PROJECTOR,
        modalities={name: MODALITIES[name] for name in names},
        prompt_format=prompt_format,
    )
    llm = build_llama(vocab=320, width=32, layers=2, heads=2, hidden=64)
    return OneLLM(config, llm, tiny_text()).eval()


def signals(model: OneLLM, name: str, batch: int = 2, seed: int = 0) -> torch.Tensor:
    """Random signals of a modality's shape, on a batch axis."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, *model.modality(name).example().shape, generator=generator)
