"""Tasks: their files, their readers on the official formats, and what is said of them."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import official
import pytest
import yaml

from onellm.catalogue import describe, listings
from onellm.config import read_yaml
from onellm.errors import BadInput, ConfigError
from onellm.eval import describe as handbook
from onellm.eval import readers
from onellm.eval.cuts import Cut
from onellm.eval.exports import export, export_formats
from onellm.eval.items import Item, build_items
from onellm.eval.postprocess import postprocess
from onellm.eval.task import TASKS, load_task, load_tasks, merged, published_sampling, task_names
from onellm.eval.validate import validate

ROOT = Path(__file__).parents[1]
BENCHMARKS = [name for name in task_names() if not name.startswith("starter_")]
SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return official.make(tmp_path_factory.mktemp("benchmarks"))


def items_of(data: Path, name: str) -> list[Item]:
    return build_items(load_task(name), data)


# -- the files of tasks ---------------------------------------------------------------------------


def test_all_benchmarks_of_the_paper_are_there():
    paper = [name for name in task_names() if not load_task(name).extra]
    # 25 in tables and 2 in the text; the two of scenes are a task each for depth and normals.
    assert len(paper) == 27 + 2
    assert len(BENCHMARKS) == 27 + 2 + 3
    assert set(official.FIXTURES) == set(BENCHMARKS)
    for name in paper:
        scores = load_task(name).published.scores["OneLLM-7B"]
        assert scores, name


@pytest.mark.parametrize("name", task_names())
def test_every_variant_is_a_task(name):
    task = load_task(name)
    for variant in task.variants:
        other = load_task(f"{name}@{variant}")
        assert other.name == f"{name}@{variant}"
        changed = {
            key for key in type(task).model_fields if getattr(task, key) != getattr(other, key)
        }
        assert changed - {"name"}, "a variant that changes nothing"
    assert task.reader in readers.names()
    assert set(task.export) <= set(export_formats())
    metrics = {m for scores in task.published.scores.values() for m in scores}
    assert metrics <= set(task.published.metric)
    assert set(task.published.trained) <= set(task.published.scores)


def test_mistakes_in_files_are_named(tmp_path):
    base = read_yaml(TASKS / "gqa.yaml")
    path = tmp_path / "mine.yaml"

    def wrong(**changes: object) -> str:
        path.write_text(yaml.safe_dump(merged(base, changes)))
        with pytest.raises(ConfigError) as caught:
            build_items(load_task(str(path)), tmp_path)
        return str(caught.value)

    assert "Did you mean 'prompt'" in wrong(promt="x")
    assert "Did you mean 'strip'" in wrong(post=["stripp"])
    assert "'0' is no value's name" in wrong(prompt="{0}")
    assert "Did you mean 'gqa'" in wrong(reader="gqaa")
    with pytest.raises(ConfigError, match="Did you mean 'textvqa'"):
        load_task("textvq")
    with pytest.raises(ConfigError, match=r"no variant 'occr'.*Did you mean 'ocr'"):
        load_task("textvqa@occr")
    with pytest.raises(ConfigError, match="there twice"):
        load_tasks("gqa,gqa")
    with pytest.raises(ConfigError, match="no tasks"):
        load_tasks(" , ")


def test_templates_and_reader_options_are_checked_against_the_reader(data, tmp_path):
    base = read_yaml(TASKS / "gqa.yaml")
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(merged(base, {"prompt": "{qestion}"})))
    with pytest.raises(ConfigError, match=r"does not give.*Did you mean 'question'"):
        items_of(data, str(path))
    path.write_text(yaml.safe_dump(merged(base, {"reader_options": {"hints": True}})))
    with pytest.raises(ConfigError, match="hints"):
        items_of(data, str(path))


def test_a_task_of_ones_own_with_a_reader_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "myreader.py").write_text(
        "from onellm.eval.annotations import Entry, read_jsonl\n"
        "def mine(files):\n"
        "    for r in read_jsonl(files['lines']):\n"
        "        yield Entry(str(r['n']), r['a'], {'question': r['q'], 'n': r['n']})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "lines.jsonl").write_text('{"n": 1, "q": "How?", "a": "so"}\n')
    (tmp_path / "touch.yaml").write_text(
        "title: Touch\ngroup: g\nabout: a\nsplit: s\nsource: here\nfiles: {lines: lines.jsonl}\n"
        "reader: 'myreader:mine'\nmedia: [{modality: touch, file: 't/{n}.npy'}]\n"
        "prompt: '{question}'\nscorer: {name: exact}\n"
    )
    (item,) = items_of(tmp_path, str(tmp_path / "touch.yaml"))
    assert (item.prompt, item.target, item.media[0].id) == ("How?", "so", "t/1.npy")


# -- readers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BENCHMARKS)
def test_questions_are_whole_and_their_media_are_there(data, name):
    items = items_of(data, name)
    assert len({item.id for item in items}) == len({item.key() for item in items}) == len(items)
    for item in items:
        assert item.prompt.strip() == item.prompt != ""
        assert item.target
        assert "{" not in item.prompt
        json.dumps([item.target, dict(item.meta), item.options])
        for medium in item.media:
            assert all(path.is_file() for path in medium.files)


EXPECTED = {
    "gqa": ("0001", f"Is the mug red?\n{SHORT}", "yes", ["gqa/images/n12.jpg"]),
    "vqav2": (
        *("7000", f"What colour is the mug?\n{SHORT}", ["red"] * 7 + ["maroon"] * 3),
        ["coco/val2014/COCO_val2014_000000000007.jpg"],
    ),
    "textvqa": (
        *("34602", f"what is the brand?\n{SHORT}", ["acme"] * 9 + ["other"]),
        ["textvqa/train_images/003a0.jpg"],
    ),
    "textvqa@ocr": (
        *("34602", f"what is the brand?\nReference OCR token: acme, inc\n{SHORT}"),
        *(["acme"] * 9 + ["other"], ["textvqa/train_images/003a0.jpg"]),
    ),
    "scienceqa": (
        *("11", f"Which is a gas?\nA. rock\nB. air\n{LETTER}", "B"),
        ["scienceqa/images/test/11/image.png"],
    ),
    "vizwiz": (
        "VizWiz_val_00000000.jpg",
        "What is this?\nWhen the provided information is insufficient, respond with "
        f"'Unanswerable'.\n{SHORT}",
        ["soup"] * 8 + ["can"] * 2,
        ["vizwiz/val/VizWiz_val_00000000.jpg"],
    ),
    "nocaps": (
        *("0", "Provide a one-sentence caption for the provided image."),
        *(list(official.CAPTIONS[0]), ["nocaps/val/a0.jpg"]),
    ),
    "mme": (
        "existence/0001/0",
        f"Is there a dog in this picture? Please answer yes or no.\n{SHORT}",
        *("Yes", ["mme/existence/0001.jpg"]),
    ),
    "mmbench": (
        *("241", f"Which colour?\nA. red\nB. green\nC. blue\n{LETTER}", "B"),
        ["mmbench_dev_20230712.tsv/241.jpg"],
    ),
    "mmvet": ("v1_0", "What is x?", "-1<AND>-5", ["mm-vet/images/v1_0.png"]),
    "seed_bench@likelihood": ("101", "How many mugs?", "A", ["seed/SEED-Bench-image/1454_25"]),
    "nextqa": (
        "1001_4",
        f"why did the boy run\nA. late\nB. cold\nC. dog\nD. bored\nE. game\n{LETTER}",
        *("C", ["nextqa/NExTVideo/0042/1001.mp4"]),
    ),
    "msvd_qa": (
        *("35000", f"what is a man doing?\n{SHORT}", "cook"),
        ["MSVD/YouTubeClips/-abcDEF12_34_0_10.avi"],
    ),
    "clotho_aqa": (
        *("rain.wav/Is it raining?", f"Is it raining?\n{SHORT}", ["yes", "yes", "no"]),
        ["clotho_aqa/audio_files/rain.wav"],
    ),
    "music_avqa": (
        *("1", f"How many violin are heard?\n{SHORT}", "two"),
        ["music_avqa/00000093.mp4", "music_avqa/00000093.wav"],
    ),
    "avsd@history+summary": (
        "1",
        "a man walks\nhe walks\nQ: is there a dog? A: no\nwhat does he do?\n"
        "Answer the question and explain the reason in one sentence.",
        *(list(official.CAPTIONS[0]), ["charades/7UPGT.mp4", "charades/7UPGT.wav"]),
    ),
    "objaverse_caption@repository": (
        *("a1b2", "What is this?", [official.CAPTIONS[0][0]]),
        ["pointllm/8192_npy/a1b2_8192.npy"],
    ),
    "nyuv2_depth@pair": (
        "0000",
        "bedroom, kitchen, living room, bathroom, dining room, office, home office, classroom, "
        "bookstore, others\nWhat is the category of this scene? Choice one class from the class "
        "sets.",
        *("kitchen", ["nyuv2/rgb/0.jpg+nyuv2/depth/0.png"]),
    ),
    "ego4d_imu": ("0", "Describe the motion.", ["picks up a cup"], ["ego4d/imu/u.npy#0-1"]),
    "nsd_fmri": (
        *("0", "Describe the scene based on fMRI data."),
        *(list(official.CAPTIONS[0]), ["nsd/0.npy"]),
    ),
    "modelnet40": (
        *("airplane_0001", "What is this?", "airplane"),
        ["ModelNet40/airplane/test/airplane_0001.off"],
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_first_question_is_as_published(data, name):
    item = items_of(data, name)[0]
    found = (item.id, item.prompt, item.target, [medium.id for medium in item.media])
    assert found == EXPECTED[name]


def test_questions_without_a_picture_have_none(data):
    by_id = {item.id: item for item in items_of(data, "scienceqa")}
    assert [len(by_id[key].media) for key in ("11", "12", "13")] == [1, 0, 1]
    assert by_id["12"].prompt.startswith("Think of weight.\nWhich is a gas?")
    assert items_of(data, "scienceqa@no_hint")[1].prompt.startswith("Which is a gas?")
    assert "14" not in by_id, "another split"


def test_what_is_out_of_balance_is_left_out(data):
    assert [item.id for item in items_of(data, "gqa")] == ["0001", "0002", "0003"]


def test_mmbench_takes_copied_pictures_and_passes(data):
    items = items_of(data, "mmbench")
    assert [item.meta["pass"] for item in items] == [0, 1, 2] * 2
    assert [item.target for item in items] == ["B", "A", "C"] * 2
    # Both questions show the same picture, which the file holds once.
    assert len({medium.id for item in items for medium in item.media}) == 1
    assert [item.id for item in items_of(data, "mmbench@vanilla")] == ["241", "242"]


def test_damaged_annotations_are_named(tmp_path):
    path = tmp_path / "gqa" / "testdev_balanced_questions.json"
    path.parent.mkdir()

    def found() -> str:
        with pytest.raises(BadInput) as caught:
            items_of(tmp_path, "gqa")
        return str(caught.value)

    assert "no such file" in found()
    assert found().endswith("onellm show gqa.")
    path.write_text("{oops")
    assert "expected JSON" in found()
    path.write_text('{"1": {"question": "Is it?", "imageId": "a"}}')
    assert "no 'answer'" in found()
    path.write_text('["a"]')
    assert "the format of GQA" in found()
    path.write_text("{}")
    assert "found none" in found()


def test_readers_refuse_halves(tmp_path):
    made = official.Made(tmp_path)
    official.mme(made)
    (tmp_path / "mme/existence/0001.txt").write_text("Is it?\tYes\n")
    with pytest.raises(BadInput, match="expected two questions"):
        items_of(tmp_path, "mme")
    official.nocaps(made)
    file = tmp_path / "nocaps/nocaps_val_4500_captions.json"
    broken = json.loads(file.read_text())
    broken["annotations"] = broken["annotations"][2:]
    file.write_text(json.dumps(broken))
    with pytest.raises(BadInput, match="captions of 0"):
        items_of(tmp_path, "nocaps")
    made.text("nyuv2/scenes.jsonl", '{"id": "1", "depth": "d.png", "scene": "garage"}\n')
    with pytest.raises(BadInput, match="found 'garage'"):
        items_of(tmp_path, "nyuv2_depth")


# -- stretches of time ----------------------------------------------------------------------------


def test_samples_are_cut_by_their_clock(tmp_path):
    x = np.arange(600, dtype=np.float32).reshape(100, 6)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "t.npy", 1000.0 + 20.0 * np.arange(100))  # 50 Hz from 1 s on
    made = Cut("samples", tmp_path / "x.npy", 1.5, 2.0, tmp_path / "t.npy").make()
    assert made["rate_hz"] == pytest.approx(50.0)
    np.testing.assert_array_equal(made["data"], x[25:50])
    with pytest.raises(BadInput, match="a clock of 1 to"):
        Cut("samples", tmp_path / "x.npy", 7.0, 8.0, tmp_path / "t.npy").make()
    with pytest.raises(BadInput, match="end before"):
        Cut("samples", tmp_path / "x.npy", 2.0, 1.0, tmp_path / "t.npy").make()
    np.save(tmp_path / "t.npy", np.arange(99.0))
    with pytest.raises(BadInput, match="100 times"):
        Cut("samples", tmp_path / "x.npy", 0.0, 1.0, tmp_path / "t.npy").make()


def test_frames_are_cut_and_thinned_out(tmp_path):
    path = tmp_path / "clip.mp4"
    official.write_video(path, frames=30)  # 10 Hz
    made = Cut("frames", path, 1.0, 2.0).make()
    assert made["data"].shape == (4, 32, 32, 3)
    assert made["rate_hz"] == pytest.approx(4.0)
    whole = Cut("frames", path, 0.0, 3.0).make()["data"]
    np.testing.assert_array_equal(made["data"][0], whole[4], err_msg="the frame at one second")
    with pytest.raises(BadInput, match="frames in that stretch"):
        Cut("frames", path, 9.0, 10.0).make()
    with pytest.raises(BadInput, match="no such file"):
        Cut("frames", tmp_path / "gone.mp4", 0.0, 1.0).make()


# -- before a model is loaded ---------------------------------------------------------------------


def test_validation_counts_what_is_missing(data, tmp_path):
    official.make(tmp_path, "gqa", "valor32k")
    (tmp_path / "gqa/images/n13.jpg").unlink()
    tasks = load_tasks("gqa,valor32k,vatex,vqav2@test_dev")
    gqa, valor, vatex, vqa = validate(tasks, tmp_path)
    assert gqa.missing == ("gqa/images/n13.jpg",)
    assert str(gqa) == (
        "gqa: 3 questions (the data set has 12578), 1 of 2 media missing: gqa/images/n13.jpg"
    )
    assert valor.ready and valor.media == 6
    assert not vatex.ready and "no such file" in vatex.problem
    assert "onellm show vatex" in vatex.problem
    assert not vqa.ready
    assert all(finding.ready for finding in validate(load_tasks("all"), data))


def test_nothing_heavy_is_imported_to_look_at_data():
    code = (
        "import sys, onellm.eval.validate, onellm.eval.describe, onellm.eval.exports\n"
        "from onellm.eval.task import load_tasks; load_tasks('all')\n"
        "print(sorted({'torch', 'transformers', 'librosa', 'av'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


def test_post_processing_is_the_published_one():
    assert postprocess("  a dog\n### Human: x", ("cut_at_turn", "strip")) == "a dog"
    assert postprocess("\n a\nb", ("first_line",)) == " a"


def test_published_sampling_is_by_name():
    settings = published_sampling(load_task("mmvet"))
    assert (settings.temperature, settings.top_p, settings.max_new_tokens) == (0.1, 0.75, 256)
    assert published_sampling(load_task("gqa")).max_new_tokens == 128


# -- words ----------------------------------------------------------------------------------------


def test_tasks_are_listed_and_shown():
    (table,) = listings("tasks")
    assert {row[0] for row in table.rows} == set(task_names())
    text = describe("textvqa")
    for part in ("textvqa.org", "textvqa/train_images/{image}.jpg", SHORT, "34.0", "textvqa@ocr"):
        assert part in text
    assert "Reference OCR" not in text
    with pytest.raises(ConfigError, match="Did you mean 'textvqa'"):
        describe("textvqaa")
    with pytest.raises(
        ConfigError, match=r"unknown name 'nosuch'. onellm ls lists all there are.$"
    ):
        describe("nosuch")
    assert table.note.startswith("29 tasks are the paper's 27 benchmarks: 2 of these")
    assert "3 extras" in table.note and "4 tasks ask about the starter pack" in table.note


def test_the_documentation_is_made_from_the_files():
    document = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert document == handbook.updated(document), "run: python -m onellm.eval.describe"
    for name in task_names():
        assert f"(`{name}`)" in document


# -- exports --------------------------------------------------------------------------------------


def answered(data: Path, name: str, say: str) -> list[dict]:
    return [
        {
            **{"key": item.key(), "task": item.task, "id": item.id, "prompt": item.prompt},
            **{"media": [], "answer": say, "target": item.target, "meta": dict(item.meta)},
            **{"options": list(item.options)},
        }
        for item in items_of(data, name)
    ]


def exported(data: Path, name: str, out: Path, say: str = " A\n### ", format: str = "") -> str:
    (path,) = export(load_task(name), answered(data, name, say), out, format)
    return path.read_text(encoding="utf-8")


def test_submissions_have_the_official_shape(data, tmp_path):
    assert json.loads(exported(data, "vqav2", tmp_path)) == [
        {"question_id": 7000, "answer": "A"},
        {"question_id": 8001, "answer": "A"},
    ]
    first = json.loads(exported(data, "vizwiz@test", tmp_path))
    assert first == [{"image": "VizWiz_test_00000000.jpg", "answer": "A"}]
    captions = json.loads(exported(data, "nocaps", tmp_path))
    assert captions[0] == {"image_id": 0, "caption": "A"}
    assert json.loads(exported(data, "gqa", tmp_path))[0] == {
        "questionId": "0001",
        "prediction": "A",
    }
    assert json.loads(exported(data, "mmvet", tmp_path)) == {"v1_0": "A", "v1_1": "A"}
    assert json.loads(exported(data, "nextqa", tmp_path))["1001_4"] == {
        "prediction": 0,
        "answer": 2,
    }
    line = json.loads(exported(data, "seed_bench", tmp_path, "Two").splitlines()[0])
    assert line == {"question_id": "101", "prediction": "B"}
    assert json.loads(exported(data, "objaverse_caption", tmp_path))["results"][0] == {
        **{"object_id": "a1b2", "ground_truth": official.CAPTIONS[0][0], "model_output": "A"},
    }
    assert '"text": "A"' in exported(data, "scienceqa", tmp_path)


def test_mmes_pairs_stand_side_by_side(data, tmp_path):
    records = answered(data, "mme", "Yes")
    paths = export(load_task("mme"), records[::-1], tmp_path)
    assert sorted(path.name for path in paths) == ["existence.txt", "landmark.txt"]
    rows = [line.split("\t") for line in (tmp_path / "landmark.txt").read_text().splitlines()]
    assert [len(row) for row in rows] == [4] * 4
    assert rows[0][0] == rows[1][0] != rows[2][0]
    assert {row[2] for row in rows[:2]} == {"Yes", "No"}


def test_mmbench_goes_to_the_server_as_a_table_or_a_workbook(data, tmp_path):
    text = exported(data, "mmbench", tmp_path, format="mmbench_tsv")
    head, *rows = csv.reader(io.StringIO(text), delimiter="\t")
    assert head[:7] == ["index", "question", "A", "B", "C", "D", "prediction"]
    assert rows[1][:7] == ["1000241", "Which colour?", "green", "blue", "red", "", "A"]
    (book,) = export(
        load_task("mmbench"), answered(data, "mmbench", "a < b & c"), tmp_path, "mmbench_xlsx"
    )
    with zipfile.ZipFile(book) as archive:
        sheet = archive.read("xl/worksheets/sheet1.xml").decode()
    assert sheet.count("<row>") == 7
    assert "a &lt; b &amp; c" in sheet
    assert "<v>1000241</v>" in sheet


def test_unknown_formats_are_named(data, tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'vqa'"):
        export(load_task("vqav2"), answered(data, "vqav2", "a"), tmp_path, "vqaa")
    with pytest.raises(ConfigError, match="no official format"):
        export(load_task("msvd_qa"), answered(data, "msvd_qa", "a"), tmp_path)
