"""Pre-training the encoder, stored variations, text alone, and learning-rate factors."""

from __future__ import annotations

import open_clip
import pytest
import torch
from tiny import signals, tiny_model, tiny_text
from tiny_runs import tiny_config, tiny_run, write_shards
from torch.nn import functional

from onellm.data.loader import Example, Medium
from onellm.errors import BadInput, ConfigError
from onellm.prompts import encode_example
from onellm.train.clip import Clip
from onellm.train.engine import Place
from onellm.train.launch import prepare
from onellm.train.schedule import build_adamw
from onellm.train.stage import ClipConfig
from onellm.train.trainables import select

SMALL = ClipConfig(width=32, layers=1, heads=2)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"))


def example(model, name: str, answer: str, seed: int) -> Example:
    ids, labels = encode_example(tiny_text(), "plain", [("assistant", answer)])
    medium = Medium(name, f"{name}/{seed}", signals(model, name, 1, seed)[0])
    return Example(f"s{seed}", name, (medium,), ids, labels, answer)


def test_the_clip_loss_is_open_clips_and_trains_the_encoder():
    model = tiny_model("image", "depth")
    select(model, ["encoder.visual.*"], ["image"])
    objective = Clip(model, SMALL, seed=0)
    batch = [example(model, "image", text, i) for i, text in enumerate(("a chair", "a lamp", "x"))]
    losses = objective(batch)
    with torch.no_grad():
        x = torch.stack([e.media[0].signal for e in batch])
        picture = model.features("image", x).x_BND[:, 1:].mean(1) @ model.encoder.visual.proj
        want = open_clip.ClipLoss()(
            functional.normalize(picture, dim=-1),
            objective.head([e.answer for e in batch]),
            objective.head.scale(),
        )
    assert losses.total.item() == pytest.approx(3 * want.item(), rel=1e-5)
    losses.total.backward()
    assert model.encoder.visual.conv1.weight.grad.abs().sum() > 0
    assert model.encoder.visual.proj.grad.abs().sum() > 0


def test_the_clip_objective_wants_one_picture():
    model = tiny_model("image")
    two = example(model, "image", "a chair", 0)
    two = Example(**{**vars(two), "media": two.media * 2})
    with pytest.raises(BadInput, match="s0: expected one medium for a contrastive objective"):
        Clip(model, SMALL, seed=0)([two])


@pytest.mark.parametrize("level", ["features", "soft"])
def test_stored_variations_are_of_the_same_signal_and_are_drawn(shards, tmp_path, level):
    trained = ["llm.*"] if level == "soft" else ["projector.*"]
    config = tiny_config(
        shards,
        tmp_path,
        data={"augment": True},
        stage={"trainable": trained, "frozen": level, "frozen_views": 2},
    )
    model = tiny_model("image", "imu")
    run, _ = prepare(config, model, Place())
    store = run.engine.objective.store
    keys = sorted(store._kept)
    plain = [k for k in keys if k.endswith("@0")]
    assert len(keys) == 3 * len(plain)
    for key in plain:
        versions = [store.get([key.replace("@0", f"@{v}")]) for v in range(3)]
        assert not torch.equal(versions[1], versions[2])
    drawn = {run.loader.example(run.loader.order.draw(n)).media[0].key[-2:] for n in range(60)}
    assert drawn == {"@0", "@1", "@2"}


def test_one_stored_version_cannot_be_varied(shards, tmp_path):
    with pytest.raises(ConfigError, match=r"stage\.frozen_views"):
        tiny_config(shards, tmp_path, data={"augment": True}, stage={"frozen": "features"})


def test_text_alone(shards, tmp_path):
    config = tiny_config(
        shards, tmp_path, data={"media": False, "augment": False}, stage={"trainable": ["llm.*"]}
    )
    run, _ = prepare(config, tiny_model("image", "imu"), Place())
    drawn = [run.loader.example(run.loader.order.draw(n)) for n in range(8)]
    assert all(not e.media and e.group == "text" for e in drawn)
    _, records = tiny_run(
        shards,
        tmp_path / "run",
        data={"media": False, "augment": False},
        stage={"trainable": ["llm.*"]},
    )
    assert set(records[-1]["losses"]) == {"text"}


def test_learning_rate_factors(shards, tmp_path):
    optim = tiny_config(shards, tmp_path).optim.model_copy(
        update={"lr_factors": {"a.*": 0.5, "*": 2.0}}
    )
    parameters = {n: torch.nn.Parameter(torch.zeros(1)) for n in ("a.w", "b.w")}
    groups = build_adamw(parameters.items(), optim).param_groups
    factor = {id(p): group["factor"] for group in groups for p in group["params"]}
    assert [factor[id(p)] for p in parameters.values()] == [0.5, 2.0]
    optim = optim.model_copy(update={"lr_factors": {"c.*": 1.0}})
    with pytest.raises(ConfigError, match=r"'c\.\*' matches no trained parameter"):
        build_adamw(parameters.items(), optim)
