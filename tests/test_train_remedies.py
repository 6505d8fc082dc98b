"""What a card can do and hold, and what to change where a run does not fit it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_model
from tiny_runs import tiny_config, write_shards
from typer.testing import CliRunner

from onellm.cli import app
from onellm.errors import ConfigError
from onellm.train import engine, flops, gpus
from onellm.train.config import TrainConfig
from onellm.train.dry_run import dry_run
from onellm.train.flops import peak_flops, product_type
from onellm.train.gpus import GPUS, Gpu, known_gpu
from onellm.train.packaged import hardware_names, read_config, read_machine
from onellm.train.remedies import remedies
from onellm.train.speed import REACHED, speed_of

CPU = torch.device("cpu")


def test_cards_are_known_by_what_their_drivers_call_them():
    for told, name in {
        "NVIDIA A100-SXM4-80GB": "A100",
        "NVIDIA A10G": "A10G",
        "NVIDIA A10": "A10",
        "NVIDIA H100 80GB HBM3": "H100",
        "NVIDIA H100 PCIe": "H100 PCIe",
        "NVIDIA GeForce RTX 4090": "RTX 4090",
    }.items():
        assert known_gpu(told) is GPUS[name]
    others = ["Radeon", "NVIDIA RTX A1000", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GB200"]
    assert [known_gpu(told) for told in others] == [None] * 4
    for gpu in GPUS.values():
        assert gpu.half > gpu.single > 1
        assert 0.9 < gpu.room / 2**30 / gpu.gibibytes < 1
    assert {read_machine(name).gpu for name in hardware_names()} <= GPUS.keys()


def test_speed_goes_by_the_type_of_matrix_products():
    def tflops(gpu: str, **settings: Any) -> float:
        return speed_of(tiny_config(Path(), Path(), **settings), gpu).tflops / REACHED

    half = {"dtype": "bfloat16", "deepspeed": {"zero": 1}}
    assert tflops("A100", **half) == pytest.approx(312)
    assert tflops("A100", dtype="float32") == pytest.approx(19.5)
    assert tflops("A100", dtype="auto") == pytest.approx(312)
    assert tflops("A100", dtype="bfloat16") == pytest.approx(312)  # autocast
    assert tflops("V100", **half) == pytest.approx(15.7)
    assert tflops("V100", dtype="float16", deepspeed={"zero": 1}) == pytest.approx(125)
    assert tflops("V100", dtype="auto") == pytest.approx(15.7)
    said = speed_of(tiny_config(Path(), Path(), dtype="float32"), "H100").source
    assert "of the H100's 67 in float32" in said
    with pytest.raises(ConfigError, match="Did you mean 'A100'"):
        speed_of(tiny_config(Path(), Path()), "A1000", tflops=5.0)


@pytest.mark.parametrize("tiles", [True, False])
def test_this_machines_best_rate_is_of_the_type_that_a_run_takes_here(monkeypatch, tiles):
    seen: list[torch.dtype] = []
    monkeypatch.setattr(engine, "bfloat16_is_faster", lambda device: tiles)
    monkeypatch.setattr(flops, "measured_flops", lambda device, dtype: seen.append(dtype) or 1e12)
    for dtype in ("float32", "auto", "bfloat16"):
        peak_flops(CPU, tiny_config(Path(), Path(), dtype=dtype))
    assert seen == [torch.float32, torch.bfloat16 if tiles else torch.float32, torch.bfloat16]


def test_a_gpu_that_only_emulates_bfloat16_is_not_faster_at_it(monkeypatch):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation
    )
    assert not engine.bfloat16_is_faster(torch.device("cuda"))


def test_matrix_products_under_deepspeed_are_in_the_type_of_the_weights():
    config = tiny_config(Path(), Path(), dtype="bfloat16", deepspeed={"zero": 1})
    assert product_type(config, CPU) == torch.bfloat16


# -- remedies -----------------------------------------------------------------------------------


def bytes_of(config: TrainConfig) -> float:
    """A stand-in: activations by samples, a third kept with recomputation, and the optimiser."""
    per_device, _ = config.batch.split(8)
    activations = per_device * 4.0 / (1 + len(config.compute.recompute))
    zero = config.deepspeed.zero if config.deepspeed else 0
    offloaded = config.deepspeed and config.deepspeed.offload.optimizer == "cpu"
    return 10.0 / (8 if zero == 3 else 1) + (0 if offloaded else 4) + activations


def test_the_weakest_change_that_is_enough_is_named_the_cheapest_first():
    config = read_config("align_video_audio_point", [], "8x80gb")  # 45 a pass, 104 bytes
    assert bytes_of(config) == 104
    found = remedies(config, 8, 74, bytes_of)
    # 22 does not divide 1080 by 8; recomputing one part more is enough.
    assert [one.overrides for one in found] == [
        ("batch.per_device=15",),
        ("compute.recompute=[projector, encoder]",),
    ]
    assert [one.peak for one in found] == [44, 74]
    # Little enough for one change of all alone.
    assert [r.overrides for r in remedies(config, 8, 20, bytes_of)] == [("batch.per_device=1",)]


def test_several_changes_together_where_none_is_enough():
    config = read_config("align_video_audio_point", [], "8x80gb")
    (found,) = remedies(config, 8, 3.5, bytes_of)
    assert "batch.per_device=1" in found.overrides
    assert "deepspeed.zero=3" in found.overrides
    assert "deepspeed.offload.optimizer=cpu" in found.overrides
    assert found.peak <= 3.5
    assert remedies(config, 8, 0.5, bytes_of) == []


def test_fewer_samples_to_compare_are_the_last_resort():
    config = read_config("warmup", [], "8x80gb")
    assert remedies(config, 8, 150, bytes_of)[0].overrides[0].startswith("compute.recompute")
    assert remedies(config, 8, 40, bytes_of)[0].overrides == ("batch.per_device=8",)
    assert all("batch.per_device=4" not in r.overrides for r in remedies(config, 8, 20, bytes_of))


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("remedies")
    write_shards(folder / "shards")
    tiny_model("image", "imu").save_pretrained(folder / "start")
    return folder


def config_of(place: Path, **sections: Any) -> TrainConfig:
    return tiny_config(place / "shards", place / "out", model=str(place / "start"), **sections)


def test_the_estimate_under_other_settings_is_that_of_a_dry_run_of_its_own(place):
    run = dry_run(config_of(place))
    assert run.estimate(run.config) == pytest.approx(run.peak, rel=1e-6)
    other = config_of(place, batch={"per_device": 1}, compute={"recompute": ["llm"]})
    assert run.estimate(other) == pytest.approx(dry_run(other).peak, rel=1e-6)
    assert run.estimate(other) < run.peak


def test_a_run_that_does_not_fit_is_told_with_what_would(place, monkeypatch):
    file = place / "run.yaml"
    config = config_of(place, batch={"per_device": 8})
    file.write_text(json.dumps(config.model_dump(mode="json")))
    peak = dry_run(config).peak

    def told(room: float) -> str:
        monkeypatch.setitem(gpus.GPUS, "A100", Gpu(312, 19.5, room / gpus.ROOM / 2**30))
        done = CliRunner().invoke(app, ["train", str(file), "--dry-run", "--gpu", "A100"])
        assert done.exit_code == 0, done.output
        return " ".join(done.output.split())

    assert "it fits: 0.0 of 0.0 GB that tensors can have on the A100" in told(1.01 * peak)
    said = told(0.9 * peak)
    assert "warning: 0.0 GB are more than the 0.0 GB that tensors can have on the A100" in said
    assert "It would fit with batch.per_device=4 (0.0 GB), or with 'compute.recompute=[" in said
