"""Is this machine ready? Versions, devices, missing extras, and a short run of a tiny model."""

from __future__ import annotations

import importlib.metadata
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from onellm.eval.machine import cores, memory_gb, processor

# What a run imports; distribution name → module where they differ.
PACKAGES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "open_clip_torch": "open_clip",
    "transformers": "transformers",
    "deepspeed": "deepspeed",
    "webdataset": "webdataset",
    "safetensors": "safetensors",
    "pydantic": "pydantic",
}
# One reader per kind of file.
READERS = {
    "librosa": "audio files",
    "soundfile": "audio files",
    "av": "video files",
    "pillow": "pictures",
    "nibabel": "NIfTI volumes",
    "trimesh": "meshes",
    "sentencepiece": "LLaMA-2's tokenizer",
    "gguf": "GGUF language models",
}


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    Args:
        state: ``"ok"``; ``"note"``, something optional is missing; ``"bad"``, something will fail.
        what: what was looked at.
        found: what was there.
        remedy: what to do about it.
    """

    state: Literal["ok", "note", "bad"]
    what: str
    found: str
    remedy: str = ""


def examine() -> Iterator[Finding]:
    """Look at everything, one finding at a time, quickest first."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        *(_python, _machine, _packages, _readers),
        *(_extras, _torchvision, _devices, _forward),
    )
    for check in checks:
        yield from check()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _python() -> Iterator[Finding]:
    import onellm

    yield Finding("ok", "onellm", onellm.__version__)
    yield Finding("ok", "Python", ".".join(map(str, sys.version_info[:3])))


def _machine() -> Iterator[Finding]:
    memory = memory_gb()
    size = f", {memory} GB memory" if memory else ""
    yield Finding("ok", "machine", f"{processor()}, {cores()} cores{size}")


def _packages() -> Iterator[Finding]:
    for package in PACKAGES:
        version = _version(package)
        if version:
            yield Finding("ok", package, version)
        else:
            yield Finding("bad", package, "not installed", f"pip install {package}")


def _readers() -> Iterator[Finding]:
    for package, what in READERS.items():
        if _version(package) is None:
            yield Finding("bad", package, f"not installed; reads {what}", f"pip install {package}")
    present = [p for p in READERS if _version(p)]
    yield Finding("ok", "readers", ", ".join(present))


def _extras() -> Iterator[Finding]:
    """Optional packages, as our own metadata lists them."""
    try:
        required = importlib.metadata.requires("onellm") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("note", "extras", "onellm runs uninstalled", "pip install -e .")
        return
    missing: dict[str, list[str]] = {}
    for line in required:
        match = re.match(r"([\w.-]+).*;.*extra\s*==\s*['\"](\w+)['\"]", line)
        if match and _version(match[1]) is None:
            missing.setdefault(match[2], []).append(match[1])
    for extra, packages in missing.items():
        found = f"not installed: {', '.join(packages)}"
        yield Finding("note", f"extra {extra}", found, f"pip install 'onellm[{extra}]'")


def _torchvision() -> Iterator[Finding]:
    """Operators of torchvision are missing where it was built for another torch."""
    try:
        import torchvision  # type: ignore[import-untyped]  # noqa: F401 - the import is the check
    except ImportError:
        return
    except RuntimeError as error:
        yield Finding(
            "bad",
            "torchvision",
            f"does not load beside torch {_version('torch')} ({first_line(error)})",
            "They come from different builds. Install both from the same index: "
            "pip install --force-reinstall torch torchvision",
        )


def _devices() -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("bad", "torch", f"does not load ({first_line(error)})", "Reinstall torch.")
        return
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        memory = f"{properties.total_memory / 1e9:.0f} GB"
        yield Finding("ok", f"GPU {i}", f"{properties.name}, {memory}")
    if not torch.cuda.is_available():
        threads = torch.get_num_threads()
        yield Finding("ok", "GPU", f"none that torch can use; the CPU will do, {threads} threads")


def _forward() -> Iterator[Finding]:
    """A tiny random model with every registered modality reads an empty signal of each."""
    try:
        names, seconds = tiny_forward()
    except Exception as error:  # whatever breaks here, a report is what was asked for
        kind = type(error).__name__
        yield Finding("bad", "tiny model", f"{kind}: {first_line(error)}", "Please report this.")
        return
    yield Finding("ok", "tiny model", f"read {', '.join(names)} in {seconds:.1f} s")


def tiny_forward() -> tuple[list[str], float]:
    """Build a tiny random OneLLM and give it an empty signal of every modality.

    Returns:
        names of the modalities, and seconds without those for importing libraries.
    """
    import torch

    from onellm.encoder import EncoderConfig
    from onellm.llm import build_llama
    from onellm.model import OneLLM, OneLLMConfig
    from onellm.projection.upm import UPMConfig

    began = time.perf_counter()
    config = OneLLMConfig(
        encoder=EncoderConfig(width=32, layers=1, heads=2, output_dim=8),
        projector=UPMConfig(width=32, queries=2, experts=3, depth=1, heads=2, multiple_of=16),
    )
    llm = build_llama(vocab=64, width=32, layers=1, heads=2, hidden=64)
    model = OneLLM(config, llm).eval()
    with torch.inference_mode():
        for name, modality in model.modalities.items():
            logits = model(torch.tensor([[1, 5, 7]]), media=[(name, modality.example()[None])])
            if logits.shape != (1, 3, 64):
                raise RuntimeError(f"{name} gave logits of shape {tuple(logits.shape)}")
    return list(model.modalities), time.perf_counter() - began


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
