"""The options of verbs that ask a model, and loading it as they say."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from onellm.errors import ConfigError

if TYPE_CHECKING:
    from onellm.model import OneLLM


class Kind(StrEnum):
    """Types of weights, on disk or in memory."""

    float16 = "float16"
    bfloat16 = "bfloat16"
    float32 = "float32"


Model = Annotated[str, typer.Option(help="Folder of a saved model, or a hub id.")]
# For verbs that ask for it themselves, so as to tell a misspelt --model from one left out.
NeededModel = Annotated[
    str, typer.Option(show_default=False, help="Folder of a saved model, or a hub id.  [required]")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …; by default the GPU if any.")]
Dtype = Annotated[str, typer.Option(help="Of the weights: float32, bfloat16 or float16.")]
Bits = Annotated[
    int, typer.Option(help="8 or 4: the LLM's weights take a half or a quarter of bfloat16's room.")
]


def check_settings(model: str, dtype: str = "float32", bits: int = 0) -> None:
    """Find mistakes that can be found before torch is imported.

    Raises:
        ConfigError: no model is named, or settings that there are not.
        CheckpointError: the model is not there.
    """
    from onellm.model_folder import config_of
    from onellm.spelling import did_you_mean

    if not model:
        raise ConfigError("--model is missing: --model DIR, a folder of a saved model or a hub id")
    kinds = [kind.value for kind in Kind]
    if dtype not in kinds:
        raise ConfigError(f"unknown --dtype {dtype}.{did_you_mean(dtype, kinds)}")
    if bits not in (0, 4, 8):
        raise ConfigError(f"--bits {bits}: the LLM's weights can have 8 or 4")
    config_of(model)


def load_model(model: str, device: str = "", dtype: str = "float32", bits: int = 0) -> OneLLM:
    """Load a model to ask.

    Args:
        model: folder or hub id.
        device: where to put it; the GPU if there is one, if left empty.
        dtype: of the weights.
        bits: 8 or 4 quantise the LLM; 0 does not.

    Raises:
        ConfigError: see :func:`check_settings`; or a device that cannot be had.
        CheckpointError: the model is not there, or does not load.
    """
    check_settings(model, dtype, bits)
    import torch

    from onellm.checkpoint import load_pretrained

    if not device:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {device}: {str(error).splitlines()[0]}") from error
    return load_pretrained(model, device=device, dtype=getattr(torch, dtype), bits=bits)
