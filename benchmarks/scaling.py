"""A model on paper of the step time on 8 to 512 GPUs, from the parts of a step. Nothing is run.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --mfu 0.45 --stage instruct

Arithmetic is counted on the published shape (``train/flops.py``) and divided by peak times the MFU
that one GPU reaches; what the processes tell each other is counted in bytes and divided by
bandwidths; how uneven the devices' passes are comes from planning steps of texts of LLaVA's
lengths. Rates are assumed (:class:`Fabric`) until ``benchmarks/gpu.py`` has measured them.
docs/scaling.md has the formulas and the table. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass, replace
from typing import Any

from train_step import CAPTION, CONVERSATION, lengths

from onellm.data.plan import Layout, plan
from onellm.encoder import EncoderConfig
from onellm.llm import build_llama
from onellm.model import OneLLM, OneLLMConfig
from onellm.projection.upm import UPMConfig
from onellm.slots import empty_parameters
from onellm.train.config import TrainConfig
from onellm.train.flops import Costs
from onellm.train.packaged import read_config
from onellm.train.trainables import select

DEVICES = (8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Fabric:
    """What the machines are assumed to do: every number here is an assumption, none was measured.

    Args:
        peak: operations per second of a GPU, bfloat16.
        mfu: share of it that one GPU alone reaches.
        inside: bytes per second and GPU within a machine of eight.
        between: bytes per second and GPU between machines.
        hidden: share of the communication of ZeRO 3 that runs beside arithmetic.
        jitter: standard deviation of a pass's time over its mean, between devices with the same
            work.
        lonely: samples of a pass at which half the MFU is left.
    """

    peak: float = 989e12
    mfu: float = 0.40
    inside: float = 350e9
    between: float = 40e9
    hidden: float = 0.8
    jitter: float = 0.02
    lonely: float = 1.0


@dataclass(frozen=True)
class Stage:
    """What a stage asks of the machines.

    Args:
        name: of the packaged stage.
        batch: samples of an optimiser step.
        per_device: most samples of a pass.
        flops: operations of a sample, forward and backward.
        share: of them that grows with a text's length, at the mean length.
        text: median, spread, least and most tokens of a text.
        medium: positions of a medium.
        layout: how passes are made up.
        trained: bytes of gradients in bfloat16.
        weights: bytes of weights in bfloat16.
        zero: ZeRO stage.
    """

    name: str
    batch: int
    per_device: int
    flops: float
    share: float
    text: tuple[int, float, int, int]
    medium: int
    layout: Layout
    trained: float
    weights: float
    zero: int


@dataclass(frozen=True)
class Row:
    """A stage on some GPUs, seconds of an optimiser step."""

    devices: int
    per_device: int
    passes: int
    compute: float
    communicate: float
    wait: float
    uneven: float

    @property
    def step(self) -> float:
        """Seconds of the step."""
        return self.compute + self.communicate + self.wait


def predict(stage: Stage, fabric: Fabric, devices: int) -> Row:
    """The step on so many GPUs.

    Args:
        stage: what is to be done.
        fabric: by what.
        devices: number of GPUs, at most one for each sample.
    """
    share = stage.batch / devices
    passes = max(1, math.ceil(share / stage.per_device))
    per_device = max(1, round(share / passes))
    reached = fabric.mfu * per_device / (per_device + fabric.lonely)
    compute = share * stage.flops / (fabric.peak * reached)
    # A ring passes all but one part; across machines the slower links decide.
    rate = fabric.inside if devices <= 8 else fabric.between
    ring = (devices - 1) / devices / rate
    if stage.zero < 3:  # gradients scattered, weights gathered, once a step
        communicate = 2 * stage.trained * ring
    else:  # weights gathered forward and backward, gradients scattered, in every pass
        told = passes * (2 * stage.weights + stage.trained) * ring
        communicate = max(told - fabric.hidden * compute, told * (1 - fabric.hidden))
    more = uneven(stage, devices, per_device)
    # The slowest of n devices with the same work lies this many standard deviations above the mean.
    wait = compute * fabric.jitter / math.sqrt(passes) * math.sqrt(2 * math.log(devices))
    return Row(devices, per_device, passes, compute, communicate, wait + more * compute, more)


def uneven(stage: Stage, devices: int, per_device: int) -> float:
    """How much longer the slowest device computes than the mean, by the lengths of its texts alone.

    Padding is among it. Below ZeRO 2 devices wait for each other once a step, else in every pass.
    """
    size = devices * per_device * max(1, round(stage.batch / (devices * per_device)))
    positions = [n + stage.medium for n in lengths(size, stage.text)]
    block = stage.layout.block and devices * per_device * max(
        1, stage.layout.block // (devices * per_device)
    )
    layout = replace(stage.layout, world=devices, per_device=per_device, block=block)
    mean = sum(positions) / size
    cost = [
        [
            sum(
                1 - stage.share + stage.share * (n if layout.pack else max(own)) / mean for n in own
            )
            for own in in_pass
        ]
        for in_pass in plan(positions, positions, layout)
    ]
    each = zip(*cost, strict=True)
    slowest = max(map(sum, each)) if stage.zero < 2 else sum(map(max, cost))
    return slowest * devices / size - 1


def published_model() -> OneLLM:
    """The published 7B shape without its weights."""
    with empty_parameters():
        llm = build_llama(vocab=32000, width=4096, layers=32, heads=32, hidden=11008)
        return OneLLM(OneLLMConfig(encoder=EncoderConfig(), projector=UPMConfig()), llm)


def stage_of(model: OneLLM, config: TrainConfig, text: tuple[int, float, int, int]) -> Stage:
    """What a packaged stage asks, its modalities in equal shares.

    Args:
        model: the published shape.
        config: the stage.
        text: median, spread, least and most tokens of a text.
    """
    chosen = set(select(model, config.stage.trainable, config.stage.modalities))
    costs, names = Costs(model, config), config.stage.modalities
    medium = model.config.projector.queries + 2
    mean = sum(drawn := lengths(1000, text)) // len(drawn)

    def work(length: int, supervised: int) -> float:
        one = (costs.batch({name: 1}, [length], supervised).hardware for name in names)
        return sum(one) / len(names)

    whole = work(mean + medium, mean // 2)
    sizes = {n: p.numel() for n, p in model.named_parameters()}
    per_device, _ = config.batch.split(8)
    return Stage(
        *(config.stage.name, config.batch.size, per_device, whole),
        *(1 - work(0, 0) / whole, text, medium, config.batch.layout(8)),
        *(2.0 * sum(sizes[n] for n in chosen), 2.0 * sum(sizes.values())),
        config.deepspeed.zero if config.deepspeed else 0,
    )


def main() -> None:
    """Print a table for each stage."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--mfu", type=float, default=Fabric.mfu)
    parser.add_argument("--between", type=float, default=Fabric.between / 1e9, help="GB/s and GPU")
    parser.add_argument("--stage", nargs="+", default=["align_image", "instruct"])
    parser.add_argument("--zero", type=int, help="of all stages, in place of their own")
    options = parser.parse_args()
    fabric = Fabric(mfu=options.mfu, between=options.between * 1e9)
    model, result = published_model(), {"benchmark": "scaling", "mfu": options.mfu}
    for name in options.stage:
        extra = [] if options.zero is None else [f"deepspeed.zero={options.zero}"]
        text = CAPTION if name.startswith("align") else CONVERSATION
        stage = stage_of(model, read_config(name, extra), text)
        rows = [predict(stage, fabric, n) for n in DEVICES if n <= stage.batch]
        result[name] = tell(stage, rows, fabric)
    print(json.dumps(result))


def tell(stage: Stage, rows: list[Row], fabric: Fabric) -> list[dict[str, Any]]:
    """Print a stage's table; its rows as plain data."""
    print(
        f"\n{stage.name}: {stage.flops / 1e12:.2f} TFLOP a sample, batch {stage.batch}, "
        f"{stage.trained / 2e9:.2f} G trained, ZeRO {stage.zero}"
    )
    print(
        "| GPUs | a pass | passes | compute s | communication s | uneven | wait s | samples/s | "
        "efficiency |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    told = []
    for row in rows:
        rate = stage.batch / row.step
        efficiency = rate / row.devices * rows[0].devices * rows[0].step / stage.batch
        print(
            f"| {row.devices} | {row.per_device} | {row.passes} | {row.compute:.3f} | "
            f"{row.communicate:.3f} | {row.uneven:.1%} | {row.wait:.3f} | {rate:,.0f} | "
            f"{efficiency:.0%} |"
        )
        told.append(
            {
                "devices": row.devices,
                "step_s": round(row.step, 4),
                "rate": round(rate, 1),
                "uneven": round(row.uneven, 4),
            }
        )
    return told


if __name__ == "__main__":
    main()
