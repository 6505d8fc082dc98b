"""The universal projection module against a plain implementation of the published loop.

The rival runs one expert after the other, each block over the whole sequence, and the router over
all tokens, of which 30 are read (spec §1.5, §6.2). It has our weights, and must give our outputs.
Beside it: seconds of each part of encoding, by modality. The last line is JSON.

Shape legend: B batch, N tokens, Q queries, D width, E experts, H heads, K head width.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from clock import machine, seconds_of
from sizes import DTYPES, build, parser_of
from torch import Tensor, nn
from torch.nn import functional

from onellm.model import OneLLM
from onellm.projection.experts import ExpertBlock
from onellm.projection.upm import UPM
from onellm.sequence import TokenSeq

EXAMPLES = """examples:
  python benchmarks/encode.py --size tiny
  python benchmarks/encode.py --size 7b --modalities image audio --batches 1
  python benchmarks/encode.py --size 7b --device cuda --dtype bfloat16 --batches 1 8
"""
# The largest difference between outputs of size 1 (they leave a LayerNorm) that rounding makes.
CLOSE = {torch.float32: 1e-3, torch.bfloat16: 0.3, torch.float16: 0.05}


class SerialBlock(nn.Module):
    """One block of one expert, as a LLaMA block is usually written."""

    def __init__(self, stacked: ExpertBlock, expert: int) -> None:
        super().__init__()
        self.heads, self.eps = stacked.heads, stacked.eps
        for name in ("wq", "wk", "wv", "wo", "w1", "w2", "w3"):
            weight = getattr(stacked, name)[expert].detach().clone()
            linear = nn.Linear(1, 1, bias=False)
            linear.weight = nn.Parameter(weight, requires_grad=False)
            setattr(self, name, linear)
        self.attention_norm = stacked.attention_norm[expert].detach().clone()
        self.ffn_norm = stacked.ffn_norm[expert].detach().clone()

    def forward(self, x_BND: Tensor) -> Tensor:
        """Attention and feed-forward of all tokens: (B, N, D) → (B, N, D)."""
        normed = self._norm(x_BND, self.attention_norm)
        query, key, value = (
            linear(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear in (self.wq, self.wk, self.wv)
        )
        mixed_BHNK = functional.scaled_dot_product_attention(query, key, value)
        x_BND = x_BND + self.wo(mixed_BHNK.transpose(1, 2).flatten(2))
        normed = self._norm(x_BND, self.ffn_norm)
        return x_BND + self.w2(functional.silu(self.w1(normed)) * self.w3(normed))

    def _norm(self, x_BND: Tensor, weight_D: Tensor) -> Tensor:
        return (
            functional.rms_norm(x_BND.float(), x_BND.shape[-1:], eps=self.eps).type_as(x_BND)
            * weight_D
        )


class SerialUPM(nn.Module):
    """The published loop over a projector's own weights."""

    def __init__(self, upm: UPM) -> None:
        super().__init__()
        self._ours = [upm]  # inside a list: not a submodule
        self.experts = nn.ModuleList(
            nn.Sequential(*(SerialBlock(block, e) for block in upm.experts))
            for e in range(upm.config.experts)
        )

    def forward(self, features: TokenSeq) -> Tensor:
        """Soft tokens (B, Q, D_llm)."""
        upm, name = self._ours[0], features.modality
        x_BND = upm.proj_in[name](features.x_BND)
        batch, count = x_BND.shape[0], upm.config.queries
        x_BND = torch.cat([upm.queries[name].expand(batch, -1, -1), x_BND], dim=1)
        weight_BNE = upm.routers[name](x_BND)
        mixed_BQD = torch.zeros_like(x_BND[:, :count])
        for e, expert in enumerate(self.experts):
            mixed_BQD = mixed_BQD + weight_BNE[:, :count, e, None] * expert(x_BND)[:, :count]
        return upm.proj_out[name](mixed_BQD)


def main() -> None:
    options = arguments()
    device, dtype = torch.device(options.device), DTYPES[options.dtype]
    model = build(options.size, device, dtype, llm=False)
    serial = SerialUPM(model.projector)
    rows = []
    with torch.inference_mode():
        for name in options.modalities or model.modalities:
            for batch in options.batches:
                rows.append(measure(model, serial, model.modality(name).name, batch, options))
                print(rows[-1])
    described = {name: getattr(options, name) for name in ("size", "dtype")}
    print(json.dumps({"benchmark": "encode", **described, **machine(device), "rows": rows}))


def arguments() -> argparse.Namespace:
    parser = parser_of(__doc__, EXAMPLES)
    parser.add_argument("--modalities", nargs="+", help="all if left out")
    parser.add_argument("--batches", type=int, nargs="+", default=[1], help="batch sizes")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def measure(
    model: OneLLM, serial: SerialUPM, name: str, batch: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Seconds of both projectors on the same features, and of the parts of encoding."""
    example = model.modality(name).example()
    x = torch.rand(batch, *example.shape, generator=torch.Generator().manual_seed(0))
    features = model.features(name, x)
    wanted, found = serial(features), model.project(features)
    difference = float((wanted - found).abs().max())
    if not difference <= CLOSE[wanted.dtype]:
        raise SystemExit(f"{name}: the projectors differ by {difference}")
    runs = {
        "upm": lambda: model.project(features),
        "serial": lambda: serial(features),
        "tokenizer_and_encoder": lambda: model.features(name, x),
    }
    taken = seconds_of(runs, model.device, options.rounds)
    return {
        "modality": name,
        "batch": batch,
        "tokens": features.x_BND.shape[1] + model.projector.config.queries,
        "seconds": {part: round(s, 6) for part, s in taken.items()},
        "upm_ratio": round(taken["serial"] / taken["upm"], 3),
        "largest_difference": difference,
    }


if __name__ == "__main__":
    main()
