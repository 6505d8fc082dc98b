"""The dry run's memory: against what a run really takes here, and for 7B on the hardware presets.

    python benchmarks/memory.py --measure               (runs of 100 M parameters, some minutes)
    python benchmarks/memory.py --presets               (nothing is run)

A run is measured in a process of its own: the most memory the system gave it, less what it had
after importing everything. Its allocator is told to give back at once what is freed: what it would
keep for later is neither the run's need nor in the estimate. The last line is JSON.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from scaling import published_model
from train_step import CAPTION, CONVERSATION, lengths

from onellm.config import parse
from onellm.encoder import EncoderConfig
from onellm.model import OneLLM, OneLLMConfig
from onellm.preset import TinyLLM
from onellm.projection.upm import UPMConfig
from onellm.tiny_llm import build_tiny_llm
from onellm.train.budget import divide
from onellm.train.config import TrainConfig
from onellm.train.dry_run import dry_run, set_up
from onellm.train.flops import encoder_tokens
from onellm.train.launch import run_training
from onellm.train.media import is_frozen
from onellm.train.memory import measure_passes
from onellm.train.meter import process_bytes
from onellm.train.packaged import hardware_names, overlay, read_config, read_machine
from onellm.train.shapes import Shapes

STAGES = (
    *("warmup", "align_image", "align_video_audio_point", "align_depth_normal_imu_fmri"),
    "instruct",
)
SIZES = {
    "tiny": {"vocab": 512, "width": 64, "layers": 2, "heads": 2},
    "small": {"vocab": 4096, "width": 768, "layers": 12, "heads": 12},
}
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Told to glibc's allocator; others do not listen."""
PROJECTOR: dict[str, Any] = {"trainable": ["projector.*", "tags.*"]}
LLM: dict[str, Any] = {"trainable": ["llm.*"]}
CASES: dict[str, dict[str, Any]] = {
    "projector": {"stage": PROJECTOR},
    "projector, features stored": {"stage": PROJECTOR | {"frozen": "features"}},
    "llm": {"stage": LLM},
    "llm, blocks recomputed": {"stage": LLM, "compute": {"recompute": ["llm"]}},
    "llm, bfloat16": {"stage": LLM, "dtype": "bfloat16"},
    "llm, two passes of packed rows": {
        "stage": LLM,
        "batch": {"size": 16, "per_device": 8, "arrange": "length", "pack": True},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        epilog=(__doc__ or "").split("\n\n")[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--hardware", nargs="+", help="of --presets; all if left out")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="of --presets")
    parser.add_argument("--cases", nargs="+", choices=CASES, help="of --measure; all if left out")
    parser.add_argument("--device", default="cpu", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--measure", action="store_true", help="a run against its estimate")
    parser.add_argument("--presets", action="store_true", help="7B on the hardware presets")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(run_and_measure(Path(options.run))))
        return
    result: dict[str, Any] = {"benchmark": "memory", "size": options.size}
    if options.measure or not options.presets:
        result["measured"] = [measure(options, name) for name in options.cases or CASES]
    if options.presets:
        result["presets"] = presets(options.hardware or hardware_names(), options.stages)
    print(json.dumps(result))


# -- measured -----------------------------------------------------------------------------------


def measure(options: argparse.Namespace, case: str) -> dict[str, Any]:
    """Estimate a run, run it in a process of its own, and compare."""
    with tempfile.TemporaryDirectory() as folder:
        save_start(Path(folder) / "start", options.size)
        config = run_of(Path(folder), options.batch, CASES[case])
        (Path(folder) / "run.json").write_text(json.dumps(config.model_dump(mode="json")))
        estimated = dry_run(config).peak
        done = subprocess.run(
            [sys.executable, __file__, "--run", folder],
            stdout=subprocess.PIPE,
            env=os.environ | GIVES_BACK,
            text=True,
            check=True,
        )
        told = json.loads(done.stdout.splitlines()[-1])
    row = {
        "case": case,
        "estimated_mb": round(estimated / 1e6, 1),
        "measured_mb": round(told["peak"] / 1e6, 1),
        "ratio": round(estimated / told["peak"], 3),
    }
    print(row, flush=True)
    return row


def save_start(folder: Path, size: str) -> None:
    """A random model that takes pictures."""
    torch.manual_seed(0)
    texts = ["What is this? It is a chair, a table, a plant or a lamp."] * 8
    llm, text = build_tiny_llm(TinyLLM(**SIZES[size]), texts)
    encoder = {"width": 32, "layers": 2, "heads": 2, "output_dim": 16}
    projector = {"width": 32, "depth": 2, "heads": 2, "multiple_of": 16}
    if size != "tiny":
        encoder = {"width": 512, "layers": 6, "heads": 8, "output_dim": 64}
        projector = {"width": 512, "depth": 4, "heads": 8}
    config = OneLLMConfig(
        encoder=EncoderConfig(image_size=56, **encoder),
        projector=UPMConfig(**projector),
        modalities={"image": {"size": 56}},
    )
    OneLLM(config, llm, text).save_pretrained(folder)


def run_of(folder: Path, batch: int, case: dict[str, Any]) -> TrainConfig:
    """Three steps on the packaged pictures."""
    plain: dict[str, Any] = {
        "model": str(folder / "start"),
        "out": str(folder / "out"),
        "data": {"targets": {"describe": 1}, "ahead": 0},
        "stage": {"name": "measured", "modalities": ["image"]},
        "optim": {"lr": 1e-5},
        "batch": {"size": batch},
        "length": {"steps": 3},
        "checkpoint": {"every": 10**6},
        "compute": {"attention": "sdpa"},
        "log": {"peak_tflops": 1.0},
    }
    return parse(TrainConfig, overlay(plain, case), where="memory.py")


def run_and_measure(folder: Path) -> dict[str, float]:
    """Train in this process; bytes it took at most beyond what it began with."""
    config = parse(TrainConfig, json.loads((folder / "run.json").read_text()), where="run.json")
    for package in ("transformers", "peft"):
        importlib.import_module(package)
    torch.ones(8, 8) @ torch.ones(8, 8)  # the libraries' own buffers
    before = process_bytes()
    peak = 0.0

    def watch(progress: object) -> None:
        nonlocal peak
        peak = process_bytes() - before  # of the steps; writing the model comes later

    run_training(config, watch, export=False)
    return {"peak": peak}


# -- presets ------------------------------------------------------------------------------------


def unlike(model: OneLLM, config: TrainConfig) -> list[str]:
    """The stage's modalities, of those that take the same shapes the first."""
    found: dict[tuple[int, int, bool], str] = {}
    for name in config.stage.modalities:
        modality = model.modality(name)
        frames = len(modality.example()) if modality.frame_axis else 1
        learned = not is_frozen(model, name, "features")
        found.setdefault((encoder_tokens(model, name), frames, learned), name)
    return list(found.values())


def presets(names: list[str], stages: Sequence[str]) -> list[dict[str, Any]]:
    """GB of each GPU for each stage on each preset, at its dearest modality."""
    empty, rows = published_model().to("meta"), []
    print("| preset | stage | ZeRO | a pass | GB a GPU | GB of the machine a GPU |")
    print("|---|---|---|---|---|---|")
    for hardware in names:
        world = read_machine(hardware).devices
        for stage in stages:
            config = read_config(stage, [], hardware)
            per_device, passes = config.batch.split(world)
            best: tuple[float, float] = (0.0, 0.0)
            model = copy.deepcopy(empty)
            set_up(model, config)
            for name in unlike(model, config):
                spread = CAPTION if stage != "instruct" else CONVERSATION
                text = tuple(lengths(per_device, spread))
                shapes = Shapes({name: per_device}, text, (1,) * per_device, sum(text) // 2)
                found = measure_passes(model, config, shapes, passes)
                memory, host = divide(model, config, found, world)
                best = max(best, (sum(memory.values()), sum(host.values())))
            zero = config.deepspeed.zero if config.deepspeed else 0
            row = {
                "preset": hardware,
                "stage": stage,
                "zero": zero,
                "per_device": per_device,
                "gb": round(best[0] / 1e9, 1),
                "host_gb": round(best[1] / 1e9, 1),
            }
            rows.append(row)
            print("| " + " | ".join(str(value) for value in row.values()) + " |", flush=True)
    return rows


if __name__ == "__main__":
    main()
