"""Decoding: tokens per second, share of the memory bandwidth, time to the first token.

The rival is ``transformers``' ``generate`` on the same LLM and the same prompts, timed in turns
with our loop. A token needs every weight once, so at batch 1 the memory's bandwidth bounds the
rate; the share of it that is reached (MBU) says how much is left to gain. The last line is JSON.

Shape legend: B batch, T positions, D width of the LLM.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import islice
from typing import Any

import torch
from clock import bandwidth, machine, seconds_of, wait
from sizes import DTYPES, build, parser_of
from torch import Tensor

from onellm.decoding import decode
from onellm.kvcache import round_capacity
from onellm.model import OneLLM
from onellm.splice import Spliced

EXAMPLES = """examples:
  python benchmarks/decode.py --size tiny
  python benchmarks/decode.py --size small --batches 1 8
  python benchmarks/decode.py --size 7b --device cuda --dtype bfloat16 --compile --batches 1 8 32
"""


def main() -> None:
    options = arguments()
    device, dtype = torch.device(options.device), DTYPES[options.dtype]
    model = build(options.size, device, dtype)
    with torch.inference_mode():
        result = {
            "benchmark": "decode",
            **{name: getattr(options, name) for name in ("size", "dtype", "new_tokens", "compile")},
            **machine(device),
            "bandwidth_gb_s": round(bandwidth(device, options.megabytes) / 1e9, 2),
        }
        print(f"memory bandwidth {result['bandwidth_gb_s']} GB/s")
        result["batches"] = sweep(model, options, result["bandwidth_gb_s"] * 1e9)
        result["first_token_s"] = first_tokens(model, options)
    print(json.dumps(result))


def arguments() -> argparse.Namespace:
    parser = parser_of(__doc__, EXAMPLES)
    parser.add_argument("--batches", type=int, nargs="+", default=[1], help="batch sizes")
    parser.add_argument("--prompt-tokens", type=int, default=64, help="of the longest prompt")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--compile", action="store_true", help="our compiled step, and theirs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=512, help="read to measure bandwidth")
    return parser.parse_args()


def prompts(model: OneLLM, batch: int, length: int) -> Spliced:
    """Random prompts of different lengths with a random medium each, padded on the left."""
    generator = torch.Generator().manual_seed(1)
    vocabulary, width = model.llm.get_input_embeddings().weight.shape
    ids, media = [], []
    for index in range(batch):
        count = length - index % (length // 2)
        ids.append(torch.randint(vocabulary, (count,), generator=generator))
        soft_QD = torch.randn(model.projector.config.queries, width, generator=generator)
        soft_QD = (soft_QD * model.llm.config.initializer_range).to(model.device, model.llm.dtype)
        media.append([(next(iter(model.modalities)), soft_QD)])
    return model.splice(ids, None, media, side="left")


def ours(model: OneLLM, spliced: Spliced, count: int, compiled: bool) -> Tensor:
    """Tokens (B, count) of our loop."""
    steps = decode(model, spliced, lambda x: x.argmax(-1), room=count, compiled=compiled)
    return torch.stack(list(steps), 1)


def theirs(model: OneLLM, spliced: Spliced, count: int, compiled: bool) -> Tensor:
    """Tokens (B, count) of ``transformers``; compiled, it takes a static cache of our size."""
    static: dict[str, Any] = {}
    if compiled:
        capacity = round_capacity(spliced.embeds.shape[1] + count)
        static = {"cache_implementation": "static", "max_length": capacity}
    return model.llm.generate(
        inputs_embeds=spliced.embeds,
        attention_mask=spliced.attention_mask,
        do_sample=False,
        max_new_tokens=count,
        eos_token_id=[],
        pad_token_id=0,
        **static,
    )


def sweep(model: OneLLM, options: argparse.Namespace, bytes_per_s: float) -> list[dict[str, Any]]:
    """Rates at each batch size, and whether its answers are those of batch 1."""
    rows: list[dict[str, Any]] = []
    count, compiled = options.new_tokens, options.compile
    for batch in options.batches:
        spliced = prompts(model, batch, options.prompt_tokens)
        runs = {"ours": lambda s=spliced: ours(model, s, count, compiled)}
        runs["generate"] = lambda s=spliced: theirs(model, s, count, False)
        if compiled:
            runs["generate_static"] = lambda s=spliced: theirs(model, s, count, True)
        tokens = {name: run() for name, run in runs.items()}
        taken = seconds_of(runs, model.device, options.rounds)
        step_s = seconds_per_step(model, spliced, options)
        row: dict[str, Any] = {
            "batch": batch,
            "tokens_per_s": {name: round(batch * count / s, 2) for name, s in taken.items()},
            "ratio": {k: round(s / taken["ours"], 3) for k, s in taken.items() if k != "ours"},
            "decode_tokens_per_s": round(batch / step_s, 2),
            "mbu": round(bytes_per_step(model, spliced, count) / step_s / bytes_per_s, 3),
            "same_tokens_as_generate": share(tokens["ours"], tokens["generate"]),
            "same_tokens_as_batch_1": share(tokens["ours"], one_by_one(model, options, batch)),
        }
        rows.append(row)
        print(row)
    for row in rows:
        gain = row["decode_tokens_per_s"] / rows[0]["decode_tokens_per_s"]
        row["throughput_over_first"] = round(gain, 2)
    return rows


def share(a_BT: Tensor, b_BT: Tensor) -> float:
    """Share of samples whose tokens are all the same."""
    return round(float((a_BT == b_BT).all(-1).float().mean()), 4)


def one_by_one(model: OneLLM, options: argparse.Namespace, batch: int) -> Tensor:
    """Each prompt of a batch answered alone, without the padding that it has there."""
    spliced = prompts(model, batch, options.prompt_tokens)
    rows = []
    for b in range(batch):
        begin = int((spliced.attention_mask[b] == 0).sum())
        alone = {k: v[b : b + 1, begin:] for k, v in vars(spliced).items() if k != "text_at"}
        one = Spliced(**alone, text_at=spliced.text_at[b : b + 1])
        rows.append(ours(model, one, options.new_tokens, options.compile))
    return torch.cat(rows)


def seconds_per_step(model: OneLLM, spliced: Spliced, options: argparse.Namespace) -> float:
    """Seconds per token behind the first one, the best of a few runs."""
    count, best = options.new_tokens, float("inf")
    for _ in range(options.rounds):
        steps = decode(model, spliced, lambda x: x.argmax(-1), room=count, compiled=options.compile)
        next(steps)
        wait(model.device)
        began = time.perf_counter()
        for _ in islice(steps, count - 1):
            pass
        wait(model.device)
        best = min(best, (time.perf_counter() - began) / (count - 1))
    return best


def bytes_per_step(model: OneLLM, spliced: Spliced, count: int) -> float:
    """What a step has to read: all weights but the embedding table, and keys and values."""
    table = model.llm.get_input_embeddings().weight
    head = model.llm.get_output_embeddings().weight
    weights = sum(p.nbytes for p in model.llm.parameters() if p is not table or p is head)
    config = model.llm.config
    batch, length = spliced.embeds.shape[:2]
    width = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    size = torch.finfo(model.llm.dtype).bits // 8
    past = batch * (length + count / 2) * 2 * config.num_hidden_layers * width * size
    return weights + past


def first_tokens(model: OneLLM, options: argparse.Namespace) -> dict[str, float]:
    """Seconds from a signal in memory to the first token, by modality, at batch 1."""
    ids = [torch.arange(2, 12)]

    def first(name: str, signal: Tensor) -> None:
        soft = model.encode(name, signal[None])
        spliced = model.splice(ids, None, [[(name, soft[0])]], side="left")
        next(decode(model, spliced, lambda x: x.argmax(-1), room=1))

    taken = {}
    for name, kind in model.modalities.items():
        signal = torch.rand_like(kind.example())
        runs = {name: lambda n=name, s=signal: first(n, s)}
        taken |= seconds_of(runs, model.device, options.rounds)
        print(f"{name}: first token after {taken[name]:.4f} s")
    return {name: round(s, 5) for name, s in taken.items()}


if __name__ == "__main__":
    main()
