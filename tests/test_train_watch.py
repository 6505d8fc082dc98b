"""What a run tells of itself: rates, guards, sinks, provenance, curves."""

from __future__ import annotations

import importlib.machinery
import json
import math
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_model
from tiny_runs import tiny_config, tiny_run, write_shards

from onellm.errors import BadInput, MissingExtra, TrainingError
from onellm.train import loop
from onellm.train.curves import panels, read_runs
from onellm.train.engine import Place, PlainEngine
from onellm.train.flops import Costs, encoder_flops, projector_flops
from onellm.train.launch import prepare
from onellm.train.meter import Meter, Tally
from onellm.train.metrics import MetricsLog, Progress, flat, line, note, read_metrics
from onellm.train.plot import plot_runs, short, ticks
from onellm.train.provenance import fingerprints
from onellm.train.sinks import TensorBoard
from onellm.train.telling import Lines
from onellm.train.trainables import select


@pytest.fixture(scope="module")
def shards(tmp_path_factory: Any) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: Any) -> Path:
    out = tmp_path_factory.mktemp("run") / "mine"
    tiny_run(shards, out, log={"peak_tflops": 0.1}, router_every=2)
    return out


def test_every_step_tells_how_fast_it_was(run):
    for record in read_metrics(run / "metrics.jsonl"):
        assert record["samples_per_second"] > 0
        assert record["tokens_per_second"] > 0
        assert 0 <= record["padding"] < 1
        assert 0 < record["mfu"] <= record["hfu"]
        assert 0 <= record["data_wait"] <= 1
        assert record["memory_gb"] > 0.05
        assert record["seconds_left"] >= 0
        parts = record["grad_norms"]
        assert set(parts) == {"projector", "tags", "tokenizers", "positions"}
        whole = math.sqrt(sum(norm**2 for norm in parts.values()))
        assert whole == pytest.approx(record["grad_norm"], rel=1e-3)
    assert record["seconds_left"] == 0


def test_a_line_for_logs(run):
    record = read_metrics(run / "metrics.jsonl")[-1]
    told = line(Progress("test", "train", 6, 6, record))
    words = ("test 6/6", "loss", "imu", "lr", "norm", "samples/s", "tokens/s", "padding", "MFU")
    for word in (*words, "HFU", "data wait", "memory", "GB", "left"):
        assert word in told
    assert "\n" not in told
    assert line(Progress("test", "frozen", 1, 2)) == "test frozen 1/2"
    assert line(note("test", "begins")) == "test: begins"


def test_lines_of_what_is_computed_once_come_now_and_then():
    written: list[str] = []
    now = 0.0
    lines = Lines(written.append, clock=lambda: now)
    for done in range(0, 100, 10):
        now += 1.0
        lines(Progress("test", "frozen", done, 90))
    assert written == ["test frozen 0/90", "test frozen 50/90", "test frozen 90/90"]


def test_where_a_run_came_from(run, shards):
    facts = json.loads((run / "provenance.json").read_text())
    (start,) = facts["starts"]
    assert torch.__version__.startswith(start["versions"]["torch"])
    assert {Path(p).name for p in start["data"]} == {"image-train.tar", "imu-train.tar"}
    tar = shards / "imu-train.tar"
    assert start["data"][str(tar)]["bytes"] == tar.stat().st_size
    assert "commit" in start
    before = fingerprints([tar])
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    copy = run / "imu-train.tar"
    copy.write_bytes(data)
    assert fingerprints([copy])[str(copy)]["sample"] != before[str(tar)]["sample"]


def test_rates():
    meter = Meter(samples=8, world=2, peak=50.0, device=torch.device("cpu"))
    tally = Tally(positions=90, room=100, flops=200, hardware_flops=300, stop=0)
    rates = meter.rates(tally, seconds=4.0, waited=1.0, left=10)
    assert rates["samples_per_second"] == 2
    assert rates["tokens_per_second"] == 22.5
    assert rates["padding"] == pytest.approx(0.1)
    assert (rates["mfu"], rates["hfu"]) == (0.5, 0.75)
    assert (rates["data_wait"], rates["seconds_left"]) == (0.25, 40)
    assert Tally.of(tally.as_tensor()) == tally


def test_operations_at_the_published_sizes():
    """One image: 0.16 and 0.19 TFLOP forward (spec: what OneLLM costs), with the trimmed block."""
    from onellm.encoder import EncoderConfig
    from onellm.llm import build_llama
    from onellm.model import OneLLM, OneLLMConfig
    from onellm.projection.upm import UPMConfig
    from onellm.slots import empty_parameters

    with empty_parameters():
        llm = build_llama(vocab=32000, width=4096, layers=32, heads=32, hidden=11008)
        config = OneLLMConfig(
            encoder=EncoderConfig(), projector=UPMConfig(), modalities={"image": {}}
        )
        model = OneLLM(config, llm)
    assert encoder_flops(model, "image") / 1e12 == pytest.approx(0.16, abs=0.005)
    full = 287 * 8 * (8 * 1024**2 + 6 * 1024 * 2816 + 4 * 287 * 1024) * 3
    assert projector_flops(model, "image", 3) / full == pytest.approx(0.91, abs=0.01)
    stage = {"name": "a", "modalities": ["image"], "trainable": ["projector.*", "tags.*"]}
    run = tiny_config(Path("."), Path("."), stage=stage)
    select(model, run.stage.trainable, ["image"])
    # 128 positions in the LLM: 1.70 forward, as much again for gradients through it.
    work = Costs(model, run).batch({"image": 1}, [128], 96)
    assert work.model / 1e12 == pytest.approx(4.1, abs=0.1)
    recomputed = run.model_copy(
        update={"compute": run.compute.model_copy(update={"recompute": ("llm",)})}
    )
    again = Costs(model, recomputed).batch({"image": 1}, [128], 96)
    assert (again.hardware - again.model) / 1e12 == pytest.approx(1.70, abs=0.05)


# -- guard --------------------------------------------------------------------------------------


class Spoiled(PlainEngine):
    """The gradient of some steps is no number."""

    bad: tuple[int, ...] = ()

    def step(self, lr: float) -> Any:
        if self.steps in self.bad:
            next(iter(self.trained.values())).grad.fill_(float("nan"))
        return super().step(lr)


def spoil(monkeypatch: Any, *steps: int) -> None:
    from onellm.train import launch

    def build(objective: Any, config: Any, place: Any) -> Spoiled:
        engine = Spoiled(objective, config, torch.device("cpu"))
        engine.bad = steps
        return engine

    monkeypatch.setattr(launch, "build_engine", build)


def test_single_bad_updates_are_left_out_counted_and_remembered(shards, tmp_path, monkeypatch):
    spoil(monkeypatch, 1, 2, 4)
    sections: dict[str, Any] = {"optim": {"max_skipped": 2, "schedule": "constant"}}
    whole, records = tiny_run(shards, tmp_path / "whole", **sections)
    assert [r.get("skipped", 0) for r in records] == [0, 1, 2, 2, 3, 3]
    assert records[1]["grad_norm"] is None  # JSON has no word for it
    assert all(torch.isfinite(t).all() for t in whole.state_dict().values())
    # The count and Adam's own go on where they were.
    tiny_run(shards, tmp_path / "cut", **sections, length={"steps": 4})
    resumed, again = tiny_run(shards, tmp_path / "cut", **sections)
    assert again[-1]["skipped"] == 3
    one, other = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(one[n], other[n]) for n in one)


def test_too_many_in_a_row_stop_the_run(shards, tmp_path, monkeypatch):
    spoil(monkeypatch, 1, 2, 3)
    with pytest.raises(TrainingError, match=r"step 4: .* 3 update\(s\) in a row"):
        tiny_run(shards, tmp_path, optim={"max_skipped": 2})


@pytest.mark.parametrize(("ahead", "workers"), [(0, 0), (3, 0), (2, 1)])
def test_counts_of_broken_samples_survive(tmp_path, ahead, workers):
    import tarfile

    from tiny_runs import write_tar

    folder = write_shards(tmp_path / "broken")
    with tarfile.open(folder / "image-train.tar") as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]
    members[0] = (members[0][0], members[0][1][:60])
    write_tar(folder / "image-train.tar", members)
    data = {"faults": {"policy": "skip", "share": 0.5}, "ahead": ahead, "workers": workers}
    sections: dict[str, Any] = {"data": data}
    _, records = tiny_run(folder, tmp_path / "whole", **sections)
    tiny_run(folder, tmp_path / "cut", **sections, length={"steps": 4})
    config = tiny_config(folder, tmp_path / "cut", **sections)
    model = tiny_model("image", "imu")
    started, _ = prepare(config, model, Place())
    assert started.loader.faults.by_modality["image"] == records[3]["faults"]["image"] >= 1
    assert list(started.loader.faults.by_file.values()) == [records[3]["faults"]["image"]]
    loop.train(started, 4)
    assert read_metrics(tmp_path / "cut" / "metrics.jsonl")[-1]["faults"] == records[-1]["faults"]


# -- sinks --------------------------------------------------------------------------------------


def test_sinks_get_what_the_file_gets(tmp_path):
    told: list[Any] = []

    class Sink:
        def write(self, step: int, record: Any) -> None:
            told.append((step, flat(record)))

        def close(self) -> None:
            told.append("closed")

    log = MetricsLog(tmp_path / "metrics.jsonl", 0, sinks=[Sink()])
    router = {"imu": [[0.2, 0.8], [0.4, 0.6]]}
    log.write({"step": 3, "loss": 1.5, "losses": {"imu": 1.5}, "router": router})
    log.close()
    (step, numbers), closed = told
    assert (step, closed) == (3, "closed")
    assert numbers == {
        "loss": 1.5,
        "losses/imu": 1.5,
        "router/imu/0": pytest.approx(0.3),
        "router/imu/1": pytest.approx(0.7),
    }


def test_weights_and_biases_goes_on_with_the_same_run(shards, tmp_path, monkeypatch):
    seen: list[Any] = []

    class Run:
        def log(self, numbers: dict[str, float], step: int) -> None:
            seen.append((step, numbers["loss"]))

        def finish(self) -> None:
            seen.append("finished")

    wandb = types.ModuleType("wandb")
    wandb.__spec__ = importlib.machinery.ModuleSpec("wandb", None)  # others ask whether it is there
    wandb.init = lambda **told: seen.append(told) or Run()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    sections: dict[str, Any] = {"log": {"wandb": "project"}, "length": {"steps": 2}}
    _, records = tiny_run(shards, tmp_path / "run", **sections)
    assert seen[0]["project"] == "project"
    assert seen[0]["config"]["optim"]["lr"] == 2e-3
    assert seen[1:] == [(1, records[0]["loss"]), (2, records[1]["loss"]), "finished"]
    tiny_run(shards, tmp_path / "run", **{**sections, "length": {"steps": 3}})
    again = next(told for told in seen[1:] if isinstance(told, dict))
    assert again["id"] == seen[0]["id"]


def test_a_sink_that_is_not_installed_is_named(shards, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtra, match=r"onellm\[log\]"):
        tiny_run(shards, tmp_path, log={"wandb": "project"})


def test_tensorboard_writes_events(shards, tmp_path):
    pytest.importorskip("tensorboard")
    tiny_run(shards, tmp_path, log={"tensorboard": True}, length={"steps": 2})
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_tensorboard_forgets_steps_that_are_done_again(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, steps in ((0, (1, 2, 3, 4)), (2, (3, 4, 5))):
        sink = TensorBoard(tmp_path, start)
        for step in steps:
            sink.write(step, {"step": step, "loss": float(step + 10 * start)})
        sink.close()
    told = EventAccumulator(str(tmp_path))
    told.Reload()
    found = [(e.step, e.value) for e in told.Scalars("loss")]
    assert found == [(1, 1.0), (2, 2.0), (3, 23.0), (4, 24.0), (5, 25.0)]


def test_the_real_weights_and_biases_takes_a_run(shards, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    tiny_run(shards, tmp_path, log={"wandb": "onellm"}, length={"steps": 2})
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


# -- curves -------------------------------------------------------------------------------------


def test_panels_of_one_run(run):
    made = {panel.title: panel for panel in panels(read_runs([run]))}
    mean = "router: imu, mean weight"
    assert {"loss", "loss by modality", "learning rate", "samples / s", mean} <= set(made)
    assert {c.name for c in made["loss by modality"].curves} == {"image", "imu"}
    router = made[mean].curves
    assert [c.name for c in router] == ["expert 1", "expert 2", "expert 3"]
    assert [x for x, _ in router[0].points] == [2, 4, 6]
    assert sum(c.points[-1][1] for c in router) == pytest.approx(1, abs=1e-3)


def test_several_runs_overlay(run, shards, tmp_path):
    tiny_run(shards, tmp_path / "other", seed=1)
    made = {panel.title: panel for panel in panels(read_runs([run, tmp_path / "other"]))}
    assert [c.name for c in made["loss: imu"].curves] == ["mine", "other"]
    assert "expert 2, other" in {c.name for c in made["router: image, mean weight"].curves}
    files = plot_runs([run, tmp_path / "other"], tmp_path / "plots")
    assert [f.name for f in files] == ["training.png", "training.html"]
    assert files[0].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    html = files[1].read_text()
    assert html.count("<figure>") == len(made)
    assert "src=" not in html  # nothing is fetched
    assert "href=" not in html
    assert "<script" not in html


def test_a_folder_of_runs_is_all_of_them(run, shards, tmp_path):
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        shutil.copy(run / "metrics.jsonl", tmp_path / name)
    (tmp_path / "notes").mkdir()
    assert list(read_runs([tmp_path])) == ["a", "b"]
    assert list(read_runs([tmp_path / "b"])) == ["b"]


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(BadInput, match=r"There is no .*gone"):
        plot_runs([tmp_path / "gone"], tmp_path)
    with pytest.raises(BadInput, match=r"metrics\.jsonl: expected metrics of a training run"):
        plot_runs([tmp_path], tmp_path)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.003, 0.0041), (-5, 12000), (1, 6), (3, 3), (0.1, 0.30001)]
)
def test_ticks_are_few_and_inside(low, high):
    found = ticks(low, high)
    assert 1 <= len(found) <= 8
    assert all(low - 1e-9 <= t <= high + 1e-9 for t in found)
    assert len({short(t) for t in found}) == len(found)
    assert max(len(short(t)) for t in found) <= 7  # there is no room for more
    assert short(1500.0) == "1500"
