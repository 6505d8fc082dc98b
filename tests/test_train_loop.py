"""Whole runs in one process: learning, resuming, accumulating, skipping, copying, storing."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_model
from tiny_runs import tiny_config, tiny_run, write_shards, write_tar

from onellm.errors import BadInput, CheckpointError, ConfigError, TrainingError
from onellm.model import OneLLM
from onellm.train import launch, loop
from onellm.train.engine import Place, PlainEngine, build_engine
from onellm.train.launch import main, prepare, run_training
from onellm.train.metrics import Progress, read_metrics
from onellm.train.objectives import LanguageModelling


@pytest.fixture(scope="module")
def shards(tmp_path_factory: Any) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


def state_of(model: OneLLM) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def losses_of(records: list[dict[str, Any]]) -> list[float]:
    return [record["loss"] for record in records]


def test_a_few_samples_are_learned(shards, tmp_path):
    _, records = tiny_run(
        shards,
        tmp_path,
        data={"augment": False, "keep_megabytes": 10, "targets": {"label": 1}},
        stage={"trainable": ["llm.*", "projector.*", "tags.*"]},
        optim={"lr": 1e-2},
        length={"steps": 80},
        checkpoint={"every": 0},
    )
    assert records[0]["loss"] > 5
    assert records[-1]["loss"] < 0.2


def test_what_a_run_leaves_behind(shards, tmp_path):
    seen: list[Progress] = []
    model = tiny_model("image", "imu")
    out = run_training(tiny_config(shards, tmp_path), seen.append, model)
    assert out == tmp_path
    assert_same(state_of(OneLLM.from_pretrained(out)), state_of(model))
    assert json.loads((out / "train.json").read_text())["optim"]["lr"] == 2e-3
    records = read_metrics(out / "metrics.jsonl")
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5, 6]
    want = {"loss", "losses", "lr", "grad_norm", "samples_per_second", "data_wait"}
    assert all(want <= set(r) for r in records)
    assert set(records[0]["losses"]) <= {"image", "imu"}
    assert [r["step"] for r in records if "router" in r] == [3, 6]
    table = torch.tensor(records[2]["router"]["imu"])
    assert table.shape == (4, 3)
    torch.testing.assert_close(table.sum(1), torch.ones(4), atol=1e-4, rtol=0)
    told = [p for p in seen if p.phase == "train"]
    assert [p.done for p in told] == [1, 2, 3, 4, 5, 6]
    assert told[0].total == 6
    (opening,) = (p.text for p in seen if p.phase == "note")
    assert opening.startswith("6 steps of 8 samples out of image 8, imu 6; trains ")
    assert f"(tokenizers, positions, projector, tags) on cpu, into {out}" in opening
    folders = sorted(p.name for p in (out / "checkpoints").iterdir())
    assert folders == ["latest", "step-000004", "step-000006"]


def test_only_the_selected_parameters_move(shards, tmp_path):
    before = state_of(tiny_model("image", "imu"))
    model, _ = tiny_run(shards, tmp_path, stage={"trainable": ["projector.proj_out.*", "tags.*"]})
    moved = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert moved
    assert all(name.startswith(("projector.proj_out.", "tags.")) for name in moved)


def test_a_run_is_reproducible_and_the_seed_matters(shards, tmp_path):
    one, _ = tiny_run(shards, tmp_path / "a")
    two, _ = tiny_run(shards, tmp_path / "b", data={"ahead": 0})
    assert_same(state_of(one), state_of(two))
    other, _ = tiny_run(shards, tmp_path / "c", seed=1)
    assert not torch.equal(one.tags["start"]["imu"], other.tags["start"]["imu"])


@pytest.mark.parametrize("objective", ["lm", "contrastive"])
def test_resume_is_bit_identical(shards, tmp_path, monkeypatch, objective):
    stage = {"objective": objective, "trainable": ["projector.*", "tokenizers.*"]}
    sections: dict[str, Any] = {"stage": stage, "checkpoint": {"every": 2, "keep": 9}}
    whole, records = tiny_run(shards, tmp_path / "whole", **sections)

    report, calls = loop._report, []

    def die(run: Any, step: int, record: Any) -> None:
        report(run, step, record)
        calls.append(step)
        if len(calls) == 4:  # step 4 is done and logged, but its checkpoint is not written
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_report", die)
    with pytest.raises(KeyboardInterrupt):
        tiny_run(shards, tmp_path / "cut", **sections)
    assert len(read_metrics(tmp_path / "cut" / "metrics.jsonl")) == 4
    resumed, again = tiny_run(shards, tmp_path / "cut", **sections)
    assert calls[4:] == [2, 3, 4, 5]  # from the checkpoint of step 2 on
    assert losses_of(again) == losses_of(records)
    assert_same(state_of(resumed), state_of(whole))


def test_a_run_that_diverges_stops_without_a_checkpoint_of_it(shards, tmp_path):
    optim = {"lr": 1e30, "grad_clip": 1e30, "schedule": "constant", "warmup_steps": 0}
    with pytest.raises(TrainingError, match=r"stage test, step 2: the loss is nan"):
        tiny_run(shards, tmp_path, optim=optim)
    assert not (tmp_path / "checkpoints").exists()
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [1]


@pytest.mark.parametrize("trained", ["projector", "llm"])
def test_frozen_parts_do_not_drop_out(shards, tmp_path, trained):
    model = tiny_model("image", "imu")
    prepare(tiny_config(shards, tmp_path, stage={"trainable": [f"{trained}.*"]}), model, Place())
    parts = ("encoder", "projector", "llm")
    assert [name for name in parts if getattr(model, name).training] == [trained]


class Beside(PlainEngine):
    """One of two processes, the other of which sees no checkpoint."""

    world = 2

    def share(self, value: Any) -> list[Any]:
        return [value, 0 if isinstance(value, int) else value]


def test_processes_that_see_different_checkpoints_do_not_begin(shards, tmp_path, monkeypatch):
    tiny_run(shards, tmp_path)
    monkeypatch.setattr(
        launch, "build_engine", lambda o, c, place: Beside(o, c, torch.device("cpu"))
    )
    with pytest.raises(CheckpointError, match="step 6, process 1 one of step 0"):
        prepare(tiny_config(shards, tmp_path), tiny_model("image", "imu"), Place())


def test_an_out_folder_that_cannot_be_written_is_named(shards, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file/out: cannot be written"):
        tiny_run(shards, tmp_path / "file" / "out")


def test_a_finished_run_does_nothing_more_and_says_so(shards, tmp_path):
    model, records = tiny_run(shards, tmp_path)
    seen: list[Progress] = []
    again = tiny_model("image", "imu")
    run_training(tiny_config(shards, tmp_path), seen.append, again)
    assert_same(state_of(again), state_of(model))
    assert read_metrics(tmp_path / "metrics.jsonl") == records
    assert {p.phase for p in seen} == {"note"}
    assert "has finished before: 6 of 6 steps are done" in seen[-1].text
    assert "raise length.steps" in seen[-1].text


def test_a_run_that_goes_on_says_from_where(shards, tmp_path):
    tiny_run(shards, tmp_path, length={"steps": 4})
    seen: list[Progress] = []
    run_training(tiny_config(shards, tmp_path), seen.append, tiny_model("image", "imu"))
    notes = [p.text for p in seen if p.phase == "note"]
    assert notes[-1] == "goes on behind step 4 of 6, where it was saved last"
    assert [p.done for p in seen if p.phase == "train"] == [5, 6]


def test_accumulation_does_not_change_the_update(shards, tmp_path):
    one, a = tiny_run(shards, tmp_path / "a", batch={"size": 8, "per_device": 8})
    two, b = tiny_run(shards, tmp_path / "b", batch={"size": 8, "per_device": 2})
    assert losses_of(a) == pytest.approx(losses_of(b), abs=1e-5)
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(tensor, two.state_dict()[name], atol=2e-5, rtol=1e-4)


def test_resume_may_change_the_number_of_passes(shards, tmp_path):
    sections: dict[str, Any] = {"length": {"steps": 3}}
    tiny_run(shards, tmp_path, **sections)
    _, records = tiny_run(shards, tmp_path, length={"steps": 6}, batch={"size": 8, "per_device": 2})
    assert len(records) == 6


def test_resume_refuses_another_run(shards, tmp_path):
    tiny_run(shards, tmp_path)
    with pytest.raises(CheckpointError, match=r"seed \(0 then, 1 now\)"):
        tiny_run(shards, tmp_path, seed=1)
    with pytest.raises(ConfigError, match=r"resume is false"):
        tiny_run(shards, tmp_path, checkpoint={"resume": False})
    with pytest.raises(CheckpointError, match=r"stage\.trainable"):
        tiny_run(shards, tmp_path, stage={"trainable": ["tags.*"]})


@pytest.fixture
def broken_shards(tmp_path: Path) -> Path:
    folder = write_shards(tmp_path / "broken")
    with tarfile.open(folder / "image-train.tar") as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]
    members[0] = (members[0][0], members[0][1][:60])
    write_tar(folder / "image-train.tar", members)
    return folder


def test_a_broken_sample_stops_the_run(broken_shards, tmp_path):
    with pytest.raises(BadInput, match=r"image00\.png"):
        tiny_run(broken_shards, tmp_path / "out")


def test_a_broken_sample_is_skipped_and_counted(broken_shards, tmp_path):
    faults = {"policy": "skip", "share": 0.2}
    _, records = tiny_run(broken_shards, tmp_path / "out", data={"faults": faults})
    assert records[-1]["faults"]["image"] >= 1
    with pytest.raises(BadInput, match=r"at most 0\.0% broken"):
        tiny_run(
            broken_shards,
            tmp_path / "strict",
            data={"faults": {"policy": "skip", "share": 0.0}},
        )


@pytest.mark.parametrize("level", ["features", "soft"])
def test_frozen_outputs_change_nothing_but_time(shards, tmp_path, level):
    trained = ["llm.*"] if level == "soft" else ["projector.*", "tags.*"]
    stage, data = {"trainable": trained}, {"augment": False}
    plain, a = tiny_run(shards, tmp_path / "a", stage=stage, data=data)
    kept, b = tiny_run(shards, tmp_path / "b", stage=stage | {"frozen": level}, data=data)
    assert losses_of(a) == pytest.approx(losses_of(b), abs=1e-4)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(tensor, kept.state_dict()[name], atol=2e-3, rtol=1e-2)


def test_frozen_outputs_skip_broken_samples_and_report_progress(broken_shards, tmp_path):
    config = tiny_config(
        broken_shards,
        tmp_path / "out",
        data={"augment": False, "faults": {"policy": "skip", "share": 0.2}},
        stage={"trainable": ["projector.*"], "frozen": "features"},
    )
    seen: list[Progress] = []
    run_training(config, seen.append, tiny_model("image", "imu"))
    frozen = [p for p in seen if p.phase == "frozen"]
    assert (frozen[-1].done, frozen[-1].total) == (14, 14)
    assert [p.phase for p in seen][-6:] == ["train"] * 6


def test_trained_parts_cannot_be_stored(shards, tmp_path):
    with pytest.raises(ConfigError, match="every modality has trained parameters"):
        tiny_run(
            shards,
            tmp_path,
            data={"augment": False},
            stage={"trainable": ["encoder.*"], "frozen": "features"},
        )
    with pytest.raises(ConfigError, match="frozen_gigabytes"):
        tiny_run(
            shards,
            tmp_path,
            data={"augment": False},
            stage={"trainable": ["tags.*"], "frozen": "soft", "frozen_gigabytes": 1e-9},
        )


def test_the_image_path_is_copied_before_the_first_step(shards, tmp_path):
    model = tiny_model("image", "imu")
    config = tiny_config(
        shards, tmp_path, stage={"copy_path": {"source": "image", "targets": ["imu"]}}
    )
    experts = model.projector.experts[0].wq
    assert not torch.equal(experts[0], experts[1])
    prepare(config, model, Place())
    assert torch.equal(experts[0], experts[1])
    assert torch.equal(experts[0], experts[2])
    for part in (model.projector.queries, model.tags["start"], model.tags["end"]):
        assert torch.equal(part["image"], part["imu"])
    for part in (model.projector.proj_in, model.projector.proj_out, model.projector.routers):
        image, imu = part["image"].state_dict(), part["imu"].state_dict()
        assert all(torch.equal(image[k], imu[k]) for k in image)


def test_one_active_expert_trains_one_and_all_are_active_afterwards(shards, tmp_path):
    before = state_of(tiny_model("image", "imu"))
    model, _ = tiny_run(shards, tmp_path, stage={"active_experts": 1}, optim={"weight_decay": 0.0})
    name = "projector.experts.0.wq"
    after = model.state_dict()[name]
    assert not torch.equal(after[0], before[name][0])
    assert torch.equal(after[1:], before[name][1:])
    assert model.projector.active_experts == 3


def test_targets_balance_and_weights(shards, tmp_path):
    def parts(**data: Any) -> dict[str, float]:
        config = tiny_config(shards, tmp_path, data=data)
        run, _ = prepare(config, tiny_model("image", "imu"), Place())
        return {p.name: p.weight for p in run.loader.order.parts}

    assert parts(targets={"closed": 3, "yes_no": 1}) == {
        "image/closed": 0.75,
        "image/yes_no": 0.25,
        "imu/closed": 0.75,
        "imu/yes_no": 0.25,
    }
    assert parts(balance="size") == {"image/closed": 8, "imu/closed": 6}
    assert parts(weights={"imu": 2.0}) == {"image/closed": 1, "imu/closed": 2}


def test_epochs_count_examples(shards, tmp_path):
    config = tiny_config(shards, tmp_path, length={"steps": None, "epochs": 4})
    run, _ = prepare(config, tiny_model("image", "imu"), Place())
    assert run.steps == 7  # 4 x 14 examples at 8


def test_unknown_modality_offers_a_spelling(shards, tmp_path):
    with pytest.raises(ConfigError, match=r"'imgae'.*Did you mean 'image'"):
        tiny_run(shards, tmp_path, stage={"modalities": ["imgae"]})


def test_several_processes_need_deepspeed(shards, tmp_path):
    config = tiny_config(shards, tmp_path)
    with pytest.raises(ConfigError, match="2 processes need a deepspeed section"):
        build_engine(LanguageModelling(tiny_model("imu")), config, Place(world=2))


def test_bfloat16_autocast_trains(shards, tmp_path):
    _, records = tiny_run(shards, tmp_path, dtype="bfloat16")
    assert records[-1]["loss"] < records[0]["loss"] + 0.1


def test_command_line(shards, tmp_path, capsys):
    tiny_model("image", "imu").save_pretrained(tmp_path / "start")
    config = tiny_config(shards, tmp_path / "out").model_dump(mode="json")
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(config | {"model": str(tmp_path / "start")}))
    assert main([str(file), "length.steps=2"]) == 0
    assert "test 2/2  loss" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "start")
    assert main([str(file), "length.steps=2"]) == 2
    assert "error: " in capsys.readouterr().err
