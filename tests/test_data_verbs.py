"""``onellm data``: check, stats, convert, cache."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import tiny_model
from tiny_runs import picture, tiny_config, tiny_run, write_shards, write_tar
from typer.testing import CliRunner

from onellm.cli import app
from onellm.config import parse
from onellm.data.surveying import KINDS
from onellm.errors import BadInput, CheckpointError, ConfigError
from onellm.train.cache import CachedStore, CacheWriter, fingerprint
from onellm.train.config import TrainConfig
from onellm.train.launch import run_training
from onellm.train.metrics import read_metrics

runner = CliRunner()


def onellm(*words: str, code: int = 0) -> str:
    done = runner.invoke(app, ["data", *words], env={"COLUMNS": "200"})
    assert done.exit_code == code, (done.stdout, done.stderr, done.exception)
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Path:
    """A saved model, shards, and a table of one good picture and every kind of bad one."""
    folder = tmp_path_factory.mktemp("verbs")
    tiny_model("image", "imu").save_pretrained(folder / "model")
    write_shards(folder / "shards")
    (folder / "good.png").write_bytes(picture(0))
    (folder / "bad.png").write_bytes(picture(0)[:50])
    said = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]
    long = [said[0], {"from": "gpt", "value": "word " * 60}]
    records = [
        {"image": "good.png", "conversations": said},
        {"image": "good.png", "conversations": long},
        {"image": "gone.png", "conversations": said},
        {"image": "bad.png", "conversations": said},
        {"conversations": [{"from": "human", "value": "q " * 90}, said[1]]},
        {"conversations": said[:1]},
    ]
    (folder / "mixed.json").write_text(json.dumps(records))
    config = tiny_config(folder / "shards", folder / "out").model_dump(mode="json")
    config["model"] = str(folder / "model")
    config["data"] = {"datasets": [{"path": str(folder / "mixed.json")}], "max_tokens": 50}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.mark.parametrize("verb", ["check", "stats", "convert", "cache"])
def test_help_has_examples(verb):
    text = onellm(verb, "--help")
    assert "Examples:" in text
    assert f"onellm data {verb}" in text
    assert verb in onellm("--help")


def counts_of(text: str, start: str) -> list[int]:
    line = next(line for line in text.splitlines() if line.strip().startswith(start))
    return [int(word.replace(",", "")) for word in line.split() if word[0].isdigit()]


@pytest.mark.parametrize("workers", ["0", "1"])
def test_check_counts_every_kind_of_fault(place, tmp_path, workers):
    out = tmp_path / "faults.jsonl"
    text = onellm("check", str(place / "run.yaml"), "--out", str(out), "--workers", workers, code=1)
    assert text.split().count("mixed/image") == text.split().count("mixed/text") == 1
    assert counts_of(text, "mixed/image") == [4, 1, 1, 0, 1]  # samples, then KINDS
    assert counts_of(text, "mixed/text") == [2, 0, 0, 2, 0]
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [f["kind"] for f in found] == [
        *("too long", "missing", "broken", "unsupervised", "unsupervised")
    ]
    assert set(KINDS) == {f["kind"] for f in found}
    assert "gone.png" in found[1]["message"] and "bad.png" in found[2]["message"]
    assert "reading everything" in text


def test_check_of_bare_data(place):
    text = onellm("check", str(place / "shards"), "--model", str(place / "model"))
    assert counts_of(text, "shards/image") == [8, 0, 0, 0, 0]
    assert counts_of(text, "shards/imu") == [6, 0, 0, 0, 0]
    text = onellm("check", str(place / "mixed.json"), code=1)
    assert "texts were not measured in tokens" in text
    assert "error: " in onellm("check", str(place / "gone.json"), code=2)
    assert "Did you mean" in onellm("check", str(place / "run.yaml"), "data.max_token=3", code=2)


def test_stats_tell_lengths_and_padding(place, tmp_path):
    png = tmp_path / "lengths.png"
    text = onellm(
        *("stats", str(place / "mixed.json"), "--model", str(place / "model")),
        *("--png", str(png), "--batch", "4", "--per-device", "2"),
    )
    assert counts_of(text, "image")[0] == 4
    assert "####" in text
    assert "padding in passes of 2" in text
    assert png.read_bytes()[:4] == b"\x89PNG"
    text = onellm("stats", str(place / "mixed.json"))
    assert "texts in words, not tokens: no text tokenizer: name one with --model" in text
    # BOS, "What?", "That.", EOS, and 30 queries in two tags; and one answer of 60 words.
    assert counts_of(text, "image") == [4, 3 * 36 + 95, 36, 36, 95, 95, 95]


def test_stats_of_a_stage_go_by_its_own_batches(place, tmp_path):
    def told(*words: str) -> str:
        return " ".join(onellm("stats", str(place / "run.yaml"), *words).split())

    text = told()
    assert "padding in passes of 4, batches of 8:" in text  # not 4 of 128
    assert "run.yaml has batch: size 8, per_device 4, arrange order, pack false: " in text
    assert "texts are cut behind 50 tokens (data.max_tokens)" in text
    whole = onellm("stats", str(place / "run.yaml"), "data.max_tokens=2000")
    # Four queries and two tags; "word" 60 times and a long question are cut by the first alone.
    most = [max(counts_of(t, "image")) for t in (onellm("stats", str(place / "run.yaml")), whole)]
    assert most[0] < most[1]
    packed = ("batch.pack=true", "batch.arrange=length", "batch.per_device=null", "batch.size=6")
    text = told(*packed)
    rows = "size 6, per_device 6, arrange length, pack true: no padding; rows of"
    assert rows in text and "1 of them a step" in text
    text = told(*packed, "batch.tokens=10")
    assert "does not fit into a row of 10" in text
    text = told("--batch", "4", "--per-device", "2")
    assert "size 4 by --batch, per_device 2 by --per-device" in text
    assert "padding in passes of 2, batches of 4:" in text
    assert "has batch" not in onellm("stats", str(place / "mixed.json"))


def test_check_counts_unreadable_records_where_they_are(tmp_path):
    (tmp_path / "a.png").write_bytes(picture(0))
    (tmp_path / "a.jsonl").write_text('{"image": "a.png", "caption": "x"}\n{bad\n{"image": 5}\n')
    text = onellm("check", str(tmp_path / "a.jsonl"), code=1)
    assert counts_of(text, "a/image") == [3, 0, 2, 0, 0]


def test_check_tells_what_targets_leave_out(place, tmp_path):
    shards = write_shards(tmp_path / "shards")
    with tarfile.open(shards / "imu-train.tar") as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]
    members[3] = (members[3][0], b"no json")
    write_tar(shards / "imu-train.tar", members)
    (tmp_path / "run.yaml").write_text(
        (place / "run.yaml").read_text().replace(str(place / "mixed.json"), "unused.json")
    )
    text = onellm(
        *("check", str(tmp_path / "run.yaml"), f"data.folder={shards}", "data.targets={closed: 1}"),
        code=1,
    )
    assert counts_of(text, "imu/closed") == [5, 0, 0, 0, 0]
    assert counts_of(text, "(left out)") == [1, 0, 1, 0, 0]
    assert "imu01.json: expected valid JSON" in text


def test_convert_leaves_out_what_is_gone(place, tmp_path):
    assert "gone.png" in onellm("convert", str(place / "mixed.json"), str(tmp_path / "a"), code=2)
    target = tmp_path / "b"
    text = onellm("convert", str(place / "mixed.json"), str(target), "--skip-bad")
    assert "image: 3 samples" in text and "text: 2 samples" in text
    assert "left out: 1" in text
    assert sorted(p.name for p in target.iterdir()) == [
        *("image-000000.tar", "shards.json", "text-000000.tar")
    ]
    text = onellm("check", str(target), "--model", str(place / "model"), code=1)
    assert counts_of(text, "b/image") == [3, 0, 1, 0, 0]


# -- the cache --------------------------------------------------------------------------------

FROZEN: dict[str, Any] = {
    "data": {"targets": {"closed": 1}, "augment": False},
    "stage": {"trainable": ["llm.*"], "frozen": "soft"},
}


def cached_config(place: Path, out: Path, level: str, **stage: Any) -> Any:
    sections = json.loads(json.dumps(FROZEN))
    trainable = ["llm.*"] if level == "soft" else ["projector.*", "tags.*.{modality}"]
    sections["stage"] |= {"frozen": level, "trainable": trainable, **stage}
    return tiny_config(place / "shards", out, model=str(place / "model"), **sections)


@pytest.mark.parametrize(
    ("level", "fitted"), [("soft", False), ("features", False), ("features", True)]
)
def test_a_run_from_the_cache_equals_one_without(place, tmp_path, level, fitted):
    """Fitting the last projection changes what lies behind the features, so they stay the same."""
    fit = {"fit_output": {"modalities": ["image", "imu"]}} if fitted else {}
    file = tmp_path / "stage.yaml"
    file.write_text(
        yaml.safe_dump(cached_config(place, tmp_path / "x", level, **fit).model_dump(mode="json"))
    )
    text = onellm("cache", str(file), str(tmp_path / "cache"))
    assert "14 outputs" in text
    runs = {}
    for name, folder in (("memory", ""), ("disk", str(tmp_path / "cache")), ("plain", None)):
        options = {"frozen_folder": folder} if folder is not None else {"frozen": "none"}
        config = cached_config(place, tmp_path / name, level, **fit, **options)
        run_training(config)
        runs[name] = [r["loss"] for r in read_metrics(tmp_path / name / "metrics.jsonl")]
    assert runs["disk"] == pytest.approx(runs["memory"], abs=1e-6)
    assert runs["disk"] == pytest.approx(runs["plain"], abs=1e-5)


def test_soft_tokens_of_a_stage_that_fits_its_projection_are_refused(place, tmp_path):
    """They would be those of before; such a stage trains the projection, and so has none."""
    fit = {"fit_output": {"modalities": ["image"]}, "trainable": ["projector.proj_out.image.*"]}
    config = cached_config(place, tmp_path / "x", "soft", **fit)
    (tmp_path / "stage.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    text = onellm("cache", str(tmp_path / "stage.yaml"), str(tmp_path / "cache"), code=2)
    assert "every modality has trained parameters in front" in text


def test_a_cache_leaves_out_what_is_broken(place, tmp_path):
    shards = write_shards(tmp_path / "shards")
    with tarfile.open(shards / "imu-train.tar") as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]
    members[2], members[5] = (members[2][0], b"broken"), (members[5][0], b"no json")
    write_tar(shards / "imu-train.tar", members)
    config = cached_config(place, tmp_path / "x", "soft").model_dump(mode="json")
    config["data"] |= {"folder": str(shards), "faults": {"policy": "skip", "share": 0.2}}
    (tmp_path / "stage.yaml").write_text(yaml.safe_dump(config))
    text = onellm("cache", str(tmp_path / "stage.yaml"), str(tmp_path / "cache"))
    assert "12 outputs" in text
    assert "left out, by data.faults: 2 broken" in text
    config["stage"]["frozen_folder"] = str(tmp_path / "cache")
    run_training(parse(TrainConfig, config, where="test"))
    told = read_metrics(tmp_path / "x" / "metrics.jsonl")[-1]["faults"]
    assert told["imu"] >= 2  # the one without a text, once; the broken one each time it is drawn


def test_a_stale_cache_is_refused(place, tmp_path):
    def config(**options: Any) -> Any:
        return cached_config(place, tmp_path / "run", "soft", **options)

    file = tmp_path / "stage.yaml"
    file.write_text(yaml.safe_dump(config().model_dump(mode="json")))
    cache = tmp_path / "cache"
    onellm("cache", str(file), str(cache))
    model = tiny_model("image", "imu").requires_grad_(False)
    first = fingerprint(model, "image", "soft")
    CachedStore(cache, model, "soft", ["image", "imu"])
    with torch.no_grad():
        model.projector.proj_out["imu"][0].bias[0] += 1e-3
    assert fingerprint(model, "image", "soft") == first  # of the other modality
    CachedStore(cache, model, "soft", ["image"])
    with pytest.raises(CheckpointError, match="imu are of other weights or settings"):
        CachedStore(cache, model, "soft", ["image", "imu"])
    with pytest.raises(CheckpointError, match="expected a cache with level features"):
        CachedStore(cache, model, "features", ["image"])
    with pytest.raises(CheckpointError, match="views 2; found 0"):
        CachedStore(cache, model, "soft", ["image"], views=2)
    with pytest.raises(CheckpointError, match="the stage trains parts of image"):
        model.projector.requires_grad_(True)
        CachedStore(cache, model, "soft", ["image"])
    with pytest.raises(CheckpointError, match="expected a finished cache"):
        CachedStore(tmp_path, model, "soft", ["image"])
    store = CachedStore(cache, tiny_model("image", "imu").requires_grad_(False), "soft", ["imu"])
    with pytest.raises(BadInput, match="none under this path"):
        store.holds("imu/elsewhere/0", "elsewhere.npy")
    with pytest.raises(ConfigError, match="new or empty folder"):
        CacheWriter(cache, tiny_model("image").requires_grad_(False), "soft", ["image"])
    # Other data under the same names: the samples' bytes have changed.
    write_shards(tmp_path / "other", {"image": 8, "imu": 6})
    changed = config(frozen_folder=str(cache)).model_copy(
        update={"data": tiny_config(_shifted(tmp_path / "other"), tmp_path).data}
    )
    changed = changed.model_copy(
        update={"data": changed.data.model_copy(update={"augment": False})}
    )
    with pytest.raises(BadInput, match="another one, or a changed one"):
        run_training(changed)


def _shifted(folder: Path) -> Path:
    """The same shards with their pictures exchanged."""
    with tarfile.open(folder / "image-train.tar") as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]
    pictures = [data for name, data in members if name.endswith(".png")]
    turned = iter([*pictures[1:], pictures[0]])
    write_tar(
        folder / "image-train.tar",
        [(n, next(turned) if n.endswith(".png") else d) for n, d in members],
    )
    return folder


# -- runs over data sets ----------------------------------------------------------------------


def test_a_run_over_data_sets(place, tmp_path):
    sets = [
        {"path": str(place / "shards" / f"{m}-train.tar"), "modality": m, "name": m}
        for m in ("image", "imu")
    ]
    config = tiny_config(place / "shards", tmp_path / "run").model_dump(mode="json")
    config["data"] = {"datasets": sets, "augment": True}
    config["model"] = str(place / "model")
    run_training(parse(TrainConfig, config, where="test"))
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert len(records) == 6
    assert {name for r in records for name in r["losses"]} == {"image", "imu"}
    config["stage"] |= {"modalities": ["image"], "trainable": ["projector.*"]}
    config["out"] = str(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"has media of imu, which stage\.modalities"):
        run_training(parse(TrainConfig, config, where="test"))


def test_a_packaged_stage_over_other_data_by_one_override(place, tmp_path):
    records = [json.loads((place / "mixed.json").read_text())[0]] * 8
    (tmp_path / "mine.json").write_text(json.dumps(records))
    (tmp_path / "good.png").write_bytes(picture(0))
    words = [
        *("train", "align_image", f"model={place / 'model'}", f"out={tmp_path / 'run'}"),
        f"data.datasets={tmp_path / 'mine.json'}",
        *("dtype=float32", "deepspeed=null", "batch={size: 4, per_device: 2}", "length.steps=2"),
    ]
    done = runner.invoke(app, words, env={"COLUMNS": "200"})
    assert done.exit_code == 0, (done.stdout, done.stderr, done.exception)
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [set(record["losses"]) for record in records] == [{"image"}] * 2


def test_broken_samples_are_counted_and_listed(place, tmp_path):
    shards = write_shards(tmp_path / "shards")
    with tarfile.open(shards / "imu-train.tar") as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]
    members[2] = (members[2][0], b"broken")
    write_tar(shards / "imu-train.tar", members)
    faults = {"faults": {"policy": "skip", "share": 0.2}}
    _, records = tiny_run(shards, tmp_path / "run", data=faults)
    told = records[-1]["faults"]["imu"]
    listed = (tmp_path / "run" / "faults" / "0.jsonl").read_text().splitlines()
    assert told == len(listed) > 0
    assert all("imu01.npy" in json.loads(line)["file"] for line in listed)
    assert json.loads(listed[0])["step"] >= 1
