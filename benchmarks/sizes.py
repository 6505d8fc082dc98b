"""Models of the benchmarks: random weights in sizes from a second's work to the published ones."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from onellm.encoder import EncoderConfig
from onellm.llm import build_llama
from onellm.model import OneLLM, OneLLMConfig
from onellm.projection.upm import UPMConfig

LLMS: dict[str, dict[str, int]] = {
    "tiny": {"vocab": 320, "width": 64, "layers": 2, "heads": 2, "hidden": 128},
    # Width and depth of the quick start's LLM.
    "small": {"vocab": 49152, "width": 576, "layers": 30, "heads": 9, "hidden": 1536},
    "7b": {"vocab": 32000, "width": 4096, "layers": 32, "heads": 32, "hidden": 11008},
}
ENCODERS: dict[str, dict[str, Any]] = {
    "tiny": {"image_size": 28, "width": 32, "layers": 2, "heads": 2, "output_dim": 16},
    "small": {"width": 256, "layers": 4, "heads": 4, "output_dim": 64},
    "7b": {},  # the defaults: ViT-L/14
}
PROJECTORS: dict[str, dict[str, int]] = {
    "tiny": {"width": 32, "queries": 4, "depth": 2, "heads": 2, "multiple_of": 16},
    "small": {"width": 256, "depth": 4, "heads": 4},
    "7b": {},
}
TINY_MODALITIES: dict[str, dict[str, Any]] = {
    "image": {"size": 28},
    "video": {"size": 28, "sampling": "uniform", "frames": 3},
    "audio": {"frames": 36},
    "point": {"points": 64, "groups": 8, "neighbours": 4},
    "depth": {"size": 28},
    "normal": {"size": 28},
    "imu": {"steps": 40},
    "fmri": {"voxels": 60, "tokens": 4},
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parser_of(doc: str, examples: str) -> argparse.ArgumentParser:
    """A parser of what every benchmark of these models takes: size, device and dtype.

    Args:
        doc: the script's docstring, whose first paragraph describes it.
        examples: shown below the options.
    """
    parser = argparse.ArgumentParser(
        description=doc.split("\n\n")[0],
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", choices=LLMS, default="tiny")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    return parser


def build(size: str, device: torch.device, dtype: torch.dtype, *, llm: bool = True) -> OneLLM:
    """A model with random weights.

    Args:
        size: a key of ``LLMS``.
        device: where it is to run; the LLM is made there, which is faster for large ones.
        dtype: of its weights.
        llm: with its LLM; otherwise with one of its width and a single small block.
    """
    torch.manual_seed(0)
    sizes = LLMS[size] if llm else {**LLMS[size], "layers": 1, "vocab": 8, "hidden": 8}
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            language = build_llama(**sizes)
    finally:
        torch.set_default_dtype(usual)
    config: dict[str, Any] = {
        "encoder": EncoderConfig(**ENCODERS[size]),
        "projector": UPMConfig(**PROJECTORS[size]),
    }
    if size == "tiny":
        config["modalities"] = TINY_MODALITIES
    return OneLLM(OneLLMConfig(**config), language).to(device, dtype).eval()
