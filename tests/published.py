"""Published checkpoints at tiny size: random weights, published keys, any file layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from onellm.encoder import EncoderConfig
from onellm.llm import build_llama
from onellm.model import OneLLM, OneLLMConfig
from onellm.projection.experts import hidden_width
from onellm.projection.upm import UPMConfig
from onellm.published_files import split_axis
from onellm.published_keys import DROPPED, OursAsPublished, places
from onellm.registry import modality_classes
from onellm.slots import weights_of

PARAMS: dict[str, Any] = {
    **{"dim": 64, "n_layers": 2, "n_heads": 4, "multiple_of": 16, "norm_eps": 1e-5},
    "vocab_size": -1,
}
CLIP = {"heads": 4}


def published_model(*names: str, seed: int = 0) -> OneLLM:
    """A random model of published kind, 64 wide; ``names`` are its modalities."""
    torch.manual_seed(seed)
    classes = modality_classes()
    config = OneLLMConfig(
        encoder=EncoderConfig(width=64, layers=2, heads=4, output_dim=16),
        projector=UPMConfig(width=64, depth=2, multiple_of=16),
        modalities={name: dict(classes[name].published_options) for name in names},
        prompt_format="published",
    )
    llm = build_llama(vocab=104, width=64, layers=2, heads=4, hidden=hidden_width(64, 16))
    return OneLLM(config, llm).eval()


def published_state(
    *names: str, dtype: torch.dtype = torch.float32, text_tower: bool = True
) -> dict[str, torch.Tensor]:
    """Its weights as the published code writes them, the unused text tower among them."""
    model = published_model(*names).to(dtype)
    weights = OursAsPublished(list(places(model)), weights_of(model), "llma.")
    state = {key: weights.read(key).clone() for key in weights.shapes}
    if text_tower:
        state |= {f"llma.{key}": torch.ones(3) for key in DROPPED if key.startswith("clip.")}
    return state


def write_params(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(PARAMS))


def write_whole(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    write_params(folder)
    torch.save(state, folder / "consolidated.00-of-01.pth")
    return folder / "consolidated.00-of-01.pth"


def write_parts(folder: Path, state: dict[str, torch.Tensor], count: int) -> None:
    write_params(folder)
    keys = list(state)
    for n in range(count):
        part = {key: state[key].clone() for key in keys[n::count]}
        torch.save(part, folder / f"consolidated.00-of-01.s{n}.pth")


def write_shards(folder: Path, state: dict[str, torch.Tensor], count: int) -> None:
    """What ``count`` model-parallel processes would each have written."""
    write_params(folder)
    for n in range(count):
        shard = {}
        for key, value in state.items():
            axis = split_axis(key.removeprefix("llma."))
            whole = value if axis is None else value.chunk(count, axis)[n]
            shard[key] = whole.clone()
        torch.save(shard, folder / f"consolidated.{n:02d}-of-{count:02d}.pth")
