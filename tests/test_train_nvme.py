"""Optimiser and weights on a disk, in two processes: slow, and skipped where libaio is missing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train_zero import MIXED, two_processes, whole
from tiny import ENCODER, MODALITIES, PROJECTOR, tiny_text
from tiny_runs import tiny_config, write_shards

from onellm.llm import build_llama
from onellm.model import OneLLM, OneLLMConfig
from onellm.train.launch import run_training
from onellm.train.metrics import read_metrics

STEPS = 4
SECTIONS: dict[str, Any] = MIXED | {
    "length": {"steps": STEPS},
    "optim": {"schedule": "constant", "lr": 1e-5, "warmup_steps": 0},
    "stage": {"trainable": ["projector.*", "llm.*"]},
}


def wide_model() -> OneLLM:
    """Wide enough: tensors below a megabyte stay in memory whatever the configuration says."""
    torch.manual_seed(0)
    modalities = {name: MODALITIES[name] for name in ("image", "imu")}
    config = OneLLMConfig(encoder=ENCODER, projector=PROJECTOR, modalities=modalities)
    llm = build_llama(vocab=320, width=1024, layers=2, heads=8, hidden=1024)
    return OneLLM(config, llm, tiny_text()).eval()


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Path:
    builder = pytest.importorskip("deepspeed.ops.op_builder").AsyncIOBuilder()
    if not builder.is_compatible(verbose=False):
        pytest.skip("libaio is not installed")
    folder: Path = tmp_path_factory.mktemp("nvme")
    write_shards(folder / "shards")
    wide_model().save_pretrained(folder / "start")
    run_training(tiny_config(folder / "shards", folder / "alone", **SECTIONS), model=wide_model())
    return folder


def assert_equal_to_one_process(place: Path, name: str) -> None:
    one, two = (read_metrics(place / run / "metrics.jsonl") for run in ("alone", name))
    assert [r["loss"] for r in two] == pytest.approx([r["loss"] for r in one], abs=2e-6)
    assert [r["grad_norm"] for r in two] == pytest.approx([r["grad_norm"] for r in one], rel=1e-4)
    want, got = whole(place / "alone", STEPS), whole(place / name, STEPS)
    assert want.keys() == got.keys()
    for key, tensor in want.items():
        torch.testing.assert_close(got[key], tensor, atol=1e-6, rtol=1e-4, msg=key)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "offload",
    [
        {"optimizer": "nvme"},
        {"optimizer": "nvme", "parameters": "nvme"},
        {"optimizer": "cpu", "parameters": "nvme"},
    ],
)
def test_what_lies_on_a_disk_trains_and_goes_on_as_in_memory(place, tmp_path, offload):
    disk, name = tmp_path / "disk", "-".join(offload)
    zero = {"zero": 3, "offload": offload | {"path": str(disk)}}
    run = {name: SECTIONS | {"deepspeed": zero}}
    shutil.rmtree(place / name, ignore_errors=True)
    two_processes(place, run)
    written = sum(file.stat().st_size for file in disk.rglob("*.swp"))
    assert written > 2e7  # the optimiser's share of four matrices, or the weights'
    assert_equal_to_one_process(place, name)
    shutil.rmtree(place / name / "checkpoints" / f"step-{STEPS:06d}")
    two_processes(place, run)
    assert_equal_to_one_process(place, name)
