"""DeepSpeed: its JSON, and two processes against one."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_model
from tiny_runs import tiny_config, tiny_run, write_shards

from onellm.errors import ConfigError
from onellm.train.launch import run_training
from onellm.train.metrics import read_metrics
from onellm.train.zero import deepspeed_json

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 120  # importing torch and deepspeed, and six tiny steps, take 15 s


def test_json_follows_the_configuration():
    config = tiny_config(
        Path("a"),
        Path("b"),
        dtype="bfloat16",
        deepspeed={"zero": 1, "raw": {"zero_optimization": {"overlap_comm": True}, "x": 1}},
    )
    made = deepspeed_json(config, world=2)
    assert made["train_batch_size"] == 8
    assert (made["train_micro_batch_size_per_gpu"], made["gradient_accumulation_steps"]) == (4, 1)
    assert made["gradient_clipping"] == 2.0
    assert made["bf16"] == {"enabled": True}
    assert made["zero_optimization"] == {"stage": 1, "overlap_comm": True}
    assert made["x"] == 1


def test_zero_2_wants_one_modality_in_each_pass():
    config = tiny_config(Path("a"), Path("b"), deepspeed={"zero": 2}, batch={"per_device": 2})
    deepspeed_json(config, world=1)
    with pytest.raises(ConfigError, match=r"batch\.same_modality to a multiple of 4"):
        deepspeed_json(config, world=2)
    with pytest.raises(ConfigError, match="no deepspeed section"):
        deepspeed_json(tiny_config(Path("a"), Path("b")), world=1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("zero")
    write_shards(folder / "shards")
    tiny_model("image", "imu").save_pretrained(folder / "start")
    return folder


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def two_processes(place: Path, name: str, **sections: Any) -> list[dict[str, Any]]:
    """Run a configuration in two processes; its metrics."""
    config = tiny_config(place / "shards", place / name, **sections).model_dump(mode="json")
    file = place / f"{name}.yaml"
    file.write_text(json.dumps(config | {"model": str(place / "start")}))
    shared = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": _free_port(),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "onellm.train.launch", str(file)]
    ranks = [
        subprocess.Popen(
            command,
            env=os.environ | shared | {"RANK": str(r), "LOCAL_RANK": str(r)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for r in range(2)
    ]
    try:
        logs = [rank.communicate(timeout=TIMEOUT_S)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], logs[0][-3000:] + logs[1][-3000:]
    return read_metrics(place / name / "metrics.jsonl")


def compare(place: Path, one: str, two: str) -> None:
    """Checkpoints of two runs agree in every tensor, optimiser state included."""
    a, b = (
        load_file(str(place / run / "checkpoints" / "step-000006" / "state.safetensors"))
        for run in (one, two)
    )
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-5, rtol=1e-4)


Records = list[dict[str, Any]]


def one_and_two(place: Path, zero: int, same_modality: int) -> tuple[Records, Records]:
    batch = {"per_device": 2, "same_modality": same_modality}
    _, alone = tiny_run(place / "shards", place / f"alone{zero}", batch=batch)
    both = two_processes(place, f"both{zero}", batch=batch, deepspeed={"zero": zero})
    return alone, both


@pytest.fixture(scope="module")
def zero_1(place: Path) -> tuple[Records, Records]:
    """Modalities mixed freely, so that the processes draw different ones in a pass."""
    return one_and_two(place, zero=1, same_modality=1)


def assert_equal_runs(alone: Records, both: Records) -> None:
    for key in ("loss", "grad_norm"):
        assert [r[key] for r in both] == pytest.approx([r[key] for r in alone], abs=1e-5)
    assert both[-1]["losses"] == pytest.approx(alone[-1]["losses"], abs=1e-5)


def test_two_processes_with_zero_1_equal_one(place, zero_1):
    assert_equal_runs(*zero_1)
    compare(place, "alone1", "both1")


def test_two_processes_with_zero_2_equal_one(place):
    assert_equal_runs(*one_and_two(place, zero=2, same_modality=4))
    compare(place, "alone2", "both2")


def test_two_processes_resume_as_one(place, zero_1):
    """A run of two processes, cut off after step 4, goes on in one: same samples and losses."""
    checkpoints = place / "elastic" / "checkpoints"
    shutil.copytree(place / "both1" / "checkpoints", checkpoints)
    shutil.rmtree(checkpoints / "step-000006")
    batch = {"per_device": 4, "same_modality": 1}
    _, rest = tiny_run(place / "shards", place / "elastic", batch=batch)
    alone, _ = zero_1
    assert [r["step"] for r in rest] == [5, 6]
    assert [r["loss"] for r in rest] == pytest.approx([r["loss"] for r in alone[4:]], abs=1e-5)
    compare(place, "alone1", "elastic")


@pytest.mark.parametrize("zero", [0, 1, 2])
def test_one_process_under_deepspeed_equals_plain_and_resumes(place, zero):
    def run(name: str, steps: int = 6, **sections: Any) -> list[dict[str, Any]]:
        config = tiny_config(
            *(place / "shards", place / name),
            length={"steps": steps},
            optim={"schedule": "constant"},
            **sections,
        )
        run_training(config, model=tiny_model("image", "imu"))
        return read_metrics(place / name / "metrics.jsonl")

    plain = run(f"plain{zero}")
    run(f"cut{zero}", 3, deepspeed={"zero": zero})
    again = run(f"cut{zero}", deepspeed={"zero": zero})
    for key in ("loss", "grad_norm"):
        assert [r[key] for r in again] == pytest.approx([r[key] for r in plain], abs=1e-5)
    compare(place, f"plain{zero}", f"cut{zero}")


def test_bfloat16_under_zero_keeps_float32_masters(place):
    config = tiny_config(place / "shards", place / "bf16", dtype="bfloat16", deepspeed={"zero": 1})
    run_training(config, model=tiny_model("image", "imu"))
    tensors = load_file(str(place / "bf16/checkpoints/step-000006/state.safetensors"))
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    master = tensors["parameter/projector.experts.0.wq"]
    assert not torch.equal(master, master.bfloat16().float())
