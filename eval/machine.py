"""Where and with what a result was obtained; asks without importing anything heavy."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "open_clip_torch", "deepspeed", "numpy")


def environment() -> dict[str, Any]:
    """Versions, the commit if this is a checkout, processor, cores and memory.

    Returns:
        ``commit`` (None outside a checkout; with ``+`` behind it where files were changed),
        ``versions`` by package, ``machine`` with ``system``, ``processor``, ``cores`` and
        ``memory_gb`` (10^9 bytes, None where the system does not say).
    """
    return {
        "commit": commit(),
        "versions": {"python": platform.python_version(), **versions(("onellm", *PACKAGES))},
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": processor(),
            "cores": cores(),
            "memory_gb": memory_gb(),
        },
    }


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Installed versions; packages that are not installed are left out."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Short hash of the checkout this package runs from, None if it is none."""
    root = Path(__file__).resolve().parents[1]
    if not (root / "setup.py").is_file():
        return None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=8"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def cores() -> int:
    """Processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_gb() -> float | None:
    """Physical memory in 10^9 bytes, None where the system does not say."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, OSError, ValueError):
        return None


def processor() -> str:
    """The processor's own name, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
