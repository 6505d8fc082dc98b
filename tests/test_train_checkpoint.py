"""Checkpoints: whole or not there, verified, the newest kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny import tiny_model
from tiny_runs import tiny_config

from onellm.errors import CheckpointError
from onellm.train import checkpoint as module
from onellm.train.checkpoint import Checkpoints, check_same_run
from onellm.train.engine import PlainEngine, TrainState
from onellm.train.objectives import LanguageModelling
from onellm.train.trainables import select

CONFIG = tiny_config(Path("shards"), Path("out"))


def state(step: int) -> TrainState:
    return TrainState({"parameter/x": torch.full((3,), float(step))}, step)


def test_save_and_load(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.newest() is None
    folder = checkpoints.save(state(7), CONFIG)
    assert folder.name == "step-000007"
    newest = checkpoints.newest()
    assert (newest.step, newest.stage) == (7, "test")
    assert torch.equal(checkpoints.load(newest).tensors["parameter/x"], torch.full((3,), 7.0))
    assert (tmp_path / "checkpoints" / "latest").read_text().strip() == "step-000007"
    assert json.loads((folder / "state.json").read_text())["samples"] == 7 * 8


def test_the_newest_by_recorded_step_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (999_998, 999_999, 1_000_000, 1_000_001):  # names no longer sort
        checkpoints.save(state(step), CONFIG)
    kept = {p.name for p in (tmp_path / "checkpoints").glob("step-*")}
    assert kept == {"step-1000000", "step-1000001"}
    assert checkpoints.newest().step == 1_000_001


@pytest.mark.parametrize("moment", ["save_file", "fsync", "rename"])
def test_a_crash_while_saving_leaves_the_last_good_one(tmp_path, monkeypatch, moment):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(state(1), CONFIG)

    def crash(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if moment == "save_file":
            patch.setattr("safetensors.torch.save_file", crash)
        elif moment == "fsync":
            patch.setattr(module, "_sync", crash)
        else:
            patch.setattr(Path, "rename", crash)
        with pytest.raises(CheckpointError, match="No space left"):
            checkpoints.save(state(2), CONFIG)
    assert checkpoints.load(checkpoints.newest()).step == 1
    checkpoints.save(state(2), CONFIG)
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"step-000002", "latest"}


def test_damage_is_noticed(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    file = checkpoints.save(state(1), CONFIG) / "state.safetensors"
    whole, newest = file.read_bytes(), checkpoints.newest()
    for data, message in (
        (whole[:-4], "bytes; found"),
        (whole[:-4] + b"ABCD", "checksum"),
    ):
        file.write_bytes(data)
        with pytest.raises(CheckpointError, match=message) as error:
            checkpoints.load(newest)
        assert "state.safetensors" in str(error.value)
    file.unlink()
    with pytest.raises(CheckpointError, match="found none"):
        checkpoints.load(newest)
    (file.parent / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"state\.json"):
        checkpoints.newest()


def test_a_newer_format_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    file = checkpoints.save(state(1), CONFIG) / "state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format_version": 99}))
    with pytest.raises(CheckpointError, match="format 99 is newer"):
        checkpoints.newest()


def test_what_may_change_between_a_run_and_its_continuation(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    checkpoints.save(state(1), CONFIG)
    newest = checkpoints.newest()
    check_same_run(newest, CONFIG)
    elsewhere = tiny_config(
        Path("shards"),
        Path("elsewhere"),
        length={"steps": 99},
        deepspeed={"zero": 2},
        batch={"per_device": 2},
        data={"faults": {"policy": "skip", "share": 0.1}},
    )
    check_same_run(newest, elsewhere)
    with pytest.raises(CheckpointError, match=r"optim\.lr \(0\.002 then, 0\.5 now\)"):
        check_same_run(newest, tiny_config(Path("shards"), Path("out"), optim={"lr": 0.5}))


def test_a_state_of_other_parameters_is_refused():
    model = tiny_model("imu")
    select(model, ["tags.*"], ["imu"])
    engine = PlainEngine(LanguageModelling(model), CONFIG, torch.device("cpu"))
    with pytest.raises(
        CheckpointError, match=r"missing .*tags\.start\.imu.*unexpected parameter/x"
    ):
        engine.load(state(1))
    tensors = {
        f"{kind}/tags.{side}.imu": torch.zeros(5)
        for kind in ("parameter", "exp_avg", "exp_avg_sq")
        for side in ("start", "end")
    }
    with pytest.raises(CheckpointError, match=r"expected \(32,\), found \(5,\)"):
        engine.load(TrainState(tensors, 1))
