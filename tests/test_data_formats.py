"""Records of every format become samples by a YAML alone."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import MODALITIES
from tiny_runs import picture, recording

from onellm.config import parse
from onellm.data.datasets import Collection, DatasetConfig, mixture, open_dataset
from onellm.data.lists import outline
from onellm.data.order import Order
from onellm.data.records import open_text
from onellm.data.sample import Sample
from onellm.data.streams import Shelf
from onellm.errors import BadInput, ConfigError
from onellm.modality import Modality
from onellm.registry import get_modality
from onellm.train.config import DataConfig
from onellm.train.mixture import open_data


@pytest.fixture(scope="module")
def modalities() -> dict[str, Modality]:
    return {name: get_modality(name, **options) for name, options in MODALITIES.items()}


def opened(folder: Path, modalities: dict[str, Modality], **options: Any) -> Collection:
    options["path"] = (
        str(folder / options["path"])
        if isinstance(options["path"], str)
        else [str(folder / p) for p in options["path"]]
    )
    config = parse(DatasetConfig, options, where="test")
    return open_dataset(config, modalities, Shelf(folder / "shelf"))


def only(collection: Collection) -> list[Sample]:
    (samples,) = collection.groups.values()
    return [samples[i] for i in range(len(samples))]


LLAVA = [
    {
        "id": "000000033471",
        "image": "coco/033471.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is this?"},
            {"from": "gpt", "value": "A bus."},
            {"from": "human", "value": "Which colour? ünïcode"},
            {"from": "gpt", "value": "Red."},
        ],
    },
    {
        "id": "chat",
        "conversations": [
            {"from": "gpt", "value": "…and so on."},
            {"from": "human", "value": "Go on."},
            {"from": "gpt", "value": "Yes."},
            {"from": "human", "value": "Thanks!"},
        ],
    },
]


@pytest.mark.parametrize("kind", ["json", "indented json", "jsonl"])
def test_llava(tmp_path, modalities, kind):
    file = tmp_path / ("a.jsonl" if kind == "jsonl" else "a.json")
    if kind == "jsonl":
        file.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n\n" for r in LLAVA))
    else:
        file.write_text(json.dumps(LLAVA, indent=2 if " " in kind else None, ensure_ascii=False))
    (tmp_path / "pictures" / "coco").mkdir(parents=True)
    (tmp_path / "pictures" / "coco" / "033471.png").write_bytes(picture(0))
    made = opened(tmp_path, modalities, path=file.name, media=str(tmp_path / "pictures"))
    assert {group: len(own) for group, own in made.groups.items()} == {"image": 1, "text": 1}
    seen, said = made.groups["image"][0], made.groups["text"][0]
    assert seen.id == "a/000000033471#0"
    assert seen.turns[0] == ("user", "What is this?")
    assert seen.turns[2] == ("user", "Which colour? ünïcode")
    assert [role for role, _ in seen.turns] == ["user", "assistant"] * 2
    (name, source), *_ = seen.media
    assert (name, modalities["image"].load(source).shape) == ("image", (3, 28, 28))
    # What comes before the first question, and a question without an answer, teach nothing.
    assert said.turns == (("user", "Go on."), ("assistant", "Yes."))
    assert not said.media


def test_the_published_table_of_captions(tmp_path, modalities):
    rows = 'caption\turl\n"a ""loud"" dog,\nbarking"\tclips/dog.wav\na 5" pipe\tclips/pipe.wav\n'
    (tmp_path / "wavcaps.csv").write_text(rows)
    made = opened(tmp_path, modalities, path="wavcaps.csv", modality="audio")
    dog, pipe = only(made)
    assert dog.turns == (("assistant", 'a "loud" dog,\nbarking'),)
    assert pipe.turns == (("assistant", 'a 5" pipe'),)
    assert dog.media == (("audio", str(tmp_path / "clips/dog.wav")),)
    asked = only(opened(tmp_path, modalities, path="wavcaps.csv", modality="audio", describe=True))
    assert asked[0].turns[0] == ("user", modalities["audio"].caption_prompt)


def test_a_map_found_by_its_pictures_path(tmp_path, modalities):
    """As the published loader finds depth maps: the folder's name is replaced."""
    (tmp_path / "cc3m.csv").write_text("caption\turl\na house\tdata/cc3m/1.png\n")
    derive = {"depth_image": {"field": "url", "replace": "/cc3m/", "by": "/cc3m_depth/"}}
    made = opened(
        tmp_path,
        modalities,
        **{"path": "cc3m.csv", "fields": {"image": "url"}, "derive": derive},
    )
    (sample,) = only(made)
    pair = (str(tmp_path / "data/cc3m/1.png"), str(tmp_path / "data/cc3m_depth/1.png"))
    assert sample.media == (("depth", pair),)
    for file in pair:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_bytes(picture(1))
    assert modalities["depth"].load(sample.media[0][1]).shape == (2, 3, 28, 28)


def test_the_published_instructions(tmp_path, modalities):
    def record(**fields: Any) -> dict[str, Any]:
        turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]
        return {"id": "1", "conversations": turns, **fields}

    records = [
        record(image="a.png"),
        record(image="a.png", depth_image="d.png"),
        record(image="a.png", normal_image="n.png"),
        record(imu_path="imu", video_uid="u", window_start=0.5, window_end=1.5),
    ]
    (tmp_path / "mixed.json").write_text(json.dumps(records))
    made = opened(tmp_path, modalities, path="mixed.json")
    assert list(made.groups) == ["image", "depth", "normal", "imu"]
    where = str(tmp_path)
    assert made.groups["normal"][0].media == (("normal", (f"{where}/a.png", f"{where}/n.png")),)
    # "image" stands for a file of every modality there; the data set says of which.
    (tmp_path / "audio.json").write_text(json.dumps([record(image="a.wav")]))
    (sample,) = only(opened(tmp_path, modalities, path="audio.json", modality="audio"))
    assert sample.media == (("audio", f"{where}/a.wav"),)
    # Or each record does, by the names of the published code.
    told = [("audio", {"image": "a.wav"}), ("rgbd", {"image": "a.png", "depth_image": "d.png"})]
    told += [("point", {"image": "a.npy"}), ("image", {"image": "a.png"}), ("text", {})]
    lines = [json.dumps(record(data_type=kind, **fields)) for kind, fields in told]
    (tmp_path / "mix.jsonl").write_text("\n".join(lines))
    made = opened(tmp_path, modalities, path="mix.jsonl")
    assert list(made.groups) == ["audio", "depth", "point", "image", "text"]
    assert made.groups["point"][0].media == (("point", f"{where}/a.npy"),)


def test_questions_and_answers_that_are_no_plain_texts(tmp_path, modalities):
    """As the hub's tables have them: lists of answers, numbers; an answer may not be there."""
    asked = [
        *({"question": "How many?", "answer": 0}, {"question": "?", "answer": ["14", "fourteen"]}),
        *({"question": "Why?", "answers": ["so"]}, {"answer": "so"}),
        *({"question": "?", "answer": {"a": 1}}, {"question": "?", "answer": []}),
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, asked)))
    (samples,) = opened(tmp_path, modalities, path="a.jsonl").groups.values()
    assert samples[0].turns == (("user", "How many?"), ("assistant", "0"))
    assert [samples[1].said(epoch)[1][1] for epoch in range(3)] == ["14", "fourteen", "14"]
    for index, message in [
        (2, r"an 'answer' beside its 'question'; found only 'question', 'answers'"),
        (3, "a 'question' beside its 'answer'"),
        (4, "a text under 'answer'; found a dict"),
        (5, "an 'answer' beside its 'question'"),
    ]:
        with pytest.raises(BadInput, match=message):
            samples[index]


def test_a_declared_modality_leaves_others_that_have_fields_of_their_own(tmp_path, modalities):
    (tmp_path / "a.jsonl").write_text('{"image": "a.png", "audio": "a.wav", "caption": "x"}')
    made = opened(tmp_path, modalities, path="a.jsonl", modality="audio")
    assert list(made.groups) == ["image+audio"]


def test_imu_windows(tmp_path, modalities):
    time_ms = np.arange(0, 20_000, 20.0)  # 50 Hz
    x_TC = np.stack([np.full(6, t / 1000) for t in time_ms])
    np.save(tmp_path / "u.npy", x_TC.T)
    np.save(tmp_path / "u_timestamps.npy", time_ms)
    window = {"video_uid": "u", "window_start": 4.0, "window_end": 4.2}
    records = [
        window | {"text": ["C walks", "C runs", "C rests"]},
        window | {"window_start": 30.0, "window_end": 31.0, "text": "nothing there"},
        window | {"window_end": 3.9, "text": "backwards"},
    ]
    (tmp_path / "imu.json").write_text(json.dumps(records))
    sample, late, empty = only(opened(tmp_path, modalities, path="imu.json"))
    signal = modalities["imu"].load(sample.media[0][1])  # 40 steps at 200 Hz are 0.2 s
    assert signal.shape == (6, 40)
    assert signal[0, 0].item() == pytest.approx(4.0, abs=0.05)
    assert signal[0, 30].item() == pytest.approx(4.15, abs=0.05)
    for bad in (late, empty):
        with pytest.raises(BadInput, match=r"u\.npy: expected at least 10 samples from"):
            modalities["imu"].load(bad.media[0][1])
    # Several captions: each time round another one.
    assert [sample.said(epoch)[0][1] for epoch in range(4)] == [
        *("C walks", "C runs", "C rests", "C walks")
    ]


def test_our_own_form_nests_any_media(tmp_path, modalities):
    np.save(tmp_path / "m.npy", np.zeros((50, 6)))
    record = {
        "id": "x",
        "media": [
            ["audio", "a.wav"],
            ["imu", {"data": "m.npy", "rate_hz": 50}],
            ["image", "a.png"],
        ],
        "turns": [["user", "Which?"], ["assistant", "All."]],
    }
    (tmp_path / "own.jsonl").write_text(json.dumps(record) + "\n")
    (sample,) = only(opened(tmp_path, modalities, path="own.jsonl"))
    assert [name for name, _ in sample.media] == ["audio", "imu", "image"]
    assert sample.media[1][1] == {"data": str(tmp_path / "m.npy"), "rate_hz": 50}
    assert sample.turns == (("user", "Which?"), ("assistant", "All."))


def test_lists_of_files_messages_and_renamed_fields(tmp_path, modalities):
    record = {
        "pics": ["a.png", "b.png"],
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Same?"}]},
            {"role": "assistant", "content": "No."},
        ],
    }
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    (sample,) = only(opened(tmp_path, modalities, path="a.jsonl", fields={"image": "pics"}))
    assert [Path(s).name for _, s in sample.media] == ["a.png", "b.png"]
    assert sample.turns == (("user", "Be brief.\n\nSame?"), ("assistant", "No."))


def test_parquet(tmp_path, modalities):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(
        [
            {"image": {"bytes": picture(i), "path": None}, "problem": "What?", "answer": f"{i}"}
            for i in range(3)
        ]
    ).cast_column("image", datasets.Image())
    table.to_parquet(str(tmp_path / "a.parquet"))
    table.save_to_disk(str(tmp_path / "saved"))
    for options in ({"path": "a.parquet"}, {"path": "saved", "format": "hub"}):
        made = opened(tmp_path, modalities, fields={"question": "problem"}, **options)
        samples = only(made)
        assert [s.turns[1][1] for s in samples] == ["0", "1", "2"]
        signal = modalities["image"].load(samples[1].media[0][1])
        assert signal.shape == (3, 28, 28)


def test_parquet_of_messages_and_lists_of_pictures(tmp_path, modalities):
    """Parts of messages have all the fields of one another there, most of them empty."""
    datasets = pytest.importorskip("datasets")
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "Same?"}]
    said = [("user", parts), ("assistant", [{"type": "text", "text": "No."}])]
    row = {
        "images": [{"bytes": picture(i), "path": None} for i in range(2)],
        "messages": [{"role": role, "content": content} for role, content in said],
    }
    part = {"type": datasets.Value("string"), "text": datasets.Value("string")}
    message = {"role": datasets.Value("string"), "content": [part]}
    features = {"images": datasets.Sequence(datasets.Image()), "messages": [message]}
    table = datasets.Dataset.from_list([row], features=datasets.Features(features))
    table.to_parquet(str(tmp_path / "a.parquet"))
    made = opened(tmp_path, modalities, path="a.parquet", fields={"image": "images"})
    (sample,) = only(made)
    assert sample.turns == (("user", "Same?"), ("assistant", "No."))
    assert [source.data for _, source in sample.media] == [picture(0), picture(1)]
    short = outline(made.groups["image"], 0)
    assert short.turns == sample.turns
    assert [len(source.data) for _, source in short.media] == [1, 1]


def test_parquet_with_records_that_have_no_picture(tmp_path, modalities):
    """Questions may be about none; a caption of none would be learned as a text of nothing."""
    datasets = pytest.importorskip("datasets")
    rows = [
        {"image": {"bytes": picture(i), "path": None} if i % 2 else None, "caption": f"{i}"}
        for i in range(4)
    ]
    asked = [{"image": row["image"], "question": "?", "answer": row["caption"]} for row in rows]
    for name, records in (("caption", rows), ("asked", asked)):
        table = datasets.Dataset.from_list(records).cast_column("image", datasets.Image())
        table.to_parquet(str(tmp_path / f"{name}.parquet"))
    made = opened(tmp_path, modalities, path="asked.parquet")
    assert {group: len(own) for group, own in made.groups.items()} == {"text": 2, "image": 2}
    samples = made.groups["image"]
    text, whole = outline(samples, 1), samples[1]
    assert (text.id, text.turns) == (whole.id, whole.turns)
    assert len(whole.media[0][1].data) > len(text.media[0][1].data) == 1
    made = opened(tmp_path, modalities, path="caption.parquet")
    assert {group: len(own) for group, own in made.groups.items()} == {"image": 4}
    with pytest.raises(BadInput, match="a file under 'image', of which the text is a caption"):
        made.groups["image"][0]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "caption,url\ra,b\r", "a header line of two or more columns"),
        ("a.csv", 'caption,url\na,b\n"' + "x\n" * 600_000, "row that begins at line 3"),
        ("a.json", "[" * 3000, "valid JSON"),
        ("a.json", "", "an empty one"),
        ("a.json", '{"a": 1}', "expected a JSON list"),
        ("a.json", '[{"a": 1}', "cut off"),
        ("a.json", '[{"a": 1}, {"b": ', "valid JSON"),
        ("a.csv", "one line\n", "two or more columns"),
        ("a.docx", "", "give its format"),
        ("gone/a.json", None, "no such file"),
        ("a.json", "[]", "found none"),
    ],
)
def test_bad_files_are_refused(tmp_path, modalities, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises((BadInput, ConfigError), match=message):
        opened(tmp_path, modalities, path=name)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_captions_of_files_need_a_modality(tmp_path, modalities, name):
    """They would be learned without the files, as texts alone."""
    rows = "caption,url\na dog,a.png\na cat,b.png\n"
    lines = '{"caption": "a dog", "url": "a.png"}\n'
    (tmp_path / name).write_text(rows if name == "a.csv" else lines)
    with pytest.raises(BadInput, match=r"a/#0: .* under 'url'.*Set 'modality'"):
        opened(tmp_path, modalities, path=name)
    assert list(opened(tmp_path, modalities, path=name, modality="image").groups) == ["image"]


def test_a_run_of_one_modality_needs_not_be_told_what_a_table_holds(tmp_path, modalities):
    """The published alignment table, named by an override of ``align_image``."""
    (tmp_path / "a.csv").write_text("caption\turl\na lamp\tb.png\n")
    (tmp_path / "b.png").write_bytes(picture(0))
    data = parse(DataConfig, {"datasets": str(tmp_path / "a.csv")}, where="test")
    drawn = open_data(data, modalities, ["image"])
    assert [part.group for part in drawn.parts] == ["image"]
    assert drawn.kept[0][0].media == (("image", str(tmp_path / "b.png")),)
    with pytest.raises(BadInput, match="Set 'modality'"):
        open_data(data, modalities, ["image", "audio"])


def test_numbers_in_a_record_are_a_signal(tmp_path, modalities):
    x_TC = np.random.default_rng(0).standard_normal((50, 6)).round(3)
    records = [
        {"imu": x_TC.tolist(), "caption": "walking"},
        {"imu": {"data": x_TC.tolist(), "rate_hz": 50}, "caption": "walking"},
        {"media": [["imu", x_TC.tolist()]], "caption": "walking"},
    ]
    (tmp_path / "a.json").write_text(json.dumps(records))
    np.save(tmp_path / "a.npy", x_TC)
    samples = only(opened(tmp_path, modalities, path="a.json"))
    imu = modalities["imu"]
    plain = imu.load(str(tmp_path / "a.npy"))
    slow = imu.load({"data": str(tmp_path / "a.npy"), "rate_hz": 50})
    for sample, signal in zip(samples, (plain, slow, plain), strict=True):
        ((name, source),) = sample.media
        assert name == "imu"
        assert (imu.load(source) - signal).abs().max() < 1e-5


def test_sound_in_a_record(tmp_path, modalities):
    x_T = np.sin(np.arange(8000) / 10).round(4)
    record = {"audio": {"array": x_T.tolist(), "sampling_rate": 16_000}, "caption": "a tone"}
    (tmp_path / "a.json").write_text(json.dumps([record]))
    (sample,) = only(opened(tmp_path, modalities, path="a.json"))
    signal = modalities["audio"].load(sample.media[0][1])
    want = modalities["audio"].load({"data": x_T, "rate_hz": 16_000})
    assert (signal - want).abs().max() < 1e-4


@pytest.mark.parametrize("value", ["5", "{}", '["a.png", null]', "true", "[[1, 2], [3]]"])
def test_what_is_no_file_is_named_by_its_record(tmp_path, modalities, value):
    (tmp_path / "a.jsonl").write_text(f'{{"id": "x", "image": {value}, "caption": "y"}}')
    (samples,) = opened(tmp_path, modalities, path="a.jsonl").groups.values()
    with pytest.raises(BadInput, match="a/x#0"):
        samples[0]


def test_bad_records_name_file_and_place(tmp_path, modalities):
    lines = ['{"caption": "fine", "path": "a.wav"}', '{"caption"', "[1]"]
    lines.append('{"path": "a.wav", "conversations": [{"from": "cat", "value": "meow"}]}')
    lines.append('{"path": "a.wav", "conversations": "talk"}')
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    made = opened(tmp_path, modalities, path="a.jsonl", modality="audio")
    (samples,) = made.groups.values()
    assert samples[0].turns
    for index, message in [(1, "record 1"), (2, "an object"), (3, "'cat'"), (4, "a list under")]:
        with pytest.raises(BadInput, match=message):
            samples[index]
    with pytest.raises(ConfigError, match="Did you mean 'audio'"):
        opened(tmp_path, modalities, path="a.jsonl", modality="audoi")
    with pytest.raises(ConfigError, match="unknown key"):
        opened(tmp_path, modalities, path="a.jsonl", modalty="audio")


def test_records_are_not_held_in_memory(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{"n": i, "text": "x" * 50} for i in range(200)]))
    records = open_text(file, "json")
    assert [records[i]["n"] for i in (0, 199, 7)] == [0, 199, 7]
    assert records.spans_N2.nbytes == 200 * 16


# -- mixtures -------------------------------------------------------------------------------


def collection(name: str, size: int, **options: Any) -> Collection:
    samples = [Sample(f"{name}{i}", (), (("assistant", "a"),)) for i in range(size)]
    return Collection(DatasetConfig(path=name, name=name, **options), {"text": samples})


def test_by_size_each_data_set_is_gone_through_as_often_as_its_epochs_say():
    parts, _ = mixture([collection("a", 12), collection("b", 5, epochs=3)])
    order = Order(parts, seed=0, batch=1)
    assert order.epoch_length == 12 + 15
    draws = [order.draw(n) for n in range(order.epoch_length)]
    assert sorted(d.index for d in draws if d.part == 0) == list(range(12))
    assert sorted(d.index for d in draws if d.part == 1) == sorted(list(range(5)) * 3)


def test_by_weight_sizes_do_not_matter():
    parts, _ = mixture([collection("a", 10, weight=3), collection("b", 500, weight=1)])
    order = Order(parts, seed=0, batch=1)
    draws = [order.draw(n).part for n in range(2040)]
    assert draws.count(0) / draws.count(1) == pytest.approx(3, rel=0.03)


def test_impossible_mixtures():
    with pytest.raises(ConfigError, match="a has a weight, b has none"):
        mixture([collection("a", 1, weight=1), collection("b", 1)])
    with pytest.raises(ConfigError, match="its own name"):
        mixture([collection("a", 1), collection("a", 1)])


def test_recordings_and_pictures_in_one_table(tmp_path, modalities):
    (tmp_path / "m.npy").write_bytes(recording(0))
    (tmp_path / "a.png").write_bytes(picture(0))
    lines = [{"image": "a.png", "text": "a"}, {"image": "a.png", "imu": "m.npy", "text": "b"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    made = opened(tmp_path, modalities, path="a.jsonl")
    assert set(made.groups) == {"image", "image+imu"}
    for name, source in made.groups["image+imu"][0].media:
        assert modalities[name].load(source).ndim >= 2


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "a slice"])
def test_parquet_of_messages_of_which_some_have_a_picture(tmp_path, modalities, cut):
    datasets = pytest.importorskip("datasets")
    shown = {"type": "image", "image": "a.png", "text": None}
    asked = {"type": "text", "image": None, "text": "Well?"}
    told = {"role": "assistant", "content": [asked | {"text": "No."}]}
    contents = [[shown, asked], None, [asked], [shown], [asked], [asked, shown]]
    rows = [{"messages": [{"role": "user", "content": own}, told]} for own in contents]
    rows[1]["messages"] = [told]
    table = datasets.Dataset.from_list(rows)
    if cut:
        table = table.select(range(1, 6))
    table.save_to_disk(str(tmp_path / "saved"))
    made = opened(tmp_path, modalities, path="saved", format="hub")
    found = {g: [int(s.id.rpartition("#")[2]) for s in own] for g, own in made.groups.items()}
    wanted = {"image": [0, 3, 5], "text": [1, 2, 4]}
    assert found == {g: [n - cut for n in own if n >= cut] for g, own in wanted.items()}


@pytest.mark.parametrize("ours", ["media", "data_type"])
def test_a_column_that_tells_the_modality_may_have_another_name(tmp_path, modalities, ours):
    """What it holds tells it, in each row anew; that it holds something does not."""
    datasets = pytest.importorskip("datasets")
    names = ["image", "imu", "imu"]
    rows = [{"url": "a.png", "their": name, "caption": "a chair"} for name in names]
    if ours == "media":
        rows = [{"their": [[name, "a.png"]], "caption": "a chair"} for name in names]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "a.parquet"))
    made = opened(tmp_path, modalities, path="a.parquet", fields={ours: "their"})
    assert {group: len(own) for group, own in made.groups.items()} == {"image": 1, "imu": 2}


def test_a_column_of_a_csv_that_tells_the_modality_may_have_another_name(tmp_path, modalities):
    (tmp_path / "a.csv").write_text("url,kind,caption\na.png,image,a\na.npy,imu,b\n")
    made = opened(tmp_path, modalities, path="a.csv", fields={"data_type": "kind"})
    assert {group: len(own) for group, own in made.groups.items()} == {"image": 1, "imu": 1}


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_finding_records_takes_a_few_numbers_for_each_and_not_the_file(tmp_path, kind):
    """Tables of 10^8 rows are opened by each process of a machine."""
    words, count = "of a chair " * 20, 20_000
    lines = [f"{words}\ta{n}.png" for n in range(count)]
    if kind == "jsonl":
        lines = [json.dumps({"caption": words, "image": f"a{n}.png"}) for n in range(count)]
    file = tmp_path / f"a.{kind}"
    file.write_text("\n".join(["caption\turl"] * (kind == "csv") + lines))
    tracemalloc.start()
    try:
        assert len(open_text(file, kind)) == count
        assert tracemalloc.get_traced_memory()[1] < 100 * count
    finally:
        tracemalloc.stop()
