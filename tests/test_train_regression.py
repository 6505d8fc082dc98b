"""The last projection in closed form: what it reaches, and that it happens once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import tiny_model
from tiny_runs import tiny_config, tiny_run, write_shards

from onellm.data.faults import Faults
from onellm.data.signal_reader import SignalReader
from onellm.errors import ConfigError
from onellm.train.engine import Place
from onellm.train.launch import prepare, run_training
from onellm.train.metrics import Progress
from onellm.train.mixture import read_samples
from onellm.train.regression import embed_texts, fit_output
from onellm.train.stage import FitOutput

FIT = {"fit_output": {"modalities": ["image"], "ridge": 1e-6}}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "data")


def test_soft_tokens_point_to_their_answers(shards, tmp_path):
    model = tiny_model("image", "imu")
    samples = read_samples(tiny_config(shards, tmp_path).data, model.modalities, ["image"])
    reader = SignalReader(model.modalities)
    config = FitOutput(modalities=("image",), ridge=1e-6)
    explained = fit_output(model, config, samples, reader, Faults())
    assert explained["image"] > 0.99  # 8 pictures, 32 numbers each: an exact fit
    linear, norm = model.projector.proj_out["image"]
    for sample in samples["image"]:
        signal = reader.read("image", sample.media[0][1], sample.id)
        mixed_D = model.projector.mix(model.features("image", signal[None]))[0].mean(0)
        wanted_D = embed_texts(model, [sample.meta["qa"][0]["answer"]])[0]
        torch.testing.assert_close(linear(mixed_D), wanted_D, rtol=1e-2, atol=1e-2)
    assert norm.weight.unique().item() == model.projector.config.output_scale
    assert model.training is False


def test_strong_ridge_leaves_the_mean(shards, tmp_path):
    model = tiny_model("image", "imu")
    samples = read_samples(tiny_config(shards, tmp_path).data, model.modalities, ["image"])
    config = FitOutput(modalities=("image",), ridge=1e9)
    explained = fit_output(model, config, samples, SignalReader(model.modalities), Faults())
    assert explained["image"] == pytest.approx(0, abs=1e-4)
    answers = [sample.meta["qa"][0]["answer"] for sample in samples["image"]]
    bias_D = model.projector.proj_out["image"][0].bias
    torch.testing.assert_close(bias_D, embed_texts(model, answers).mean(0), atol=1e-4, rtol=1e-4)


def test_a_stage_fits_once_and_only_what_it_names(shards, tmp_path):
    model = tiny_model("image", "imu")
    before = {n: p.clone() for n, p in model.named_parameters()}
    config = tiny_config(shards, tmp_path / "out", stage=FIT)
    prepare(config, model, Place())
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert {"projector.proj_out.image.0.weight", "projector.proj_out.image.0.bias"} <= changed
    assert all(name.startswith("projector.proj_out.image.") for name in changed)


def test_a_resumed_stage_does_not_fit_again(shards, tmp_path):
    whole, _ = tiny_run(shards, tmp_path / "whole", stage=FIT)
    out = tmp_path / "parts"
    config = tiny_config(shards, out, stage=FIT)

    def stop(progress: Progress) -> None:
        if progress.done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_training(config, stop, model=tiny_model("image", "imu"))
    again = tiny_model("image", "imu")
    _, start = prepare(config, again, Place())
    assert start == 4
    resumed, _ = tiny_run(shards, out, stage=FIT)
    for (name, one), two in zip(
        whole.state_dict().items(), resumed.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two), name


def test_what_cannot_be_fitted(shards, tmp_path):
    model = tiny_model("image", "imu")
    with pytest.raises(ConfigError, match=r"stage.trainable lacks projector.proj_out.image"):
        prepare(
            tiny_config(shards, tmp_path / "a", stage={**FIT, "trainable": ["tags.*"]}),
            *(model, Place()),
        )
    with pytest.raises(ConfigError, match="no modality"):
        stage = {"fit_output": {"modalities": ["imag"]}}
        prepare(tiny_config(shards, tmp_path / "b", stage=stage), model, Place())
    stage = {
        "fit_output": {"modalities": ["imu"]},
        "modalities": ["image"],
        "trainable": ["projector.*"],
    }
    with pytest.raises(ConfigError, match="no sample of imu has a target 'answer'"):
        prepare(tiny_config(shards, tmp_path / "c", stage=stage), model, Place())
