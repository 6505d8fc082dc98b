"""All that is asked of a GPU in one command, within eight minutes: the 7B shape in bfloat16.

    python benchmarks/gpu.py                            (one GPU of 80 GB)
    python benchmarks/gpu.py --size tiny --device cpu   (its miniature, in seconds)

Alignment and LoRA instruction tuning through the training's own engine (DeepSpeed ZeRO 1), against
the goals of 80 image samples/s, 40 % MFU and 8,000 tokens/s of an H100; memory against the dry
run's estimate; the projector against the published loop; decoding against ``transformers``. What
does not fit into the time is left out and said so. The last line is JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from clock import bandwidth, machine, wait
from decode import sweep
from encode import SerialUPM, measure
from sizes import DTYPES, LLMS, TINY_MODALITIES, build
from train_step import ALIGN, CONVERSATION, lengths, samples

from onellm.config import parse
from onellm.data.loader import Batch, Example
from onellm.encoder import EncoderConfig
from onellm.llm import build_llama
from onellm.model import OneLLM, OneLLMConfig
from onellm.projection.upm import UPMConfig
from onellm.train.blocks import apply_compute
from onellm.train.budget import divide
from onellm.train.config import TrainConfig
from onellm.train.engine import Place, build_engine
from onellm.train.flops import Costs, measured_flops, peak_flops
from onellm.train.lora import add_lora
from onellm.train.memory import measure_passes
from onellm.train.meter import memory_gb
from onellm.train.objectives import LanguageModelling
from onellm.train.shapes import shapes_of
from onellm.train.trainables import select

GOALS = {"align_samples_per_s": 80.0, "align_mfu": 0.40, "instruct_tokens_per_s": 8000.0}


def main() -> None:
    options = arguments()
    device = torch.device(options.device)
    result: dict[str, Any] = {"benchmark": "gpu", "size": options.size, **machine(device)}
    began = time.monotonic()
    for name, task in TASKS.items():
        left = options.minutes * 60 - (time.monotonic() - began)
        if options.only and name not in options.only:
            continue
        if left < 30 * (options.size != "tiny"):
            result[name] = {"left_out": "no time was left"}
            continue
        start = time.monotonic()
        try:
            result[name] = task(options, device)
        except (RuntimeError, ValueError, ImportError) as error:  # the others still count
            traceback.print_exc()
            result[name] = {"failed": " ".join(str(error).split())[:400]}
        result[name]["task_s"] = round(time.monotonic() - start, 1)
        print(f"{name}: {result[name]}", flush=True)
        free(device)
    result["minutes"] = round((time.monotonic() - began) / 60, 2)
    result["goals"] = GOALS
    print(json.dumps(result))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        epilog=(__doc__ or "").split("\n\n")[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", choices=("tiny", "7b"), default="7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=7.5, help="no task begins after that")
    parser.add_argument("--only", nargs="+", choices=tuple(TASKS), help="some of the tasks")
    parser.add_argument("--batch", type=int, default=40, help="image samples of one pass")
    parser.add_argument("--tokens", type=int, default=8192, help="positions of a LoRA pass")
    parser.add_argument("--steps", type=int, default=6, help="timed steps")
    parser.add_argument("--compile", action="store_true", help="compile the blocks, too")
    options = parser.parse_args()
    if options.size == "tiny":
        options.batch, options.tokens, options.steps = 2, 128, 2
    options.dtype = "float32" if options.size == "tiny" else "bfloat16"
    return options


def free(device: torch.device) -> None:
    """Give memory back between tasks."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def roof(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """What the machine can do: matrix products and memory."""
    size = 256 if options.size == "tiny" else 8192
    flops = measured_flops(device, DTYPES[options.dtype], size)
    megabytes = 8 if options.size == "tiny" else 2048
    return {
        "matmul_tflops": round(flops / 1e12, 3),
        "bandwidth_gb_s": round(bandwidth(device, megabytes) / 1e9, 1),
    }


# -- training -----------------------------------------------------------------------------------


def training_model(options: argparse.Namespace, device: torch.device) -> OneLLM:
    """A model that takes pictures, with random weights, made on the device."""
    tiny = options.size == "tiny"
    encoder = {"image_size": 28, "width": 32, "layers": 2, "heads": 2, "output_dim": 16}
    projector = {"width": 32, "queries": 4, "depth": 2, "heads": 2, "multiple_of": 16}
    config = OneLLMConfig(
        encoder=EncoderConfig(**encoder) if tiny else EncoderConfig(),
        projector=UPMConfig(**projector) if tiny else UPMConfig(),
        modalities={"image": TINY_MODALITIES["image"] if tiny else {}},
    )
    with made_as(DTYPES[options.dtype], device):
        llm = build_llama(**LLMS[options.size])
    return OneLLM(config, llm).to(device, DTYPES[options.dtype])


@contextmanager
def made_as(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Within it, new tensors are of a type and on a device."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(usual)


def run_of(options: argparse.Namespace, device: torch.device, **stage: Any) -> TrainConfig:
    """The configuration of a run of one pass a step."""
    parts = ["llm", "projector"] if options.compile else []
    plain: dict[str, Any] = {
        "model": "random",
        "out": "nowhere",
        "dtype": options.dtype,
        "stage": {"name": "measured", "modalities": ["image"], **stage},
        "optim": {"lr": 1e-5},
        "batch": {"size": 1},
        "length": {"steps": 1},
        "compute": {"attention": "sdpa", "compile": parts},
        "deepspeed": {"zero": 1} if device.type == "cuda" else None,
    }
    return parse(TrainConfig, plain, where="gpu.py")


def measure_training(
    options: argparse.Namespace,
    device: torch.device,
    config: TrainConfig,
    make: Callable[..., Batch],
) -> dict[str, Any]:
    """Rates and memory of a training step, through the training's own engine."""
    model = training_model(options, device).train()
    select(model, config.stage.trainable, ["image"])
    if config.stage.lora is not None:
        add_lora(model, config.stage.lora, 0)
    apply_compute(model, config.compute)
    batch = make(model)
    objective = LanguageModelling(model, pack=True)  # as all packaged stages through the LLM do
    costs = Costs(model, config)
    lengths_, room = objective.positions(batch)
    supervised = sum(example.supervised for example in batch)
    media = {"image": sum(len(example.media) for example in batch)}
    work = costs.batch(media, lengths_, supervised)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    engine = build_engine(objective, config, Place())

    def step() -> None:
        losses = engine.forward(batch)
        engine.backward(losses.total / supervised, last=True)
        engine.step(1e-5)

    for _ in range(2):
        step()
    wait(device)
    began = time.perf_counter()
    for _ in range(options.steps):
        step()
    wait(device)
    seconds = (time.perf_counter() - began) / options.steps
    peak = memory_gb(device)
    engine.close()
    return {
        "samples": len(batch),
        "samples_per_s": round(len(batch) / seconds, 2),
        "tokens_per_s": round(sum(lengths_) / seconds, 1),
        "padding": round(1 - sum(lengths_) / room, 4),
        "mfu": round(work.model / seconds / peak_flops(device, config), 4),
        "tflop_per_step": round(work.model / 1e12, 3),
        "trained_parameters": trained,
        "peak_gb": round(peak, 3),
        "estimated_gb": round(estimate(options, config, batch) / 1e9, 3),
    }


def estimate(options: argparse.Namespace, config: TrainConfig, batch: Batch) -> float:
    """What the dry run says of the same step, on the meta device."""
    empty = training_model(options, torch.device("meta")).train()
    select(empty, config.stage.trainable, ["image"])
    if config.stage.lora is not None:
        add_lora(empty, config.stage.lora, 0)
    apply_compute(empty, config.compute.model_copy(update={"compile": ()}))
    passes = measure_passes(empty, config, shapes_of(batch), 1)
    return sum(divide(empty, config, passes, 1)[0].values())


def align(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Stage I: pictures and captions, LLM and encoder frozen."""
    trainable = [glob for glob in ALIGN if not glob.startswith(("tokenizers", "positions"))]
    config = run_of(options, device, trainable=trainable)
    return measure_training(
        *(options, device, config),
        lambda model: samples(model, "image", "alignment", options.batch),
    )


def instruct(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Instruction tuning with a LoRA, as many conversations as fill a pass."""
    config = run_of(options, device, trainable=["llm.*"], lora={"rank": 64, "alpha": 128})

    def fill(model: OneLLM) -> Batch:
        count, medium = 1, model.config.projector.queries + 2
        while sum(lengths(count + 1, CONVERSATION)) + (count + 1) * medium <= options.tokens:
            count += 1
        made = samples(model, "image", "instruction", count)
        return made if options.size != "tiny" else [shorten(example) for example in made]

    return measure_training(options, device, config, fill)


def shorten(example: Example) -> Example:
    """A conversation of a few tokens, for the miniature."""
    return Example(
        example.id, "image", example.media, example.ids[:12], example.ids[:12].clone(), ""
    )


# -- answering ----------------------------------------------------------------------------------


def projector(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """The fused projector against the published loop, batch 1 and 8."""
    with torch.inference_mode():
        model = build(options.size, device, DTYPES[options.dtype], llm=False)
        serial = SerialUPM(model.projector)
        settings = argparse.Namespace(rounds=3 if options.size == "tiny" else 20)
        rows = [measure(model, serial, "image", batch, settings) for batch in (1, 8)]
    return {f"ratio_at_batch_{row['batch']}": row["upm_ratio"] for row in rows}


def decoding(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Tokens per second and share of the memory's bandwidth, batch 1 and 32."""
    tiny = options.size == "tiny"
    settings = argparse.Namespace(
        batches=[1, 2] if tiny else [1, 32],
        prompt_tokens=8 if tiny else 64,
        new_tokens=6 if tiny else 64,
        compile=device.type == "cuda",
        rounds=1 if tiny else 2,
    )
    with torch.inference_mode():
        model = build(options.size, device, DTYPES[options.dtype])
        rate = bandwidth(device, 8 if tiny else 2048)
        return {"batches": sweep(model, settings, rate)}


TASKS: dict[str, Callable[[argparse.Namespace, torch.device], dict[str, Any]]] = {
    "roof": roof,
    "align": align,
    "instruct": instruct,
    "projector": projector,
    "decoding": decoding,
}

if __name__ == "__main__":
    main()
