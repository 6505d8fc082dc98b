"""The parts of a training step: the time each takes beside its share of the counted arithmetic.

    python benchmarks/step_parts.py --size tiny
    python benchmarks/step_parts.py --modality audio --divide 8

``docs/scaling.md`` reckons with counted operations (``train/flops.py``). This shows, on whatever
machine there is, how far time follows them: where a part's measured share is above its counted one,
memory and not arithmetic is what it waits for. Widths of the published model divided by 8 or 16.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from clock import machine, wait
from sizes import DTYPES
from torch import nn
from train_step import ALIGN, build_model, passes_of, samples

from onellm.config import parse
from onellm.data.loader import Batch
from onellm.model import OneLLM
from onellm.train.allocator import keep_freed_memory
from onellm.train.blocks import apply_compute
from onellm.train.compute import ComputeConfig
from onellm.train.config import TrainConfig
from onellm.train.flops import Costs, encoder_flops, projector_flops
from onellm.train.objectives import LanguageModelling
from onellm.train.trainables import matches, select

KEYS = ("size", "divide", "dtype", "modality", "batch", "processor_time")
PARTS = ("encoder", "projector", "LLM and loss", "backward", "update")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        epilog=(__doc__ or "").split("\n\n")[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", choices=("tiny", "narrow"), default="narrow")
    parser.add_argument("--divide", type=int, choices=(8, 16), default=16, help="widths of narrow")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--modality", default="image")
    parser.add_argument("--batch", type=int, default=4, help="samples of a pass, a multiple of 4")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--processor-time", action="store_true", help="on a CPU that others are using, too"
    )
    options = parser.parse_args()
    if options.device == "cpu":
        keep_freed_memory()  # as every run does
    result: dict[str, Any] = {
        "benchmark": "step_parts",
        **{key: getattr(options, key) for key in KEYS},
        **machine(torch.device(options.device)),
    }
    for stage in ("alignment", "instruction"):
        result[stage] = measure(stage, options)
        told = ", ".join(
            f"{name} {part['measured']:.0%} (counted {part['counted']:.0%})"
            for name, part in result[stage]["parts"].items()
        )
        print(f"{stage}: {result[stage]['seconds']} s: {told}", flush=True)
    print(json.dumps(result))


def measure(stage: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds and operations of each part of a step, as shares of the whole."""
    device, name = torch.device(options.device), options.modality
    model = build_model(options, name)
    names = [n for n, _ in model.named_parameters()]
    wanted = ALIGN if stage == "alignment" else ("llm.*",)
    globs = [glob for glob in wanted if matches(names, glob, [name])]
    select(model, globs, [name])
    batch = samples(model, name, stage, options.batch)
    apply_compute(model, ComputeConfig())
    objective = LanguageModelling(model, pack=True)
    passes = passes_of(objective, batch)
    optimizer = torch.optim.AdamW(objective.trained().values(), lr=1e-6, fused=True)
    taken: dict[str, list[float]] = defaultdict(list)
    for round_ in range(options.rounds + 1):
        clock = time.process_time if options.processor_time else time.perf_counter
        seconds = step(model, objective, optimizer, passes, device, clock)
        for part in PARTS if round_ else ():  # the first warms up
            taken[part].append(seconds[part])
    median = {part: statistics.median(taken[part]) for part in PARTS}
    whole = sum(median.values())
    counted = counted_shares(model, run_of(name, globs), batch)
    return {
        "seconds": round(whole, 4),
        "parts": {
            part: {"measured": round(median[part] / whole, 4), "counted": round(counted[part], 4)}
            for part in PARTS
        },
    }


def step(
    model: OneLLM,
    objective: LanguageModelling,
    optimizer: torch.optim.Optimizer,
    passes: list[Batch],
    device: torch.device,
    clock: Callable[[], float],
) -> dict[str, float]:
    """Seconds of each part of one optimiser step."""
    spent: dict[str, float] = defaultdict(float)

    def clocked(part: nn.Module, word: str) -> list[Any]:
        began: list[float] = []

        def before(*_: Any) -> None:
            wait(device)
            began.append(clock())

        def after(*_: Any) -> None:
            wait(device)
            spent[word] += clock() - began.pop()

        return [part.register_forward_pre_hook(before), part.register_forward_hook(after)]

    hooks = clocked(model.encoder, "encoder") + clocked(model.projector, "projector")
    for batch in passes:
        before = clock()
        loss = objective(batch).total
        wait(device)
        spent["forward"] += clock() - before
        before = clock()
        loss.backward()
        wait(device)
        spent["backward"] += clock() - before
    for hook in hooks:
        hook.remove()
    before = clock()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    wait(device)
    spent["update"] = clock() - before
    spent["LLM and loss"] = spent.pop("forward") - spent["encoder"] - spent["projector"]
    return spent


def run_of(name: str, globs: list[str]) -> TrainConfig:
    """A run of one modality, for what is counted."""
    plain: dict[str, Any] = {
        **{"model": "unused", "out": "unused"},
        "stage": {"name": "parts", "modalities": [name], "trainable": globs},
        **{"optim": {"lr": 1e-6}, "batch": {"size": 1}, "length": {"steps": 1}},
    }
    return parse(TrainConfig, plain, where="step_parts.py")


def counted_shares(model: OneLLM, config: TrainConfig, batch: Batch) -> dict[str, float]:
    """Share of each part in the operations that are counted; the update has none."""
    (name,) = config.stage.modalities
    medium = model.config.projector.queries + 2
    positions = [len(example.ids) + medium for example in batch]
    supervised = sum(example.supervised for example in batch)
    whole = Costs(model, config).batch({name: len(batch)}, positions, supervised).hardware
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:  # what is left then is the forward pass
        parameter.requires_grad_(False)
    forward = Costs(model, config).batch({name: len(batch)}, positions, supervised).hardware
    for parameter in trained:
        parameter.requires_grad_(True)
    encode = len(batch) * encoder_flops(model, name)
    project = len(batch) * projector_flops(model, name, model.config.projector.experts)
    found = {"encoder": encode, "projector": project, "LLM and loss": forward - encode - project}
    found |= {"backward": whole - forward, "update": 0.0}
    return {part: operations / whole for part, operations in found.items()}


if __name__ == "__main__":
    main()
