"""Every format through every verb of ``onellm data``: the same samples, signals and texts."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from tiny import MODALITIES, tiny_model
from tiny_runs import opened, picture, tiny_config, write_tar
from typer.testing import CliRunner

from onellm.cli import app
from onellm.data.loader import medium_key
from onellm.data.sample import Sample
from onellm.modality import Modality
from onellm.registry import get_modality

runner = CliRunner()
Made = tuple[dict[str, Any], dict[str, int]]
"""A data set's configuration, and how many samples of each set of modalities it has."""


def onellm(*words: Any) -> str:
    done = runner.invoke(app, ["data", *map(str, words)], env={"COLUMNS": "200"})
    assert done.exit_code == 0, (done.stdout, done.stderr, done.exception)
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def model(tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def modalities() -> dict[str, Modality]:
    return {name: get_modality(name, **options) for name, options in MODALITIES.items()}


def wave(seed: int) -> bytes:
    out = io.BytesIO()
    x_T = np.random.default_rng(seed).normal(0, 0.1, 8000).astype(np.float32)
    soundfile.write(out, x_T, 16_000, format="WAV", subtype="FLOAT")
    return out.getvalue()


def array(x: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, x)
    return out.getvalue()


def media(folder: Path) -> None:
    """Files of several modalities, a recording with its times among them."""
    rng = np.random.default_rng(0)
    for i in range(3):
        for name in (f"{i}.png", f"cc3m/{i}.png", f"cc3m_depth/{i}.png", f"n{i}.png"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(picture(i + 10 * len(name)))
        (folder / f"{i}.wav").write_bytes(wave(i))
        (folder / f"p{i}.npy").write_bytes(array(rng.random((80, 6)).astype(np.float32)))
    time_ms = np.arange(0, 20_000, 5.0)
    np.save(folder / "walk.npy", rng.standard_normal((6, len(time_ms))))
    np.save(folder / "walk_timestamps.npy", time_ms)


def talk(n: int) -> list[dict[str, str]]:
    return [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": f"A thing, number {n}."},
    ]


WINDOW = {"video_uid": "walk", "window_start": 1.0, "window_end": 1.2}


def _llava(folder: Path) -> Made:
    records = [{"id": f"{i}", "image": f"{i}.png", "conversations": talk(i)} for i in range(3)]
    said = [{"from": "human", "value": "Hm?"}, {"from": "gpt", "value": "Yes."}]
    (folder / "a.json").write_text(json.dumps([*records, {"id": "t", "conversations": said}]))
    return {"path": "a.json"}, {"image": 3, "text": 1}


def _captions(folder: Path) -> Made:
    rows = "".join(f'"a sound,\tnumber {i}"\t{i}.wav\n' for i in range(3))
    (folder / "a.csv").write_text(f"caption\turl\n{rows}")
    return {"path": "a.csv", "modality": "audio", "describe": True}, {"audio": 3}


def _maps(folder: Path) -> Made:
    rows = "".join(f"a house\tcc3m/{i}.png\n" for i in range(3))
    (folder / "a.csv").write_text(f"caption\turl\n{rows}")
    derive = {"depth_image": {"field": "url", "replace": "cc3m/", "by": "cc3m_depth/"}}
    return {"path": "a.csv", "fields": {"image": "url"}, "derive": derive}, {"depth": 3}


def _motion(folder: Path) -> Made:
    records = [WINDOW | {"text": ["C walks", "C runs"]}, WINDOW | {"text": "C rests"}]
    (folder / "a.json").write_text(json.dumps(records))
    return {"path": "a.json"}, {"imu": 2}


def _instructions(folder: Path) -> Made:
    told: list[dict[str, Any]] = [
        {"image": "0.png"},
        {"image": "0.png", "depth_image": "cc3m_depth/0.png"},
        {"image": "0.png", "normal_image": "n0.png"},
        {"imu_path": "", **WINDOW},
        {"image": "0.wav", "data_type": "audio"},
        {"image": "p0.npy", "data_type": "point"},
    ]
    told[3]["imu_path"] = str(folder)
    records = [{"id": f"{i}", "conversations": talk(i), **one} for i, one in enumerate(told)]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    names = ("image", "depth", "normal", "imu", "audio", "point")
    return {"path": "a.jsonl"}, dict.fromkeys(names, 1)


def _own(folder: Path) -> Made:
    record = {
        "media": [["audio", "0.wav"], ["depth", ["0.png", "cc3m_depth/0.png"]], ["image", "1.png"]],
        "turns": [["user", "Which?"], ["assistant", "All."], ["user", "So?"], ["assistant", "No."]],
    }
    (folder / "a.jsonl").write_text(json.dumps(record))
    return {"path": "a.jsonl"}, {"audio+depth+image": 1}


def _tars(folder: Path) -> Made:
    nested = {"media": [["image", "0.png"], ["audio", "1.wav"]], "caption": ["one", "two"]}
    told = {"media": [["depth", ["a.png", "b.png"]]], "conversations": talk(0)}
    write_tar(
        folder / "a.tar",
        [
            ("x/1.image1.png", picture(0)),
            ("x/1.image2.png", picture(1)),
            ("x/1.audio.wav", wave(0)),
            ("x/1.txt", b"two pictures"),
        ],
    )
    write_tar(
        folder / "b.tar",
        [("1.json", json.dumps(nested).encode()), ("1.0.png", picture(2)), ("1.1.wav", wave(1))],
    )
    write_tar(
        folder / "c.tar",
        [("1.json", json.dumps(told).encode()), ("1.a.png", picture(2)), ("1.b.png", picture(1))],
    )
    write_tar(folder / "imu-0.tar", [("1.npy", array(np.ones((40, 6)))), ("1.txt", b"standing")])
    names = ("a.tar", "b.tar", "c.tar", "imu-0.tar")
    groups = {"image+audio": 2, "depth": 1, "imu": 1}
    return {"path": list(names)}, groups


def _parquet(folder: Path, *, saved: bool = False) -> Made:
    datasets = pytest.importorskip("datasets")
    rows = [
        {"pic": {"bytes": picture(i), "path": None}, "query": "What?", "label": f"{i}"}
        for i in range(3)
    ]
    table = datasets.Dataset.from_list(rows).cast_column("pic", datasets.Image())
    fields = {"fields": {"image": "pic", "question": "query", "answer": "label"}}
    if saved:
        table.save_to_disk(str(folder / "saved"))
        return {"path": "saved", "format": "hub", **fields}, {"image": 3}
    table.to_parquet(str(folder / "a.parquet"))
    return {"path": "a.parquet", **fields}, {"image": 3}


def _hub(folder: Path) -> Made:
    return _parquet(folder, saved=True)


FORMATS: list[Callable[[Path], Made]] = [
    *(_llava, _captions, _maps, _motion, _instructions, _own, _tars, _parquet, _hub)
]


def everything(groups: Any) -> dict[str, list[Sample]]:
    return {group: [own[i] for i in range(len(own))] for group, own in groups.items()}


@pytest.mark.parametrize("make", FORMATS, ids=lambda make: make.__name__[1:])
def test_a_format_through_all_verbs(tmp_path, model, modalities, make):
    media(tmp_path)
    settings, sizes = make(tmp_path)
    paths = settings["path"] if isinstance(settings["path"], list) else [settings["path"]]
    settings["path"] = [str(tmp_path / path) for path in paths]
    names = sorted({name for group in sizes for name in group.split("+")} - {"text"})
    config = tiny_config(tmp_path, tmp_path / "run", model=str(model)).model_dump(mode="json")
    config["data"] = {"datasets": [{"name": "d", **settings}]}
    config["stage"] |= {"modalities": names, "trainable": ["llm.*"], "frozen": "soft"}
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(config))

    text = onellm("check", file)
    rows = [line.split() for line in text.splitlines() if line.startswith("d/")]
    assert {row[1]: [int(n) for n in row[2:]] for row in rows} == {
        group: [size, 0, 0, 0, 0] for group, size in sizes.items()
    }
    text = onellm("stats", file)
    rows = [line.split() for line in text.split("learned")[0].splitlines()]
    assert {row[0]: int(row[1]) for row in rows if row and row[0] in sizes} == sizes

    onellm("convert", file, tmp_path / "shards")
    before = everything(opened(settings.pop("path"), modalities, **settings).groups)
    after = everything(opened(str(tmp_path / "shards"), modalities).groups)
    assert {group: len(own) for group, own in after.items()} == sizes
    for group, samples in before.items():
        for one, other in zip(samples, after[group], strict=True):
            assert (one.turns, one.captions) == (other.turns, other.captions)
            assert [name for name, _ in one.media] == [name for name, _ in other.media]
            for (name, a), (_, b) in zip(one.media, other.media, strict=True):
                load = modalities[name].load
                assert torch.allclose(load(a), load(b), atol=1e-5)

    text = onellm("cache", file, tmp_path / "cache")
    keys = {
        medium_key(sample, i)
        for samples in before.values()
        for sample in samples
        for i in range(len(sample.media))
    }
    assert int(text.split(" outputs")[0].split()[-1]) == len(keys) > 0
