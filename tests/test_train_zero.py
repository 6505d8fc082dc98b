"""DeepSpeed: its JSON, every ZeRO stage in one process and in two against plain PyTorch."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import signals, tiny_model
from tiny_runs import tiny_config, tiny_run, write_shards

from onellm.errors import ConfigError
from onellm.model import OneLLM
from onellm.train.checkpoint import Checkpoints
from onellm.train.engine import Place
from onellm.train.finish import export_run
from onellm.train.launch import run_training
from onellm.train.metrics import read_metrics
from onellm.train.zero import DeepSpeedEngine, deepspeed_json

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 600
STEPS, MANY_STEPS = 6, 30
CLOSE = 2e-5
"""Largest difference of losses: the order of float32 sums is all that differs."""

Records = list[dict[str, Any]]


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
    zero = made["zero_optimization"]
    assert (zero["stage"], zero["overlap_comm"]) == (1, True)
    assert not {"offload_optimizer", "offload_param"} & zero.keys()
    assert made["x"] == 1


def test_json_of_offload():
    offload = {"optimizer": "cpu", "parameters": "nvme", "path": "/disk"}
    config = tiny_config(Path("a"), Path("b"), deepspeed={"zero": 3, "offload": offload})
    zero = deepspeed_json(config, world=1)["zero_optimization"]
    assert zero["offload_optimizer"]["device"] == "cpu"
    assert (zero["offload_param"]["device"], zero["offload_param"]["nvme_path"]) == (
        "nvme",
        "/disk",
    )


@pytest.mark.parametrize(
    ("deepspeed", "message"),
    [
        ({"zero": 2, "offload": {"parameters": "cpu"}}, "parameters needs zero=3"),
        ({"zero": 0, "offload": {"optimizer": "cpu"}}, "needs zero=1 or more"),
        ({"zero": 2, "offload": {"optimizer": "nvme", "path": "x"}}, "nvme needs zero=3"),
        ({"zero": 3, "offload": {"optimizer": "nvme"}}, r"offload\.path"),
    ],
)
def test_offload_that_cannot_be(deepspeed, message):
    with pytest.raises(ConfigError, match=message):
        tiny_config(Path("a"), Path("b"), deepspeed=deepspeed)


@pytest.mark.parametrize("zero", [2, 3])
def test_negatives_of_a_pass_are_of_one_modality(zero):
    sections: dict[str, Any] = {"deepspeed": {"zero": zero}, "batch": {"per_device": 2}}
    deepspeed_json(tiny_config(Path("a"), Path("b"), **sections), world=2)
    sections["stage"] = {"objective": "contrastive"}
    config = tiny_config(Path("a"), Path("b"), **sections)
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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# Modalities mixed freely: the processes draw different ones in a pass, and none must wait.
MIXED: dict[str, Any] = {
    "length": {"steps": STEPS},
    "optim": {"schedule": "constant"},
    "checkpoint": {"every": 2, "keep": 9},
    "batch": {"per_device": 2, "same_modality": 1},
}


# Rows are planned from lengths that each process has measured a part of, some steps ahead.
PACKED = MIXED | {
    "batch": {"per_device": 2, "arrange": "length", "pack": True, "tokens": 60},
    "data": {"ahead": 2},
}


# Adam divides gradients by their size: a larger rate would show the rounding of those near 0.
UPDATE: dict[str, Any] = {
    "length": {"steps": 2},
    "optim": {"lr": 2e-5, "warmup_steps": 0},
    "batch": {"per_device": 4, "same_modality": 1},
}


def test_processes_wait_longer_for_each_other_than_one_for_a_sample(tmp_path, monkeypatch):
    """Otherwise the others end the run before the sample is named: NCCL gives up in ten minutes."""
    started: dict[str, Any] = {}

    def start(backend: str, *, timeout: timedelta) -> None:
        started.update(backend=backend, timeout=timeout)
        raise ConfigError("far enough")

    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")  # what the engine sets is put back
        monkeypatch.delenv(name)
    monkeypatch.setattr(torch.distributed, "init_process_group", start)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    objective: Any = None  # it is not come to
    for patience, least in ((1200, timedelta(seconds=1500)), (0, timedelta(days=30))):
        config = tiny_config(tmp_path, tmp_path, deepspeed={"zero": 1}, data={"patience": patience})
        with pytest.raises(ConfigError, match="far enough"):
            DeepSpeedEngine(objective, config, Place())
        assert started["timeout"] > least


def two_processes(place: Path, runs: dict[str, dict[str, Any]]) -> None:
    """Run configurations in two processes, one after the other."""
    arguments = []
    for name, sections in runs.items():
        config = tiny_config(place / "shards", place / name, **sections).model_dump(mode="json")
        file = place / f"{name}.json"
        file.write_text(json.dumps(config | {"model": str(place / "start")}))
        arguments.append(f"{file}:{_free_port()}")
    shared = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "ranks.py"), *arguments],
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


def whole(run: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    """All tensors of a run's checkpoint, whoever wrote which part of them."""
    checkpoints = Checkpoints(run, keep=1)
    saved = checkpoints.load(checkpoints.at(step))
    return {name: saved.whole(name) for name in saved.shapes}


def compare(place: Path, one: str, two: str) -> None:
    """Checkpoints of two runs agree in every tensor, optimiser state included."""
    a, b = whole(place / one), whole(place / two)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-4, rtol=1e-3, msg=name)


def assert_equal_runs(one: Records, other: Records) -> None:
    assert len(one) == len(other)
    for key in ("loss", "grad_norm"):
        assert [r[key] for r in one] == pytest.approx([r[key] for r in other], abs=CLOSE)
    for a, b in zip(one, other, strict=True):
        assert a["losses"] == pytest.approx(b["losses"], abs=CLOSE)
        assert a["grad_norms"] == pytest.approx(b["grad_norms"], abs=1e-4, rel=1e-4)


@pytest.fixture(scope="module")
def alone(place: Path) -> Records:
    """Plain PyTorch in one process."""
    return tiny_run(place / "shards", place / "alone", **MIXED)[1]


@pytest.fixture(scope="module")
def both(place: Path) -> dict[str, Records]:
    """Two processes under every ZeRO stage, and under two of them with the optimiser elsewhere."""
    runs = {f"both{zero}": MIXED | {"deepspeed": {"zero": zero}} for zero in range(4)}
    offload = {"optimizer": "cpu"}
    runs["offload2"] = MIXED | {"deepspeed": {"zero": 2, "offload": offload}}
    offload = {"optimizer": "cpu", "parameters": "cpu"}
    runs["offload3"] = MIXED | {"deepspeed": {"zero": 3, "offload": offload}}
    runs["frozen3"] = MIXED | {
        "deepspeed": {"zero": 3},
        "data": {"augment": False},
        "stage": {"trainable": ["projector.*", "llm.*"], "frozen": "features"},
        "compute": {"recompute": ["llm", "projector"]},
    }
    runs |= {
        f"brief{zero}": MIXED | {"dtype": "bfloat16", "deepspeed": {"zero": zero}}
        for zero in (1, 3)
    }
    runs["packed2"] = PACKED | {"deepspeed": {"zero": 2}}
    runs |= {f"update{z}": UPDATE | {"deepspeed": {"zero": z}} for z in (0, 2)}
    two_processes(place, runs)
    return {name: read_metrics(place / name / "metrics.jsonl") for name in runs}


@pytest.mark.parametrize("name", ["update0", "update2"])
def test_two_processes_of_four_samples_make_the_update_of_one_of_eight(place, both, name):
    """To 1e-6, gradients (Adam's means) and parameters alike."""
    batch = {"per_device": 8, "same_modality": 1}
    tiny_run(place / "shards", place / f"one-{name}", **UPDATE | {"batch": batch})
    one, two = whole(place / f"one-{name}", 2), whole(place / name, 2)
    assert one.keys() == two.keys()
    assert max(one[n].abs().max() for n in one if n.startswith("exp_avg/")) > 1e-3
    for key in one:
        torch.testing.assert_close(two[key], one[key], atol=1e-6, rtol=1e-5, msg=key)


@pytest.mark.parametrize("name", ["both0", "both1", "both2", "both3", "offload2", "offload3"])
def test_two_processes_equal_one(place, alone, both, name):
    assert_equal_runs(both[name], alone)
    compare(place, "alone", name)


def test_zero_3_in_bfloat16_is_zero_1(both):
    """Weights that are gathered for each block are those that stay."""
    one, three = both["brief1"], both["brief3"]
    assert [r["loss"] for r in three] == pytest.approx([r["loss"] for r in one], rel=2e-3)
    assert [r["grad_norm"] for r in three] == pytest.approx([r["grad_norm"] for r in one], rel=2e-2)


def test_two_processes_measure_and_pack_as_one(place, both):
    _, want = tiny_run(place / "shards", place / "packed", **PACKED)
    assert_equal_runs(both["packed2"], want)
    compare(place, "packed", "packed2")


@pytest.mark.slow
@pytest.mark.timeout(2 * TIMEOUT_S)
def test_thirty_steps_under_every_stage(place, tmp_path):
    """One and two processes, ZeRO 0 to 3, modalities mixed: within 2e-5 of plain PyTorch."""
    sections = MIXED | {"length": {"steps": MANY_STEPS}}
    _, want = tiny_run(place / "shards", tmp_path / "alone", **sections)
    runs = {f"many{zero}": sections | {"deepspeed": {"zero": zero}} for zero in range(4)}
    two_processes(place, runs)
    for name in runs:
        assert_equal_runs(read_metrics(place / name / "metrics.jsonl"), want)
    for zero in range(4):
        config = tiny_config(
            *(place / "shards", tmp_path / f"one{zero}"), **sections, deepspeed={"zero": zero}
        )
        run_training(config, model=tiny_model("image", "imu"))
        assert_equal_runs(read_metrics(tmp_path / f"one{zero}" / "metrics.jsonl"), want)


def test_zero_3_with_stored_features_and_recomputation(place, both, tmp_path):
    sections = MIXED | {
        "data": {"augment": False},
        "stage": {"trainable": ["projector.*", "llm.*"], "frozen": "features"},
    }
    _, records = tiny_run(place / "shards", tmp_path / "plain", **sections)
    assert_equal_runs(both["frozen3"], records)


@pytest.mark.parametrize("name", ["both1", "both3"])
def test_two_processes_resume_as_one(place, alone, both, name):
    """A run of two processes, cut off after step 4, goes on in one: same samples and losses."""
    out = place / f"elastic-{name}"
    shutil.copytree(place / name / "checkpoints", out / "checkpoints")
    shutil.rmtree(out / "checkpoints" / f"step-{STEPS:06d}")
    batch = {"per_device": 4, "same_modality": 1}
    _, rest = tiny_run(place / "shards", out, **MIXED | {"batch": batch})
    assert [r["step"] for r in rest] == [5, 6]
    assert_equal_runs(rest, alone[4:])
    compare(place, "alone", out.name)


@pytest.mark.parametrize("name", ["both1", "both3"])
def test_a_checkpoint_becomes_one_model_that_answers_the_same(place, both, name):
    """From the training itself, and from its checkpoint, without DeepSpeed."""
    assert (
        len(list((place / name / "checkpoints" / f"step-{STEPS:06d}").glob("*.safetensors"))) == 2
    )
    taken = export_run(place / name, place / f"exported-{name}")
    assert taken.step == STEPS
    written = OneLLM.from_pretrained(place / name)
    exported = OneLLM.from_pretrained(place / f"exported-{name}")
    one, other = written.state_dict(), exported.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[n], other[n]) for n in one)
    plain = OneLLM.from_pretrained(place / "alone") if (place / "alone").is_dir() else written
    x = [("imu", signals(exported, "imu", 1)[0])]
    assert exported.generate("What is this?", x) == plain.generate("What is this?", x)
    assert [entry["stage"] for entry in exported.history] == ["test"]


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_one_process_under_deepspeed_equals_plain_and_resumes(place, alone, zero):
    def run(steps: int) -> Records:
        config = tiny_config(
            *(place / "shards", place / f"cut{zero}"),
            **MIXED | {"length": {"steps": steps}, "deepspeed": {"zero": zero}},
        )
        run_training(config, model=tiny_model("image", "imu"))
        return read_metrics(place / f"cut{zero}" / "metrics.jsonl")

    run(3)
    assert_equal_runs(run(STEPS), alone)


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_bfloat16_keeps_float32_masters_and_rotary_frequencies(place, zero):
    config = tiny_config(
        *(place / "shards", place / f"bf16-{zero}"), dtype="bfloat16", deepspeed={"zero": zero}
    )
    model = tiny_model("image", "imu")
    run_training(config, model=model)
    tensors = whole(place / f"bf16-{zero}", 6)
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    master = tensors["parameter/projector.experts.0.wq"]
    assert not torch.equal(master, master.bfloat16().float())
    assert {b.dtype for n, b in model.named_buffers() if "inv_freq" in n} == {torch.float32}


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_fp16_supported(), reason="this CPU has no float16 arithmetic"
)
def test_float16_remembers_its_loss_scale(place):
    """The scale falls until nothing overflows; a run that goes on does not begin at the top."""
    sections = MIXED | {
        "dtype": "float16",
        "deepspeed": {"zero": 1, "raw": {"fp16": {"initial_scale_power": 40, "hysteresis": 1}}},
    }

    def run(steps: int) -> Records:
        config = tiny_config(
            place / "shards", place / "fp16", **sections | {"length": {"steps": steps}}
        )
        run_training(config, model=tiny_model("image", "imu"))
        return read_metrics(place / "fp16" / "metrics.jsonl")

    first = run(30)
    skipped = first[-1]["skipped"]
    assert 5 < skipped < 30
    checkpoints = Checkpoints(place / "fp16", keep=1)
    facts = checkpoints.load(checkpoints.newest()).facts
    assert facts["updates"] == 30 - skipped
    assert facts["loss_scale"]["cur_scale"] == 2.0 ** (40 - skipped)
    assert run(33)[-1]["skipped"] == skipped
