"""The published 7B shape with random weights: written, loaded, converted, asked; no download.

    python benchmarks/full_width.py --folder /scratch/onellm-7b

Steps, each in a process of its own so that its peak memory is its own: write ten `.sN.pth` parts in
bfloat16 (15.2 GB), load them with `from_official` and generate, convert them, load the result with
`from_pretrained` and generate the same tokens; then generate once more with 8-bit and with 4-bit
weights in the LLM (extra `quant`). It needs 31 GB of disk and 24 GB of memory. `--tiny` is the same
at 64 channels, in seconds. The last line of output is JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from onellm.convert import PART_BYTES, from_published
from onellm.encoder import EncoderConfig
from onellm.llm import build_llama
from onellm.model import OneLLM, OneLLMConfig
from onellm.projection.experts import hidden_width
from onellm.projection.upm import UPMConfig
from onellm.published_keys import DROPPED, OursAsPublished, places
from onellm.registry import modality_classes
from onellm.slots import Slots, empty_parameters
from onellm.weight_files import divide

STEPS = ("write", "load", "convert", "reload", "bits8", "bits4")
FULL = {"dim": 4096, "n_layers": 32, "n_heads": 32, "multiple_of": 256, "norm_eps": 1e-5}
TINY = {"dim": 64, "n_layers": 2, "n_heads": 4, "multiple_of": 16, "norm_eps": 1e-5}
LEFT_OVER = {  # of CLIP's text tower, which the published files hold and nothing reads (spec §2.2)
    "clip.positional_embedding": (77, 768),
    "clip.text_projection": (768, 768),
    "clip.logit_scale": (),
    "clip.token_embedding.weight": (49408, 768),
    "clip.ln_final.weight": (768,),
    "clip.ln_final.bias": (768,),
}


class Words:
    """A stand-in for LLaMA's tokenizer, which is not ours to ship: one id per byte."""

    bos_id, eos_id, pad_id = 1, 2, 2

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids 3 to 98 and their character spans."""
        return [3 + ord(c) % 96 for c in text], [(i, i + 1) for i in range(len(text))]

    def decode(self, ids: Sequence[int]) -> str:
        """The ids themselves: the weights are random."""
        return "".join(f"<{int(i)}>" for i in ids)

    def save(self, folder: Path) -> None:
        """Nothing to save."""


class Names:
    """The shapes of a model's weights without the weights."""

    def __init__(self, shapes: dict[str, torch.Size]) -> None:
        self.shapes, self.dtypes = shapes, dict.fromkeys(shapes, torch.bfloat16)

    def read(self, name: str) -> torch.Tensor:
        """There is none."""
        raise NotImplementedError(name)


def published_shapes(tiny: bool) -> dict[str, tuple[int, ...]]:
    """Every key of the published model and its shape, off an empty model."""
    params = TINY if tiny else FULL
    classes = {n: c for n, c in modality_classes().items() if c.published_name}
    if tiny:  # those of fewest tokens; an fMRI recording alone has 129 million weights
        classes = {n: c for n, c in classes.items() if n in ("image", "imu")}
    config = OneLLMConfig(
        encoder=EncoderConfig(width=64, layers=2, heads=1) if tiny else EncoderConfig(),
        projector=UPMConfig(width=64, depth=2, multiple_of=16) if tiny else UPMConfig(),
        modalities={name: dict(cls.published_options) for name, cls in classes.items()},
        prompt_format="published",
    )
    sizes = {"width": params["dim"], "layers": params["n_layers"], "heads": params["n_heads"]}
    with empty_parameters():
        hidden = hidden_width(params["dim"], params["multiple_of"])
        llm = build_llama(vocab=128 if tiny else 32000, hidden=hidden, **sizes)
        model = OneLLM(config, llm)
    published = OursAsPublished(list(places(model)), Names(Slots(model).shapes))
    assert set(LEFT_OVER) | {"rope.freqs"} == DROPPED
    return {key: tuple(shape) for key, shape in published.shapes.items()} | LEFT_OVER


def write(folder: Path, tiny: bool) -> dict[str, Any]:
    """Write random bfloat16 weights in parts, as they lie on the hub."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = published_shapes(tiny)
    generator = torch.Generator().manual_seed(0)
    sizes = {key: 2 * torch.Size(shape).numel() for key, shape in shapes.items()}
    limit = max(1, sum(sizes.values()) // 4) if tiny else PART_BYTES
    groups = divide(sizes, limit)
    for number, keys in enumerate(groups):
        part = {f"llma.{key}": draw(key, shapes[key], generator) for key in keys}
        torch.save(part, folder / f"consolidated.00-of-01.s{number}.pth")
    (folder / "params.json").write_text(json.dumps(TINY if tiny else FULL))
    return {"parts": len(groups), "keys": len(shapes), "weight_bytes": sum(sizes.values())}


def draw(key: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Weights at which activations stay finite: norms at one, the rest small."""
    if "norm" in key or ".ln_" in key or key.endswith(".1.weight"):
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)


def ask(load: Callable[[], OneLLM], tokens: int) -> dict[str, Any]:
    """Load a model and let it answer about an IMU recording, greedily."""
    began = time.perf_counter()
    model = load()
    loaded = time.perf_counter()
    model.text = Words()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(model.modality("imu").example().shape, generator=generator)
    answer = model.generate("What is this?", [("imu", x)], max_new_tokens=tokens)
    done = time.perf_counter()
    return {
        "resident_bytes": resident_bytes(),
        "load_seconds": round(loaded - began, 1),
        "generate_seconds": round(done - loaded, 1),
        "parameter_bytes": sum(p.nbytes for p in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "answer": answer,
    }


def run_step(step: str, folder: Path, tiny: bool, tokens: int) -> dict[str, Any]:
    """One step, in this process."""
    published, ours = folder / "published", folder / "ours"
    base = peak_bytes()
    began = time.perf_counter()
    if step == "write":
        facts = write(published, tiny)
    elif step == "convert":
        done = from_published(published, ours)
        facts = {"files": len(done.files), "file_bytes": sum(size for _, size in done.files)}
    elif step == "load":
        facts = ask(lambda: OneLLM.from_official(published), tokens)
    else:
        bits = {"bits8": 8, "bits4": 4}.get(step, 0)
        facts = ask(lambda: OneLLM.from_pretrained(ours, bits=bits), tokens)
    seconds = round(time.perf_counter() - began, 1)
    return {"seconds": seconds, "peak_bytes": peak_bytes(), "base_bytes": base} | facts


def resident_bytes() -> int | None:
    """Memory of this process now, its own pages alone; none where the system does not say."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return int(lines["RssAnon"].split()[0]) * 1024


def peak_bytes() -> int:
    """Most memory that this process has had, pages of mapped files among it."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def run_all(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each step in a process of its own."""
    for step in options.steps or STEPS:
        command = [sys.executable, __file__, "--only", step, "--folder", str(options.folder)]
        command += ["--tokens", str(options.tokens)] + ["--tiny"] * options.tiny
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        yield step, json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Run the steps and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="for weights; not removed")
    parser.add_argument("--tokens", type=int, default=4, help="tokens to generate")
    parser.add_argument("--tiny", action="store_true", help="64 channels, in seconds")
    parser.add_argument("--steps", nargs="*", choices=STEPS, help="some of the steps only")
    parser.add_argument("--only", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        facts = run_step(options.only, options.folder, options.tiny, options.tokens)
        print(json.dumps(facts))
        return
    report: dict[str, Any] = {"benchmark": "full_width", "tiny": options.tiny}
    for step, facts in run_all(options):
        report[step] = facts
        gigabytes = facts["peak_bytes"] / 1e9
        print(f"{step:8} {facts['seconds']:8.1f} s   peak {gigabytes:6.2f} GB", flush=True)
        if step in ("load", "reload"):
            ratio = facts["peak_bytes"] / facts["parameter_bytes"]
            facts["peak_over_weights"] = round(ratio, 3)
            print(f"{'':8} peak / weights {ratio:.2f}", flush=True)
    if {"load", "reload"} <= report.keys():
        report["same_answer"] = report["load"]["answer"] == report["reload"]["answer"]
    print(json.dumps(report))


if __name__ == "__main__":
    main()
