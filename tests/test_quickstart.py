"""The quick start in miniature: a few samples, a few steps, every phase."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
import yaml

from onellm import quickstart
from onellm.data.packaged import starter_folder
from onellm.errors import BadInput, ConfigError
from onellm.model import OneLLM
from onellm.preset import PRESETS, load_preset, preset_names


def cut(source: Path, target: Path, samples: int) -> None:
    """Copy the first samples of a shard."""
    keys: list[str] = []
    with tarfile.open(source) as old, tarfile.open(target, "w") as new:
        for member in old:
            key = member.name.split(".")[0]
            if key not in keys:
                keys.append(key)
            if len(keys) > samples:
                break
            new.addfile(member, old.extractfile(member))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Ten training and four test samples of three modalities."""
    out = tmp_path_factory.mktemp("shards")
    for name in ("image", "depth", "imu"):
        for split, count in (("train", 10), ("test", 4)):
            cut(starter_folder() / f"{name}-{split}.tar", out / f"{name}-{split}.tar", count)
    return out


@pytest.fixture(scope="module")
def preset(tmp_path_factory) -> str:
    """The smoke preset with two steps a stage."""
    data = yaml.safe_load((PRESETS / "smoke.yaml").read_text())
    for stage in data["stages"]:
        stage["length"] = {"steps": 2}
        stage["batch"] = {"size": 4}
        stage["router_every"] = 2
    path = tmp_path_factory.mktemp("presets") / "mini.yaml"
    path.write_text(yaml.safe_dump(data))
    return str(path)


def test_every_phase_runs_and_is_not_run_again(folder, preset, tmp_path, monkeypatch):
    page = quickstart.run(tmp_path, folder, preset, seed=3)
    report = json.loads((tmp_path / "report.json").read_text())
    assert page.name == "report.html" and "<html" in page.read_text()
    assert set(report["modalities"]) == {"image", "depth", "imu"}
    for part in report["modalities"].values():
        assert {"n", "exact_match", "majority", "reference", "shuffled", "cider"} <= part.keys()
        assert part["n"] == 4
        assert part["reference"] is None, "the packaged references are of other data"
    assert report["total_seconds"] == pytest.approx(sum(report["seconds"].values()), abs=1)
    assert {"language", "encoder", "align_image", "instruct", "evaluation"} <= set(
        report["seconds"]
    )
    assert not list(tmp_path.glob("stages/*/checkpoints"))
    answer = OneLLM.from_pretrained(tmp_path).generate("Why?", max_new_tokens=3)
    assert isinstance(answer, str)

    def never(*args, **kwargs):
        raise AssertionError("a finished stage was trained again")

    monkeypatch.setattr(quickstart, "run_training", never)
    page.unlink()
    assert quickstart.run(tmp_path, folder, preset, seed=3) == page, "it is written again"
    monkeypatch.setattr(OneLLM, "from_pretrained", never)
    assert quickstart.run(tmp_path, folder, preset, seed=3) == page, "nothing is left to do"


def test_interrupted_between_stages_it_ends_in_the_same_weights(
    folder, preset, tmp_path, monkeypatch
):
    quickstart.run(tmp_path / "whole", folder, preset)
    train, seen = quickstart.run_training, []

    def stop_at_the_fourth(config, *args, **kwargs):
        seen.append(config.stage.name)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return train(config, *args, **kwargs)

    monkeypatch.setattr(quickstart, "run_training", stop_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        quickstart.run(tmp_path / "cut", folder, preset)
    quickstart.run(tmp_path / "cut", folder, preset)
    assert seen.count("encoder") == 1, "finished stages are loaded"
    whole, again = (
        OneLLM.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "cut")
    )
    for name in whole:
        assert (whole[name] == again[name]).all(), name


def test_another_run_is_not_overwritten(folder, preset, tmp_path):
    start = quickstart.QuickStart(tmp_path, folder, preset, 0, quickstart.SilentProgress())
    start.claim(resume=True)
    other = quickstart.QuickStart(tmp_path, folder, preset, 1, quickstart.SilentProgress())
    with pytest.raises(ConfigError, match="another preset, seed or data"):
        other.claim(resume=True)
    (tmp_path / "report.html").touch()
    other.claim(resume=False)
    assert not (tmp_path / "report.html").exists(), "or the new run would count as finished"


def test_bad_folders_and_presets_are_named(tmp_path):
    with pytest.raises(BadInput, match=r"expected a folder of <modality>-train\.tar"):
        quickstart.run(tmp_path / "out", tmp_path / "nothing")
    with pytest.raises(ConfigError, match="Did you mean 'small'"):
        load_preset("smal")


@pytest.mark.parametrize("name", preset_names())
def test_packaged_presets_are_whole(name):
    """Every stage of every preset is a valid training configuration."""
    start = quickstart.QuickStart(Path("x"), starter_folder(), name, 0, quickstart.SilentProgress())
    assert len(start.stages) == len(start.preset.stages)
    trained = [stage.stage.name for stage in start.stages]
    paper = ["align_image", "align_video_audio_point", "align_depth_normal_imu_fmri", "instruct"]
    assert [name for name in trained if name in paper] == paper
