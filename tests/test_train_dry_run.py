"""What a run would be, hardware presets, and launchers."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_model
from tiny_runs import tiny_config, write_shards
from typer.testing import CliRunner

from onellm.cli import app
from onellm.data.shards import ShardSamples
from onellm.encoder import EncoderConfig
from onellm.errors import CheckpointError, ConfigError
from onellm.llm import build_llama
from onellm.model import OneLLM, OneLLMConfig
from onellm.projection.upm import UPMConfig
from onellm.slots import empty_parameters
from onellm.train import lm_head, memory, objectives
from onellm.train.budget import divide
from onellm.train.config import DataConfig
from onellm.train.dry_run import dry_run, empty_model, set_up
from onellm.train.engine import Place, PlainEngine
from onellm.train.launch import main, prepare, run_training
from onellm.train.memory import LiveBytes, Passes, measure_passes
from onellm.train.packaged import hardware_names, overlay, read_config, read_machine
from onellm.train.shapes import Shapes, dearest, shapes_of
from onellm.train.speed import REACHED, speed_of

LAUNCHERS = sorted((Path(__file__).parents[1] / "train" / "launchers").glob("*.sh"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("dry")
    write_shards(folder / "shards")
    tiny_model("image", "imu").save_pretrained(folder / "start")
    return folder


def config_of(place: Path, **sections: Any) -> Any:
    return tiny_config(place / "shards", place / "out", model=str(place / "start"), **sections)


def test_parameters_memory_and_first_batch(place):
    found = dry_run(config_of(place))
    model = tiny_model("image", "imu")
    assert sum(c.all for c in found.parts.values()) == sum(p.numel() for p in model.parameters())
    assert found.parts["llm"].trained == 0
    assert found.parts["projector"].trained == found.parts["projector"].all
    weights = 4 * sum(p.numel() for p in model.parameters())
    trained = sum(c.trained for c in found.parts.values())
    assert found.memory["weights"] == weights
    assert found.memory["Adam's moments"] == 8 * trained
    assert found.memory["gradients"] == 4 * trained
    assert found.memory["activations"] > 0
    assert (found.steps, found.per_device, found.passes) == (6, 4, 2)
    assert found.seconds(1e-6) == pytest.approx(6 * found.flops / 1e6)
    assert len(found.example_texts) == 4
    for text in found.example_texts:
        before, learned = text.split("[[")
        assert before.split(": ")[1].startswith(("<image>", "<imu>"))
        assert any(label in learned for label in ("chair", "table", "plant", "lamp"))
    assert not (place / "out").exists()


def test_zero_divides_and_offload_moves(place):
    def memory(zero: int, **offload: str) -> tuple[dict[str, float], dict[str, float]]:
        found = dry_run(config_of(place, deepspeed={"zero": zero, "offload": offload}), world=2)
        return found.memory, found.host

    one, two, three = (memory(zero)[0] for zero in (1, 2, 3))
    assert one["Adam's moments"] == two["Adam's moments"] == three["Adam's moments"]
    plain = dry_run(config_of(place)).memory
    assert one["Adam's moments"] == plain["Adam's moments"] / 2
    assert two["gradients"] == one["gradients"] / 2
    assert three["weights"] == one["weights"] / 2
    device, host = memory(3, optimizer="cpu", parameters="cpu")
    assert not {"weights", "Adam's moments", "float32 masters"} & device.keys()
    assert host["Adam's moments"] == three["Adam's moments"]


def test_recomputation_and_longer_batches_show(place):
    plain = dry_run(config_of(place, batch={"per_device": 8})).memory["activations"]
    less = dry_run(
        config_of(place, batch={"per_device": 8}, compute={"recompute": ["llm", "projector"]})
    )
    fewer = dry_run(config_of(place, batch={"per_device": 2})).memory["activations"]
    assert less.memory["activations"] < 0.8 * plain
    assert fewer < 0.5 * plain


def test_flash_attention_takes_no_mask(place):
    """The square of a packed row's length under SDPA, more where its scores are kept."""
    sections: dict[str, Any] = {
        "batch": {"size": 32, "per_device": 32, "arrange": "length", "pack": True},
        "stage": {"trainable": ["llm.*"]},
    }

    def activations(attention: str) -> float:
        config = config_of(place, **sections, compute={"attention": attention})
        return dry_run(config).memory["activations"]

    assert activations("eager") > activations("sdpa") > activations("flash_attention_2") > 0


REAL: dict[str, dict[str, Any]] = {
    "padded": {},
    "packed": {"batch": {"size": 8, "per_device": 8, "arrange": "length", "pack": True}},
    "two passes": {"batch": {"size": 8, "per_device": 4}},
    "recomputed": {"compute": {"recompute": ["llm", "projector"]}},
    "llm": {"stage": {"trainable": ["llm.*"]}},
    "autocast": {"dtype": "bfloat16", "stage": {"trainable": ["llm.*"]}},
}


@pytest.mark.parametrize("name", REAL)
def test_the_estimate_is_what_real_tensors_take(place, name, monkeypatch):
    """The same passes on real tensors, every one counted: within 10 %."""
    for module in (lm_head, memory, objectives):  # several chunks even here
        monkeypatch.setattr(module, "CHUNK", 16)
    sections = {"batch": {"size": 8, "per_device": 8}} | REAL[name]
    config = config_of(place, **sections)
    model = tiny_model("image", "imu")
    run, _ = prepare(config, model, Place())
    assert isinstance(run.engine, PlainEngine)
    per_device, _ = config.batch.split(1)
    passes = next(iter(run.loader.steps(0, 1, rank=0, world=1, per_device=per_device)))
    empty = empty_model(config)
    set_up(empty, config)
    shapes = [shapes_of(batch) for batch in passes]
    widest = max(shapes, key=lambda s: s.room(6, pack=config.batch.pack))
    estimated = measure_passes(empty, config, widest, len(passes))
    with LiveBytes("cpu") as live:
        live.know([*model.parameters(), *model.buffers()])
        for batch in passes:
            run.engine.forward(batch).total.backward()
    assert estimated.together == pytest.approx(live.peak, rel=0.1)


def test_rows_passes_and_devices_are_those_of_the_run(place):
    """Rows of at most so many positions: how many passes that makes, the lengths decide."""
    batch = {"per_device": 4, "arrange": "length", "pack": True}
    run, _ = prepare(config_of(place, batch=batch), tiny_model("image", "imu"), Place())
    draws = run.loader.order.global_batch(0)
    longest = max(run.loader.length(draw) for draw in draws)
    config = config_of(place, batch=batch | {"tokens": longest + 2}, deepspeed={"zero": 1})
    found = dry_run(config, world=2)
    layout = config.batch.layout(2)
    assert found.passes == max(len(run.loader.plan(step, layout)) for step in range(6)) > 1
    assert found.per_device == 4 / found.passes
    assert found.padding == 0
    padded = dry_run(config_of(place))
    assert 0 < padded.padding < 1
    assert padded.looked_at == 6
    # The first pass of the first device is shown, as it will be.
    assert len(found.example_texts) == len(run.loader.plan(0, layout)[0][0])


STORED: tuple[dict[str, Any], ...] = (
    {"stage": {"trainable": ["projector.*"], "frozen": "features"}, "data": {"augment": False}},
    {"stage": {"trainable": ["llm.*"], "frozen": "soft", "frozen_views": 2}},
)


@pytest.mark.parametrize("sections", STORED)
def test_outputs_of_frozen_parts_are_counted(place, sections):
    config = config_of(place, **sections)
    run, _ = prepare(config, tiny_model("image", "imu"), Place())
    kept = run.engine.objective.store._kept.values()
    stored = sum(t.numel() * t.element_size() for t in kept)
    assert dry_run(config).memory["outputs of frozen parts"] == stored > 0
    tight = sections | {"stage": sections["stage"] | {"frozen_gigabytes": 1e-6}}
    with pytest.raises(ConfigError, match="frozen_gigabytes allows 1e-06"):
        dry_run(config_of(place, **tight))


@pytest.mark.parametrize("sections", [{}, *STORED])
def test_media_are_read_for_the_pass_that_is_shown_alone(place, sections, monkeypatch):
    seen: list[int] = []
    read = ShardSamples._read

    def watched(self: Any, index: int, *, whole: bool) -> Any:
        seen.extend([index] * whole)
        return read(self, index, whole=whole)

    monkeypatch.setattr(ShardSamples, "_read", watched)
    found = dry_run(config_of(place, **sections))
    assert found.looked_at == 6
    assert len(seen) == len(found.example_texts) == 4


@pytest.mark.parametrize("frozen", ["none", "features"])
def test_no_more_shards_are_fetched_than_a_step_needs(place, tmp_path, frozen):
    """Twelve of four samples, which are drawn from eight at a time; a step takes three."""
    for number in range(12):
        write_shards(tmp_path / f"{number}", {"image": 4})
        (tmp_path / f"{number}/image-train.tar").rename(tmp_path / f"image-{number:02d}.tar")
    sections: dict[str, Any] = {
        "stage": {"modalities": ["image"], "trainable": ["projector.*"], "frozen": frozen},
        "data": {"augment": False},
        "batch": {"size": 3, "per_device": 3},
        "length": {"steps": 12},
    }

    def found(prefix: str) -> Any:
        path = f"{prefix}{tmp_path}/image-{{00..11}}.tar"
        one = {"path": path, "modality": "image"} | ({"shard_samples": 4} if prefix else {})
        data = {"datasets": [one], "shelf": str(tmp_path / "shelf")}
        config = config_of(place, **sections).model_copy(update={"data": DataConfig(**data)})
        return dry_run(config)

    here, far = found(""), found("file://")
    fetched = [path for path in (tmp_path / "shelf").iterdir() if not path.name.startswith(".")]
    assert 1 <= len(fetched) <= 3 + (frozen != "none")
    assert far.notes[0].startswith(f"{len(fetched)} file(s), ")
    assert f"were fetched for this into {tmp_path / 'shelf'} (data.shelf)" in far.notes[0]
    assert (here.looked_at, far.looked_at) == (12, 1)
    assert here.notes == []
    assert far.memory["weights"] == here.memory["weights"]
    assert found("file://").notes == []  # they are there


def test_several_devices_need_deepspeed_here_too(place):
    with pytest.raises(ConfigError, match="2 devices need a deepspeed section"):
        dry_run(config_of(place), world=2)


def test_the_dearest_pass_of_each_mixture():
    one, two = Shapes({"a": 1}, (3,), (1,), 1), Shapes({"a": 2}, (3, 4), (1, 1), 2)
    other, both = Shapes({"b": 1}, (3,), (1,), 1), Shapes({"a": 1, "b": 1}, (3,), (2,), 1)
    cost = [1.0, 2.0, 5.0, 3.0]
    assert dearest([one, two, other, both], cost) == [other, both, two]
    assert dearest([one, two, other, both], cost, most=1) == [other]
    assert two.positions(6) == [9, 10]
    assert (two.room(6, pack=False), two.room(6, pack=True)) == (20, 19)


def test_live_bytes_follow_what_lives():
    with LiveBytes("cpu") as live:
        a = torch.ones(1000)
        b = a[:10] + 1  # a view is no new memory
        del a
        c = torch.ones(500)
    assert live.peak == 4000 + 40
    assert live.now == 2040
    del b, c
    assert live.now == 0
    assert Passes(3, 2, 1).together == 3


def test_the_verb_tells_and_trains_nothing(place):
    config = place / "run.yaml"
    plain = config_of(place, deepspeed={"zero": 1}, log={"peak_tflops": 5.0})
    config.write_text(json.dumps(plain.model_dump(mode="json")))
    before = set(place.iterdir())
    done = CliRunner().invoke(app, ["train", str(config), "--dry-run", "--devices", "2"])
    assert done.exit_code == 0, done.output
    for words in ("projector", "memory of each of 2 device(s)", "peak", "TFLOP a step", "[["):
        assert words in done.output
    assert "at 2 TFLOP/s of each device: 40%, an assumption" in " ".join(done.output.split())
    assert set(place.iterdir()) == before


def test_a_preset_says_how_many_gpus_and_how_fast(place):
    config = place / "preset.yaml"
    config.write_text(json.dumps(config_of(place).model_dump(mode="json")))
    words = ["train", str(config), "--dry-run", "--hardware", "8x80gb", "batch.per_device=1"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert "in 1 pass(es) of 1 on each of 8 device(s)" in said
    assert "of the A100's 19.5 in float32" in said
    assert "it fits: 0.0 of 79.0 GB" in said


def test_speed():
    config = read_config("instruct")
    assert speed_of(config, "RTX 4090").tflops == pytest.approx(REACHED * 165)
    assert speed_of(config, "RTX 4090", 80.0) == speed_of(config, "", 80.0)
    assert speed_of(config).tflops > 0
    for name in hardware_names():
        assert read_machine(name).devices == int(name.partition("x")[0])


# -- hardware -----------------------------------------------------------------------------------

STAGES = (
    *("warmup", "align_image", "align_video_audio_point", "align_depth_normal_imu_fmri"),
    "instruct",
)


@pytest.mark.parametrize("objective", ["contrastive", "clip"])
def test_one_sample_has_nothing_to_be_compared_with(place, objective):
    sections = {"stage": {"objective": objective}, "batch": {"per_device": 1, "same_modality": 8}}
    with pytest.raises(ConfigError, match=f"{objective} compares the samples of a pass"):
        dry_run(config_of(place, **sections))


def test_few_samples_to_compare_are_told_of(place):
    def notes(**batch: int) -> list[str]:
        sections: dict[str, Any] = {
            "stage": {"objective": "contrastive", "trainable": ["projector.experts.*"]},
            "deepspeed": {"zero": 1},
            "batch": {"per_device": None, **batch},
        }
        return dry_run(config_of(place, **sections), world=2).notes

    assert "there are 3: raise batch.size" in notes(size=8, same_modality=8)[0]
    assert notes(size=32, same_modality=32) == []


def test_a_model_that_is_not_there(place):
    config = config_of(place).model_copy(update={"model": "models/none/here"})
    for start in (dry_run, run_training):
        with pytest.raises(CheckpointError, match=r"none\. Name the model .*: model=DIR"):
            start(config)


@pytest.mark.parametrize("name", hardware_names())
def test_each_preset_leaves_the_warm_up_something_to_compare(name):
    """On each GPU about what one has alone, and one modality at a time."""
    devices, one = read_machine(name).devices, read_config("warmup").batch
    batch = read_config("warmup", [], name).batch
    per_device, passes = batch.split(devices)
    assert per_device * passes >= one.size
    assert per_device >= one.size / 2
    assert batch.same_modality == batch.size


def test_the_warm_up_fits_the_smallest_preset():
    """At 7B, on its dearest modality; the LLM's weights lie there, though they are not run."""
    with empty_parameters():
        llm = build_llama(vocab=32000, width=4096, layers=32, heads=32, hidden=11008)
        model = OneLLM(OneLLMConfig(encoder=EncoderConfig(), projector=UPMConfig()), llm)
    config = read_config("warmup", [], "1x24gb")
    set_up(model, config)
    size = config.batch.split(1)[0]
    shapes = Shapes({"audio": size}, (8,) * size, (1,) * size, 4 * size)
    memory, _ = divide(model, config, measure_passes(model, config, shapes, 2), 1)
    assert sum(memory.values()) < 22e9


@pytest.mark.parametrize("name", hardware_names())
@pytest.mark.parametrize("stage", STAGES)
def test_each_preset_fits_each_stage(name, stage):
    config = read_config(stage, [], name)
    devices = int(name.partition("x")[0])
    per_device, passes = config.batch.split(devices)
    assert per_device * passes * devices == config.batch.size
    if config.batch.same_modality > 1:
        assert config.batch.same_modality % (per_device * devices) == 0
    assert config.optim.lr >= read_config(stage).optim.lr


def test_presets_are_laid_over_the_stage_and_under_the_overrides(tmp_path):
    assert hardware_names() == ["16x80gb", "1x24gb", "1x80gb", "8x80gb"]
    config = read_config("instruct", ["compute.llm_bits=null", "batch.per_device=2"], "1x24gb")
    assert config.deepspeed is None
    assert config.stage.lora is not None
    assert config.compute.llm_bits is None
    assert config.batch.per_device == 2
    assert config.batch.size == 512
    with pytest.raises(ConfigError, match="Did you mean '8x80gb'"):
        read_config("instruct", [], "8x80g")
    own = tmp_path / "mine.yaml"
    own.write_text("everything: {batch: {per_device: 1}}")
    with pytest.raises(ConfigError, match="expected the keys all, devices, gpu, stages"):
        read_config("instruct", [], str(own))
    assert overlay({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d": 4}) == {
        "a": {"b": 3, "c": 2},
        "d": 4,
    }


def test_launch_takes_hardware(capsys):
    assert main(["instruct", "--hardware", "nowhere"]) == 2
    assert "unknown hardware preset 'nowhere'" in capsys.readouterr().err


# -- launchers ----------------------------------------------------------------------------------


def test_there_is_a_launcher_for_each_way():
    assert [path.stem for path in LAUNCHERS] == ["hostfile", "one_node", "slurm", "torchrun"]


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda p: p.stem)
def test_launchers_are_sound_shell(path):
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0
    assert "set -euo pipefail" in path.read_text()
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: Any) -> Path:
    """Programs that write down how they were called."""
    for name in ("deepspeed", "torchrun", "srun", "scontrol", "nvidia-smi"):
        body = f'echo "{name} $*" >> {tmp_path}/calls\n'
        if name == "nvidia-smi":
            body = "printf 'GPU 0\\nGPU 1\\n'\n"
        if name == "scontrol":
            body += "echo node7\n"
        if name == "srun":
            body += f'echo "$MASTER_ADDR" >> {tmp_path}/calls; exit "${{SRUN_EXIT:-0}}"\n'
        file = tmp_path / name
        file.write_text(f"#!/bin/sh\n{body}")
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path / "calls"


def call(name: str, *words: str) -> int:
    script = next(p for p in LAUNCHERS if p.stem == name)
    return subprocess.run(["bash", script, *words], check=False, capture_output=True).returncode


def test_what_launchers_start(stand_ins, tmp_path, monkeypatch):
    words = ("instruct", "--hardware", "8x80gb", "out=a b")
    assert call("one_node", *words) == 0
    assert call("torchrun", *words) == 0
    monkeypatch.setenv("HOSTFILE", str(tmp_path / "missing"))
    assert call("hostfile", *words) == 2
    (tmp_path / "hosts").write_text("node1 slots=8\n")
    monkeypatch.setenv("HOSTFILE", str(tmp_path / "hosts"))
    assert call("hostfile", *words) == 0
    one, torchrun, hosts = stand_ins.read_text().splitlines()
    tail = "--module onellm.train.launch instruct --hardware 8x80gb out=a b"
    assert one == f"deepspeed --num_gpus 2 {tail}"
    assert torchrun.startswith("torchrun --nnodes 1 --node-rank 0 --nproc-per-node 2")
    assert torchrun.endswith(tail)
    assert hosts == f"deepspeed --hostfile {tmp_path}/hosts {tail}"


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (143, True), (1, False)])
def test_slurm_goes_on_after_a_saved_stop(stand_ins, monkeypatch, status, requeued):
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node[7-8]")
    monkeypatch.setenv("SLURM_JOB_ID", "12345")
    monkeypatch.setenv("SRUN_EXIT", str(status))
    assert call("slurm", "instruct", "out=x") == (0 if requeued else status)
    calls = stand_ins.read_text()
    assert "node7" in calls
    assert ("scontrol requeue 12345" in calls) == requeued


def test_export_names_what_is_missing(tmp_path):
    done = CliRunner().invoke(app, ["export", str(tmp_path), str(tmp_path / "model")])
    assert done.exit_code == 2
    assert "train.json: expected" in done.stderr or "expected the folder of a run" in done.stderr
