"""Configuration of runs: schema, packaged stage files, and errors that help."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tiny_runs import tiny_config
from typer.testing import CliRunner

from onellm.cli import app
from onellm.errors import ConfigError
from onellm.train.config import BatchConfig
from onellm.train.packaged import CONFIGS, read_config, stage_names
from onellm.train.schedule import build_adamw, decays, learning_rate

HERE = Path(".")


def test_packaged_stages():
    want = {"align_image", "align_video_audio_point", "align_depth_normal_imu_fmri", "instruct"}
    assert want | {"warmup"} <= set(stage_names())


@pytest.mark.parametrize("name", stage_names())
def test_each_stage_file_is_valid_and_says_how_to_launch_it(name):
    config = read_config(name)
    assert config.stage.name == name
    head = (CONFIGS / f"{name}.yaml").read_text().split("\nmodel:")[0]
    assert "--module onellm.train.launch " + name in head or f"onellm train {name}" in head


def test_published_numbers():
    stages = {name: read_config(name) for name in stage_names()}
    assert stages["align_image"].optim.lr == 5e-5
    assert stages["align_image"].batch.split(16) == (40, 8)
    assert stages["align_video_audio_point"].batch.split(8) == (45, 3)
    assert stages["instruct"].batch.split(8) == (4, 16)
    assert stages["instruct"].optim.weight_decay == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.learning_rate=1", r"unknown key 'optim\.learning_rate'"),
        ("optim.weight_decy=1", r"Did you mean 'weight_decay'"),
        ("stage.trainables=[]", "Did you mean 'trainable'"),
        ("data.faults.polcy=skip", "Did you mean 'policy'"),
        ("data.targets={poem: 1}", r"data\.targets"),
        ("optim.lr=-1", r"optim\.lr"),
        ("length={steps: 5, epochs: 1}", "steps or epochs, not both"),
        ("length={}", "give steps or epochs"),
        ("stage.frozen=features", r"set data\.augment=false"),
        ("data.weights={smell: 2}", "smell"),
    ],
)
def test_config_errors(override, message):
    with pytest.raises(ConfigError, match=message):
        read_config("align_image", [override])


@pytest.mark.parametrize("name", stage_names())
def test_each_stage_takes_another_length_by_an_override(name):
    for key, value in (("steps", 7), ("epochs", 2.0)):
        length = read_config(name, [f"length.{key}={value}"]).length
        assert length.model_dump(exclude_none=True) == {key: value}
    with pytest.raises(ConfigError, match="steps or epochs, not both"):
        read_config(name, ["length.steps=7", "length.epochs=2"])


@pytest.mark.parametrize("name", stage_names())
@pytest.mark.parametrize("hardware", [None, "8x80gb"])
def test_each_stage_takes_other_data_by_an_override(name, hardware):
    usual = read_config(name, hardware=hardware).data
    one = read_config(name, ["data.datasets=a.json"], hardware).data
    assert [d.path for d in one.datasets] == ["a.json"]
    assert (one.max_tokens, one.faults, one.augment) == (
        *(usual.max_tokens, usual.faults, usual.augment),
    )
    several = "data.datasets=[a.json, {path: b.csv, modality: audio, weight: 2}]"
    two = read_config(name, [several, "data.max_tokens=7"], hardware).data
    assert [(d.path, d.modality) for d in two.datasets] == [("a.json", ""), ("b.csv", "audio")]
    assert two.max_tokens == 7
    with pytest.raises(ConfigError, match=r"data\.datasets replaces data\.folder"):
        read_config(name, ["data.datasets=a.json", "data.folder=shards"], hardware)


def test_a_file_with_data_sets_takes_a_folder_by_an_override(tmp_path):
    file = tmp_path / "mine.yaml"
    text = (CONFIGS / "align_image.yaml").read_text()
    whole = yaml.safe_load(text)
    whole["data"] = {"datasets": [{"path": "a.json"}], "max_tokens": 96}
    file.write_text(yaml.safe_dump(whole))
    data = read_config(file, ["data.folder=shards", "data.targets={qa: 1}"]).data
    assert (data.datasets, data.folder, dict(data.targets)) == ((), "shards", {"qa": 1})
    whole["data"]["folder"] = "shards"
    file.write_text(yaml.safe_dump(whole))
    with pytest.raises(ConfigError, match=r"data\.datasets replaces data\.folder"):
        read_config(file)


@pytest.mark.parametrize(
    "overrides",
    [["dtype=float16", "deepspeed=null"], ["deepspeed.zero=0"]],
)
def test_number_types_that_do_not_fit(overrides):
    with pytest.raises(ConfigError, match=r"float16|zero=1"):
        read_config("align_image", overrides)


def test_unknown_stage_offers_a_spelling():
    with pytest.raises(ConfigError, match="Did you mean 'align_image'"):
        read_config("aling_image")


def test_batches_that_do_not_come_out_even():
    assert BatchConfig(size=8).split(2) == (4, 1)
    assert BatchConfig(size=8, per_device=2).split(2) == (2, 2)
    for batch, world in ((BatchConfig(size=8, per_device=3), 1), (BatchConfig(size=2), 4)):
        with pytest.raises(ConfigError, match="no multiple"):
            batch.split(world)


def test_learning_rate():
    optim = tiny_config(HERE, HERE, optim={"lr": 1.0, "min_lr": 0.1, "warmup_steps": 4}).optim
    rates = [learning_rate(optim, step, 14) for step in range(15)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[9] == pytest.approx(0.55)
    assert rates[14] == pytest.approx(0.1)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    flat = optim.model_copy(update={"schedule": "constant"})
    assert learning_rate(flat, 13, 14) == 1.0


def test_no_decay_for_biases_norms_tags_positions_queries():
    from tiny import tiny_model

    model = tiny_model()
    optim = tiny_config(HERE, HERE).optim
    names = dict(model.named_parameters())
    decayed = {name for name in names if decays(name, optim)}
    for name in decayed:
        parts = set(name.split("."))
        assert names[name].ndim >= 2
        assert not parts & {"bias", "tags", "positions", "queries"}
        assert "norm" not in name
    assert {"projector.experts.0.wq", "tokenizers.imu.conv.weight"} <= decayed
    groups = build_adamw(names.items(), optim).param_groups
    assert [len(g["params"]) for g in groups] == [len(decayed), len(names) - len(decayed)]
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data", "stats", "nosuch.yaml"], "nosuch.yaml: expected the YAML file of a stage; found"),
        (["data", "check", "my-stag.yaml"], "no such file. Did you mean 'my-stage.yaml'?"),
        (["train", "nosuch.yaml", "--dry-run"], "no such file. Packaged are: align_depth"),
        (["train", "warmup.yaml"], "no such file. Did you mean 'warmup'?"),
        (["train", "warmup", "--hardware", "8x80gb.yml"], "a hardware preset; found no such file"),
        (["train", "."], "expected the YAML file of a stage; found a folder"),
        (["data", "check", "warmpu"], "or a folder of tars; found no such file. Did you mean 'war"),
    ],
)
def test_a_file_that_is_not_there_is_named_with_what_was_expected(
    tmp_path, monkeypatch, words, said
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-stage.yaml").write_text("{}")
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert said in done.output
