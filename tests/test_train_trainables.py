"""Which parameters each stage trains; the lists are golden files.

Regenerate after a wanted change: ``ONELLM_REGENERATE=1 pytest tests/test_train_trainables.py``.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tiny import tiny_model

from onellm.errors import ConfigError
from onellm.train.packaged import read_config, stage_names
from onellm.train.trainables import expand, select

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.mark.parametrize("name", stage_names())
def test_trained_parameters_of_each_stage(model, name):
    stage = read_config(name).stage
    names = select(model, stage.trainable, stage.modalities)
    assert names == [n for n, p in model.named_parameters() if p.requires_grad]
    file = GOLDEN / f"trainables_{name}.txt"
    text = "\n".join(names) + "\n"
    if os.environ.get("ONELLM_REGENERATE"):
        file.write_text(text)
    assert text == file.read_text()


def test_the_encoder_is_frozen_everywhere_and_the_llm_in_alignment():
    for file in GOLDEN.glob("trainables_*.txt"):
        names = file.read_text().split()
        assert not any(name.startswith("encoder.") for name in names)
        llm = [name.startswith("llm.") for name in names]
        assert all(llm) if file.stem == "trainables_instruct" else not any(llm)


def test_a_glob_that_matches_nothing_is_an_error(model):
    with pytest.raises(ConfigError, match=r"'projectr\.\*' matches no.*Did you mean 'projector'"):
        select(model, ["tags.*", "projectr.*"], ["image"])
    with pytest.raises(ConfigError, match="matches no parameter"):
        select(model, ["tokenizers.{modality}.*"], ["image", "video"])


def test_a_glob_may_match_for_one_modality_only(model):
    names = select(model, ["tokenizers.{modality}.*"], ["image", "imu"])
    assert names == ["tokenizers.imu.conv.weight"]


def test_expand():
    assert expand("llm.*", ["a", "b"]) == ["llm.*"]
    assert expand("x.{modality}.y", ["a", "b"]) == ["x.a.y", "x.b.y"]
