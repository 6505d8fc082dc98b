"""Where the data of benchmarks lie, and what real copies of them look like that examples do not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import official
import pytest

from onellm.catalogue import describe
from onellm.errors import BadInput
from onellm.eval.annotations import read_table
from onellm.eval.cuts import Cut
from onellm.eval.items import Item, build_items, entries
from onellm.eval.task import load_task, load_tasks
from onellm.eval.validate import validate


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return official.make(tmp_path_factory.mktemp("benchmarks"))


def items_of(data: Path, name: str) -> list[Item]:
    return build_items(load_task(name), data)


def test_how2qas_options_are_shuffled_and_the_answer_goes_with_them(data):
    table = items_of(data, "how2qa")
    right = ["at home", "an onion"]
    for item, text in zip(table, right, strict=True):
        assert item.options["ABCD".index(item.target)] == text
        assert sorted(item.options) == sorted({*item.options})
    assert [i.options for i in table] == [i.options for i in items_of(data, "how2qa")]
    (value,) = items_of(data, "how2qa@value")
    assert value.options == ("at sea", "in a car", "at home", "on a bed")
    assert value.target == "C"


def test_how2qas_minute_is_found_in_clips_and_in_whole_videos(data, tmp_path):
    first, second = (item.media[0].id for item in items_of(data, "how2qa"))
    assert (first, second) == ("how2qa/abc_60_120.mp4", "how2qa/abd_0_60.mp4")
    (stretch, _) = (item.media[0].id for item in items_of(data, "how2qa@stretch"))
    assert stretch == "how2qa/abc_60_120.mp4#1.5-10"
    (whole, _) = (item.media[0].id for item in items_of(data, "how2qa@whole"))
    assert whole == "how2qa/abc.mp4#60-120"
    (value,) = items_of(data, "how2qa@value+stretch")
    assert value.media[0].id == "how2qa/abc_60_120.mp4#0.1-0.9"
    rows = [("vid_id", "timesteps", "a", "b", "c", "question", "right")]
    rows += [("v", "[61:62]", "a", "b", "c", "q", "d")]
    official.Made(tmp_path).table("how2qa/how2QA_val_release.csv", rows)
    (only,) = items_of(tmp_path, "how2qa")  # names of columns are no question
    assert only.media[0].id == "how2qa/v_60_120.mp4"
    official.Made(tmp_path).table("how2qa/how2QA_val_release.csv", [*rows, ("v", "soon", *"abcqd")])
    with pytest.raises(BadInput, match=r"stretch such as \[61.5:70\]; found 'soon'"):
        items_of(tmp_path, "how2qa")


def test_avsds_references_go_by_name_or_by_place(data, tmp_path):
    found = {item.media[0].id: item for item in items_of(data, "avsd")}
    assert found["charades/7UPGT.mp4"].target == list(official.CAPTIONS[0])
    assert found["charades/8ABCD.mp4"].target == list(official.CAPTIONS[1])
    made = official.Made(tmp_path)
    official.avsd(made)
    file = tmp_path / "avsd/test_set4DSTC7-AVSD_multiref.json"
    references = json.loads(file.read_text())
    for number in (0, 1):  # whatever they are counted from
        images = [{"id": n + number} for n in range(2)]
        texts = {n + number: list(official.CAPTIONS[n]) for n in range(2)}
        made.json("avsd/" + file.name, official.coco_file(images, texts))
        items = items_of(tmp_path, "avsd")
        assert [item.target for item in items] == [list(official.CAPTIONS[n]) for n in range(2)]
        assert [item.id for item in items] == [str(n + number) for n in range(2)]
    references["images"][0]["name"] = "other_2"
    file.write_text(json.dumps(references))
    with pytest.raises(BadInput, match="references of 8ABCD"):
        items_of(tmp_path, "avsd")


def test_media_may_lie_in_either_of_two_layouts(data, tmp_path):
    official.make(tmp_path, "avsd", "nsd_fmri")
    (tmp_path / "charades").rename(tmp_path / "all")
    (tmp_path / "charades").mkdir()
    (tmp_path / "all").rename(tmp_path / "charades/Charades_vu17_test")
    here, there = items_of(data, "avsd")[0], items_of(tmp_path, "avsd")[0]
    assert there.media[0].source.endswith("charades/Charades_vu17_test/7UPGT.mp4")
    assert here.key() == there.key(), "where a file lies is no part of what an answer depends on"
    assert validate(load_tasks("avsd"), tmp_path)[0].ready
    file = tmp_path / "nsd/fmri_eval_cococap.json"
    file.write_text(file.read_text().replace('"file_name": "', '"file_name": "somewhere/else/'))
    assert items_of(tmp_path, "nsd_fmri")[0].media[0].source == str(tmp_path / "nsd/0.npy")
    assert "or charades/Charades_vu17_test/{video}.mp4" in describe("avsd")


def test_a_few_questions_are_whole_pairs_and_passes(data):
    pairs = build_items(load_task("mme"), data, limit=3)
    assert len(pairs) == 4
    assert len({item.meta["image"] for item in pairs}) == 2
    circular = build_items(load_task("mmbench"), data, limit=1)
    assert [item.meta["pass"] for item in circular] == [0, 1, 2]
    assert len(build_items(load_task("gqa"), data, limit=2)) == 2


@pytest.mark.parametrize(
    ("name", "file", "medium"),
    [
        ("clotho", "clothov2/eval_cococap_ann.json", "clothov2/evaluation/a b.wav"),
        ("vatex", "vatex/vatex_cococap.json", "vatex/a b.mp4"),
        ("valor32k", "valor32k/test_ann_cococap.json", "valor32k/a b.mp4"),
    ],
)
def test_the_authors_files_load_without_conversion(tmp_path, name, file, medium):
    suffix = ".wav" if name == "clotho" else ".mp4"
    images = [{"id": 7, "file_name": f"a b{suffix}"}]
    official.Made(tmp_path).json(file, official.coco_file(images, {7: ["a dog", "a cat"]}))
    (item,) = items_of(tmp_path, f"{name}@cococap")
    assert (item.id, item.target, item.media[0].id) == ("7", ["a dog", "a cat"], medium)


def test_shapes_are_meshes_or_clouds(tmp_path):
    made = official.Made(tmp_path)
    official.modelnet40(made)
    made.arrays((64, 3), "ModelNet40/bed/test/bed_0516.npy")
    made.text("ModelNet40/bed/test/notes.txt", "")
    assert [item.id for item in items_of(tmp_path, "modelnet40")] == [
        *("airplane_0001", "bed_0516", "night_stand_0001")
    ]


def test_a_letter_is_the_answer_to_few_of_many_how2qa_questions(tmp_path):
    rows = [("v", "[0:1]", "a", "b", "c", f"q{n}", "d") for n in range(400)]
    official.Made(tmp_path).table("how2qa/how2QA_val_release.csv", rows)
    letters = [entry.target for entry in entries(load_task("how2qa"), tmp_path)]
    assert max(letters.count(letter) for letter in "ABCD") < 140


def test_seeds_videos_are_cut_to_their_segment(data):
    by_id = {item.id: item.media[0] for item in items_of(data, "seed_bench")}
    assert by_id["v1"].id.endswith("#0.2-0.9")
    assert isinstance(by_id["v1"].source, Cut)
    assert by_id["v2"].open() == str(data / "seed/dimension10/1.webm.mp4")
    assert by_id["v3"].id.endswith("P06_cereals.mp4#0.2-0.8"), "frames 3 to 12 of 15 a second"
    assert [m.modality for m in by_id.values()] == ["image"] * 2 + ["video"] * 3
    assert by_id["101"].open().name.endswith("1454_25.jpg")


def test_rows_of_a_table_end_at_line_ends_alone(tmp_path):
    file = tmp_path / "table.csv"
    file.write_bytes('a,b\r\none\u2028line,"two\nlines"\r\nx\x85y,z\n'.encode())
    rows = list(read_table(file, ("a", "b")))
    assert rows == [{"a": "one\u2028line", "b": "two\nlines"}, {"a": "x\x85y", "b": "z"}]


def test_what_lies_beside_mmes_subtasks_is_no_subtask(tmp_path):
    made = official.Made(tmp_path)
    official.mme(made)
    found = [item.id for item in items_of(tmp_path, "mme")]
    made.text("mme/eval_tool/readme.txt", "how to")
    assert [item.id for item in items_of(tmp_path, "mme")] == found
    subtasks = list(dict.fromkeys(key.partition("/")[0] for key in found))
    assert subtasks == sorted(subtasks)


def test_stretches_that_a_recording_lacks_are_counted(tmp_path):
    official.make(tmp_path, "ego4d_imu")
    (whole,) = validate(load_tasks("ego4d_imu"), tmp_path)
    assert whole.ready
    np.save(tmp_path / "ego4d/imu/u_timestamps.npy", np.arange(400) * 2.0)  # to 0.8 s
    (short,) = validate(load_tasks("ego4d_imu"), tmp_path)
    assert not short.ready and len(short.missing) == 1
    assert "1 to 2 s (a clock of 0 to 0.798 s)" in short.missing[0]
