"""``onellm data check`` tells of all that is broken, files that cannot be opened included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from tiny_runs import picture, tiny_config, write_shards, write_tar
from typer.testing import CliRunner

from onellm.cli import app

runner = CliRunner()


def check(*words: Any, code: int) -> str:
    done = runner.invoke(app, ["data", "check", *map(str, words)], env={"COLUMNS": "200"})
    assert done.exit_code == code, (done.stdout, done.stderr, done.exception)
    return done.stdout if code < 2 else done.stderr


def shards(folder: Path, count: int = 4) -> Path:
    """Shards of three pictures each; the second is cut off, the last is none."""
    folder.mkdir()
    members = [m for k in range(3) for m in ((f"{k}.png", picture(k)), (f"{k}.txt", b"a dog"))]
    for number in range(count):
        write_tar(folder / f"image-{number}.tar", members)
    (folder / "image-1.tar").write_bytes((folder / "image-1.tar").read_bytes()[:3000])
    (folder / f"image-{count - 1}.tar").write_bytes(b"<html>gone</html>" * 100)
    return folder


def test_all_broken_shards_are_listed_and_the_rest_is_checked(tmp_path):
    folder = shards(tmp_path / "tars")
    text = check(folder, "--out", tmp_path / "faults.jsonl", code=1)
    lines = text.splitlines()
    told = [line for line in lines if line.startswith("not opened: ")]
    assert [name in line for name, line in zip("13", told, strict=True)] == [True, True]
    assert "image-1.tar: expected a readable tar file; found one without its end mark" in told[0]
    assert "it begins with b'<html>gone" in told[1]
    (row,) = [line.split() for line in lines if line.startswith("tars/image")]
    assert row == ["tars/image", "image", "6", "0", "0", "0", "0"]
    written = [json.loads(line) for line in (tmp_path / "faults.jsonl").read_text().splitlines()]
    assert [Path(fault["sample"]).name for fault in written] == ["image-1.tar", "image-3.tar"]


def test_every_data_set_of_a_run_is_gone_through(tmp_path):
    (tmp_path / "a.png").write_bytes(picture(0))
    (tmp_path / "good.jsonl").write_text('{"image": "a.png", "caption": "x"}\n')
    config = tiny_config(tmp_path, tmp_path / "out").model_dump(mode="json")
    names = ("nosuch.json", "good.jsonl", "cut.json")
    (tmp_path / "cut.json").write_text('[{"image": ')
    config["data"] = {"datasets": [str(tmp_path / name) for name in names]}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    text = check(tmp_path / "run.yaml", code=1)
    assert "nosuch.json: expected a json file; found no such file" in text
    assert "cut.json: expected valid JSON" in text
    assert "read: good/image: image from 'image', text from 'caption'" in text


def test_shards_of_a_folder_by_modality(tmp_path):
    folder = write_shards(tmp_path / "shards")
    cut = folder / "imu-train.tar"
    cut.write_bytes(cut.read_bytes()[:2000])
    config = tiny_config(folder, tmp_path / "out").model_dump(mode="json")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    text = check(tmp_path / "run.yaml", code=1)
    assert "not opened: " in text and "imu-train.tar" in text
    assert "image/closed  image             8" in text


def test_a_file_alone_that_cannot_be_opened_is_an_error(tmp_path):
    assert "no such file" in check(tmp_path / "nosuch.json", code=2)
    (tmp_path / "empty").mkdir()
    assert "expected tar files; found an empty folder" in check(tmp_path / "empty", code=2)
    (tmp_path / "titles.csv").write_text("caption,image\n")
    assert "titles.csv: expected samples; found none" in check(tmp_path / "titles.csv", code=2)


def test_one_folder_of_several_without_shards(tmp_path):
    """The others would have stood in for it, and nobody would have known."""
    folder = shards(tmp_path / "tars", 3)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.zip").touch()
    config = tiny_config(tmp_path, tmp_path / "out").model_dump(mode="json")
    config["data"] = {"datasets": {"path": [str(folder / "image-0.tar"), str(tmp_path / "empty")]}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    assert "empty: expected tar files; found a.zip" in check(tmp_path / "run.yaml", code=2)


def test_what_is_wrong_with_a_whole_shard_is_told_once(tmp_path):
    folder = tmp_path / "far"
    folder.mkdir()
    members = [(f"{k}.png", picture(k)) for k in range(5)]
    write_tar(folder / "image-0.tar", members)
    listing = {name: {"samples": 5, "bytes": 1} for name in ("image-0.tar", "image-1.tar")}
    (folder / "shards.json").write_text(json.dumps({"shards": listing}))
    config = tiny_config(tmp_path, tmp_path / "out").model_dump(mode="json")
    one = {"path": f"file://{folder}/image-{{0..1}}.tar", "name": "far"}
    config["data"] = {"datasets": one, "shelf": str(tmp_path / "shelf")}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    text = check(tmp_path / "run.yaml", code=1)
    (line,) = [line for line in text.splitlines() if line.startswith("broken: ")]
    assert "image-1.tar: expected a file that can be fetched; found no such file" in line
    assert line.endswith("(5 samples)")
