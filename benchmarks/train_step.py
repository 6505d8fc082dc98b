"""A training step against the published recipe: same weights, same samples, same update.

Alignment for each modality and instruction tuning, with texts whose lengths are spread as in
LLaVA's data: captions around 14 tokens, conversations around 160 with a long tail. The published
recipe pads them to 96 and to 2,048 (see ``published_step.py``); ours packs them into rows, as the
packaged stages do. Both sides' losses must agree. By default every width of the published model is
divided by 16, the vocabulary too, and depths are kept, so that the parts' shares of the work are
those of the 7B model. The last line is JSON.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from clock import machine, seconds_of
from published_step import PublishedStep
from sizes import DTYPES, LLMS, TINY_MODALITIES
from torch import Tensor, nn

from onellm.data.loader import Batch, Example, Medium
from onellm.data.plan import Layout, plan
from onellm.encoder import EncoderConfig
from onellm.llm import build_llama
from onellm.model import OneLLM, OneLLMConfig
from onellm.projection.upm import UPMConfig
from onellm.registry import modality_classes
from onellm.splice import IGNORED
from onellm.train.allocator import keep_freed_memory
from onellm.train.blocks import apply_compute
from onellm.train.compute import ComputeConfig
from onellm.train.memory import LiveBytes
from onellm.train.objectives import LanguageModelling
from onellm.train.trainables import matches, select

EXAMPLES = """examples:
  python benchmarks/train_step.py --size tiny
  python benchmarks/train_step.py
  python benchmarks/train_step.py --divide 8 --modalities image audio --stages alignment
"""
ALIGN = (
    *("tokenizers.{modality}.*", "positions.{modality}", "projector.proj_in.{modality}.*"),
    *("projector.queries.{modality}", "projector.routers.{modality}.*", "projector.experts.*"),
    *("projector.proj_out.{modality}.*", "tags.*.{modality}"),
)
CAPTION, CONVERSATION = (14, 0.5, 4, 95), (160, 0.9, 16, 2015)
"""Median, spread of the logarithm, least and most tokens."""
CLOSE = 1e-3
OPTIONS = ("size", "dtype", "batch", "rounds", "recompute", "processor_time")
STAGES, PARTS = ("alignment", "instruction"), ("encoder", "projector", "llm")


def main() -> None:
    options = arguments()
    torch.manual_seed(0)
    if options.device == "cpu":
        keep_freed_memory()  # as every run does; it serves both sides
    rows = []
    names = options.modalities or list(modality_classes())
    for stage in options.stages:
        few = stage == "instruction" and options.instruct_one
        for name in names[:1] if few else names:
            rows.append(measure(stage, name, options))
            print(tell(rows[-1]), flush=True)
    result: dict[str, Any] = {
        "benchmark": "train_step",
        **{key: getattr(options, key) for key in OPTIONS},
        **machine(torch.device(options.device)),
        "rows": rows,
    }
    for stage in options.stages:
        own = [row for row in rows if row["stage"] == stage]
        result[stage] = {
            "speed_ratio": round(geometric_mean([row["speed_ratio"] for row in own]), 3),
            "memory_ratio": round(geometric_mean([row["memory_ratio"] for row in own]), 3),
        }
        print(f"{stage}: {result[stage]}")
    print(json.dumps(result))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", choices=("tiny", "narrow"), default="narrow")
    parser.add_argument("--divide", type=int, choices=(8, 16), default=16, help="widths of narrow")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--modalities", nargs="+", help="all if left out")
    parser.add_argument("--batch", type=int, default=4, help="samples of a step, a multiple of 4")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--processor-time", action="store_true", help="on a CPU that others are using, too"
    )
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument(
        "--recompute", nargs="+", choices=PARTS, default=(), help="blocks of ours that keep nothing"
    )
    parser.add_argument(
        "--instruct-one", action="store_true", help="instruction tuning for the first one only"
    )
    return parser.parse_args()


def build_model(options: argparse.Namespace, name: str) -> OneLLM:
    """A model with one modality and random weights."""
    if options.size == "tiny":
        encoder = EncoderConfig(image_size=28, width=32, layers=2, heads=2, output_dim=16)
        projector = UPMConfig(width=32, queries=4, depth=2, heads=2, multiple_of=16)
        llm, settings = LLMS["tiny"], TINY_MODALITIES.get(name, {})
    else:
        d = options.divide
        encoder = EncoderConfig(width=1024 // d, heads=16 // d, output_dim=768 // d)
        projector = UPMConfig(width=1024 // d, heads=16 // d, multiple_of=256 // d)
        narrow = {"vocab": 32000, "width": 4096, "heads": 32, "hidden": 11008}
        llm, settings = {"layers": 32, **{key: n // d for key, n in narrow.items()}}, {}
    torch.manual_seed(0)
    config = OneLLMConfig(encoder=encoder, projector=projector, modalities={name: settings})
    model = OneLLM(config, build_llama(**llm))
    return model.to(torch.device(options.device), DTYPES[options.dtype]).train()


def lengths(count: int, spread: tuple[int, float, int, int], seed: int = 0) -> list[int]:
    """Text lengths that stand at even places of a log-normal distribution, shuffled.

    Args:
        count: how many.
        spread: median, standard deviation of the logarithm, least, most.
        seed: of the shuffling.
    """
    median, sigma, least, most = spread
    normal = torch.distributions.Normal(0.0, 1.0)
    places = (torch.arange(count) + 0.5) / count
    drawn = [round(median * math.exp(sigma * float(normal.icdf(p)))) for p in places]
    random.Random(seed).shuffle(drawn)
    return [min(max(n, least), most) for n in drawn]


def samples(model: OneLLM, name: str, stage: str, count: int) -> Batch:
    """Random samples of a stage's lengths: captions are learned whole, of talks the second half."""
    generator = torch.Generator().manual_seed(1)
    vocab = model.llm.config.vocab_size
    spread = CAPTION if stage == "alignment" else CONVERSATION
    made = []
    for number, length in enumerate(lengths(count, spread)):
        ids = torch.randint(3, vocab, (length,), generator=generator)
        labels = ids.clone()
        labels[: 1 if stage == "alignment" else length // 2] = IGNORED
        signal = torch.rand(model.modality(name).example().shape, generator=generator)
        medium = Medium(name, f"{name}/{number}", signal)
        made.append(Example(str(number), name, (medium,), ids, labels, ""))
    return made


def passes_of(objective: LanguageModelling, batch: Batch) -> list[Batch]:
    """Our passes of some four samples: rows of like length, media included."""
    layout = Layout(per_device=4, arrange="length", pack=True)
    lengths, _ = objective.positions(batch)
    return [devices[0] for devices in plan(batch, lengths, layout)]


def measure(stage: str, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds and memory of a step of both kinds."""
    device = torch.device(options.device)
    model = build_model(options, name)
    names = [n for n, _ in model.named_parameters()]
    wanted = ALIGN if stage == "alignment" else ("llm.*",)
    select(model, [glob for glob in wanted if matches(names, glob, [name])], [name])
    count = options.batch
    batch = samples(model, name, stage, count)
    alignment = stage == "alignment"
    published = PublishedStep(copy.deepcopy(model), 96 if alignment else 2048 - 32)
    objective = LanguageModelling(model, pack=True)
    apply_compute(model, ComputeConfig(recompute=options.recompute))

    def ours(part: Batch) -> tuple[Tensor, int]:
        return objective(part).total, sum(objective.counts(part))

    # Accumulation is part of both: four samples a device, as published.
    sides: dict[str, tuple[Any, Any, Any]] = {
        "ours": (ours, list(objective.trained().values()), passes_of(objective, batch)),
        "published": (
            published,
            published.trained(),
            [batch[i : i + 4] for i in range(0, count, 4)],
        ),
    }
    steps = {side: Step(*parts) for side, parts in sides.items()}
    modules = {"ours": model, "published": published}
    first = {side: step.first(model, modules[side], device) for side, step in steps.items()}
    losses = {side: loss for side, (loss, _) in first.items()}  # of the same weights
    memory = {side: peak for side, (_, peak) in first.items()}
    if not abs(losses["ours"] - losses["published"]) <= CLOSE * losses["published"]:
        raise SystemExit(f"{stage}, {name}: the losses differ: {losses}")
    clock = time.process_time if options.processor_time else time.perf_counter
    taken = seconds_of(steps, device, options.rounds, warm=False, clock=clock)
    text = [len(example.ids) for example in batch]
    return {
        "stage": stage,
        "modality": name,
        "samples": count,
        "mean_text_tokens": round(sum(text) / count, 1),
        "loss": {side: round(loss, 5) for side, loss in losses.items()},
        "seconds": {side: round(s, 4) for side, s in taken.items()},
        "samples_per_s": {side: round(count / s, 3) for side, s in taken.items()},
        "peak_mb": {side: round(size / 1e6, 1) for side, size in memory.items()},
        "speed_ratio": round(taken["published"] / taken["ours"], 3),
        "memory_ratio": round(memory["ours"] / memory["published"], 3),
    }


class Step:
    """One optimiser step: forward and backward passes, clipping, AdamW.

    Args:
        forward: a pass → sum of losses, and how many.
        trained: parameters.
        passes: accumulated.
    """

    def __init__(
        self,
        forward: Callable[[Batch], tuple[Tensor, int]],
        trained: Sequence[Any],
        passes: Sequence[Batch],
    ) -> None:
        self.forward, self.trained, self.passes = forward, list(trained), passes
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-6, betas=(0.9, 0.95), fused=True)
        self.total = sum(example.supervised for part in passes for example in part)

    def learn(self) -> float:
        """Gradients of all passes; the mean loss."""
        summed = 0.0
        for part in self.passes:
            loss, _ = self.forward(part)
            (loss / self.total).backward()
            summed += float(loss.detach())
        return summed / self.total

    def update(self) -> None:
        """Clip and step."""
        torch.nn.utils.clip_grad_norm_(self.trained, 2.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def __call__(self) -> None:
        """Learn, then update."""
        self.learn()
        self.update()

    def first(self, model: OneLLM, known: nn.Module, device: torch.device) -> tuple[float, float]:
        """Run it once: the loss, and the most bytes of tensors alive.

        Weights, Adam's moments, gradients, activations; what kernels keep to themselves does not
        show.
        """
        fixed = sum(p.nbytes for p in model.parameters())
        moments = 2 * sum(p.nbytes for p in self.trained)
        with LiveBytes(device.type) as live:
            live.know([*known.parameters(), *known.buffers()])
            loss = self.learn()
        self.update()
        return loss, float(fixed + moments + live.peak)


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def tell(row: dict[str, Any]) -> str:
    return (
        f"{row['stage']:11} {row['modality']:7} {row['speed_ratio']:6.2f} x as fast, "
        f"{row['memory_ratio']:5.2f} of the memory, {row['mean_text_tokens']:6.1f} tokens, "
        f"{row['samples_per_s']} samples/s"
    )


if __name__ == "__main__":
    main()
