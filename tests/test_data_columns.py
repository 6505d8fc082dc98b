"""Which fields are read as what: decided over all records, told, and never by leaving media out."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from tiny import MODALITIES
from tiny_runs import opened, picture, write_tar

from onellm.config import parse
from onellm.data.records import open_text
from onellm.errors import BadInput, ConfigError
from onellm.modality import Modality
from onellm.registry import get_modality
from onellm.train.config import DataConfig
from onellm.train.mixture import open_data


@pytest.fixture(scope="module")
def modalities() -> dict[str, Modality]:
    return {name: get_modality(name, **options) for name, options in MODALITIES.items()}


def sizes(path: Path, modalities: dict[str, Modality], **options: Any) -> dict[str, int]:
    made = opened(str(path), modalities, **options)
    return {group: len(own) for group, own in made.groups.items()}


def jsonl(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


# -- empty cells -----------------------------------------------------------------------------


def test_an_empty_cell_in_the_first_row_says_nothing_of_the_table(tmp_path, modalities):
    (tmp_path / "a.csv").write_text("caption\turl\na dog\t\na cat\tb.wav\na cow\tc.wav\n")
    made = opened(str(tmp_path / "a.csv"), modalities, modality="audio")
    (samples,) = made.groups.values()
    assert list(made.groups) == ["audio"]
    assert samples[1].media == (("audio", str(tmp_path / "b.wav")),)
    with pytest.raises(BadInput, match=r"d/#0: expected a file under 'url'.*found nothing"):
        samples[0]
    assert made.notes == ["d/audio: audio from 'url', text from 'caption'"]


def test_rows_are_put_apart_by_what_each_of_them_has(tmp_path, modalities):
    rows = "question,answer,image,audio\nq,a,,\nq,a,b.png,\nq,a,,c.wav\nq,a,b.png,c.wav\nq,a,,\n"
    (tmp_path / "a.csv").write_text(rows)
    want = {"text": 2, "image": 1, "audio": 1, "image+audio": 1}
    assert sizes(tmp_path / "a.csv", modalities) == want


def test_texts_are_taken_from_where_there_is_one(tmp_path, modalities):
    (tmp_path / "a.csv").write_text("caption,question,answer,image\na dog,,,a.png\n,q,a,a.png\n")
    (samples,) = opened(str(tmp_path / "a.csv"), modalities).groups.values()
    assert samples[0].turns == (("assistant", "a dog"),)
    assert samples[1].turns == (("user", "q"), ("assistant", "a"))
    jsonl(tmp_path / "a.jsonl", {"conversations": None, "caption": "a dog", "image": "a.png"})
    (samples,) = opened(str(tmp_path / "a.jsonl"), modalities).groups.values()
    assert samples[0].turns == (("assistant", "a dog"),)


def test_rows_of_another_length_are_no_kind_of_their_own(tmp_path, modalities):
    (tmp_path / "a.csv").write_text("caption,image\none,a.png,more\ntwo,a.png\nthree\nfour,a.png\n")
    made = opened(str(tmp_path / "a.csv"), modalities)
    assert {group: len(own) for group, own in made.groups.items()} == {"image": 4}
    with pytest.raises(BadInput, match=r"record 2, line 4: .*1 cells under 2 titles"):
        made.groups["image"][2]


@pytest.mark.parametrize("empty", ['""', "null", "[]"])
def test_an_empty_field_is_no_medium(tmp_path, modalities, empty):
    turns = '"conversations": [["user", "Hm?"], ["assistant", "Yes."]]'
    lines = [f'{{"image": {empty}, "text": "a dog"}}', '{"image": "a.png", "text": "a cat"}']
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, f'{{"image": {empty}, {turns}}}']))
    made = opened(str(tmp_path / "a.jsonl"), modalities)
    assert {group: len(own) for group, own in made.groups.items()} == {"image": 2, "text": 1}
    with pytest.raises(BadInput, match="a file under 'image'"):
        made.groups["image"][0]


def test_a_declared_modality_needs_its_file(tmp_path, modalities):
    jsonl(tmp_path / "a.jsonl", {"audio": "a.wav", "caption": "x"}, {"caption": "y"})
    (samples,) = opened(str(tmp_path / "a.jsonl"), modalities, modality="audio").groups.values()
    with pytest.raises(BadInput, match=r"d/#1: expected a file of audio.*fields 'caption'"):
        samples[1]


# -- files that nobody would read ------------------------------------------------------------


@pytest.mark.parametrize(
    "record",
    [
        {"picture": "a.png", "caption": "x"},
        {"pictures": ["a.png", "b.png"], "question": "x", "answer": "y"},
        {"clip": {"bytes": "…", "path": None}, "caption": "x"},
        {"path": "a.wav", "conversations": [["user", "Hm?"], ["assistant", "Yes."]]},
    ],
)
def test_a_file_under_a_name_that_says_nothing_is_not_passed_over(tmp_path, modalities, record):
    path = jsonl(tmp_path / "a.jsonl", record)
    field = next(iter(record))
    with pytest.raises(BadInput, match=rf"tells the modality.*fields: {{MODALITY: {field}}}"):
        opened(str(path), modalities)
    assert sizes(path, modalities, modality="text") == {"text": 1}


def test_a_question_about_a_medium_that_is_not_there(tmp_path, modalities):
    def asked(text: str) -> dict[str, Any]:
        return {"conversations": [["user", text], ["assistant", "Use <video> in HTML."]]}

    path = jsonl(tmp_path / "a.jsonl", asked("<image>\nWhat?"), asked("What is <video> good for?"))
    (samples,) = opened(str(path), modalities).groups.values()
    with pytest.raises(BadInput, match="d/#0: expected a medium for <image> of its question"):
        samples[0]
    # And what is no mark of a medium stays in a text.
    turns = (("user", "What is <video> good for?"), ("assistant", "Use <video> in HTML."))
    assert samples[1].turns == turns


def test_media_inside_messages(tmp_path, modalities):
    def message(*parts: Any) -> dict[str, Any]:
        said = [{"role": "user", "content": [*parts, {"type": "text", "text": "Same?"}]}]
        return {"messages": [*said, {"role": "assistant", "content": "No."}]}

    one, two = ({"type": "image", "image": f"{n}.png"} for n in "ab")
    path = jsonl(tmp_path / "a.jsonl", message(one, two, {"type": "audio", "audio": "c.wav"}))
    (sample,) = opened(str(path), modalities).groups["image+audio"]
    assert [Path(source).name for _, source in sample.media] == ["a.png", "b.png", "c.wav"]
    address = {"type": "image_url", "image_url": {"url": "https://host/a.png"}}
    (samples,) = opened(str(jsonl(path, message(address))), modalities).groups.values()
    with pytest.raises(BadInput, match="media in messages; found the field"):
        samples[0]


def test_lists_of_unequal_lengths_lose_nothing(tmp_path, modalities):
    record = {"image": ["a.png", "b.png"], "depth_image": ["c.png"], "caption": "x"}
    (samples,) = opened(str(jsonl(tmp_path / "a.jsonl", record)), modalities).groups.values()
    with pytest.raises(BadInput, match=r"as many files under each of .*found 1 and 2"):
        samples[0]


def test_a_path_that_is_not_derived_is_not_the_other_ones(tmp_path, modalities):
    """The picture would be its own depth map."""
    (tmp_path / "a.csv").write_text("caption\turl\na house\tdata/cc12m/1.png\n")
    derive = {"depth_image": {"field": "url", "replace": "/cc3m/", "by": "/cc3m_depth/"}}
    with pytest.raises(BadInput, match=r"'/cc3m/' in 'url'.*found 'data/cc12m/1\.png'"):
        opened(str(tmp_path / "a.csv"), modalities, fields={"image": "url"}, derive=derive)


def test_addresses_of_single_media(tmp_path, modalities):
    path = jsonl(tmp_path / "a.jsonl", {"image": "https://host/a.png", "caption": "x"})
    (samples,) = opened(str(path), modalities).groups.values()
    with pytest.raises(BadInput, match=r"the address https://host/a\.png"):
        samples[0]


# -- names of fields -------------------------------------------------------------------------


def test_names_of_fields_that_no_record_has(tmp_path, modalities):
    (tmp_path / "a.csv").write_text("TEXT\timage\na dog\ta.png\n")
    jsonl(tmp_path / "a.jsonl", {"caption": "x"}, {"TEXT": "a dog", "image": "a.png"})
    for name in ("a.csv", "a.jsonl"):
        with pytest.raises(ConfigError, match=r"no field 'TXT'\. Did you mean 'TEXT'\?"):
            opened(str(tmp_path / name), modalities, fields={"caption": "TXT"})
    derive = {"depth_image": {"field": "url", "replace": "a", "by": "b"}}
    with pytest.raises(ConfigError, match=r"derive: depth_image: no field 'url'"):
        opened(str(tmp_path / "a.csv"), modalities, derive=derive)
    with pytest.raises(ConfigError, match=r"the fields TEXT, image; expected one of caption, text"):
        opened(str(tmp_path / "a.csv"), modalities)
    made = opened(str(tmp_path / "a.csv"), modalities, fields={"caption": "TEXT"})
    assert made.notes == ["d/image: image from 'image', text from 'TEXT'"]


def test_a_table_in_another_encoding(tmp_path, modalities):
    (tmp_path / "a.csv").write_bytes("caption\turl\na dog\ta.wav\n".encode("utf-16"))
    with pytest.raises(BadInput, match=r"a\.csv: expected a table in UTF-8"):
        opened(str(tmp_path / "a.csv"), modalities, modality="audio")


def test_an_empty_row_is_no_text(tmp_path, modalities):
    (tmp_path / "a.csv").write_text("caption\turl\n\t\na dog\ta.wav\n")
    (samples,) = opened(str(tmp_path / "a.csv"), modalities, modality="audio").groups.values()
    with pytest.raises(BadInput, match="d/#0: expected a medium or a text; found neither in"):
        samples[0]


def test_a_table_without_its_line_of_titles(tmp_path, modalities):
    (tmp_path / "a.csv").write_text("a dog\tclips/dog.wav\na cat\tclips/cat.wav\n")
    with pytest.raises(ConfigError, match="first line is to hold the titles"):
        opened(str(tmp_path / "a.csv"), modalities, modality="audio")


def test_what_is_not_read_is_told(tmp_path, modalities):
    record = {"id": "7", "image": "a.png", "caption": "x", "licence": "CC0", "width": 3}
    made = opened(str(jsonl(tmp_path / "a.jsonl", record)), modalities)
    assert made.notes == [
        "d/image: image from 'image', text from 'caption'; not read: 'licence', 'width'"
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "caption;url\na dog;a.png\n", "separated by ';' are not read"),
        ("a.csv", "caption\tcaption\na\tb\n", "two columns with the title 'caption'"),
        ("a.json", '{"text": "a"}\n{"text": "b"}\n', "--format jsonl"),
        ("a.jsonl", '[{"text": "a"},\n{"text": "b"}]\n', "--format json"),
    ],
)
def test_files_of_another_kind_are_told_apart(tmp_path, modalities, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=message):
        opened(str(tmp_path / name), modalities)


def test_broken_records_tell_their_line(tmp_path, monkeypatch):
    monkeypatch.setattr("onellm.data.records._BLOCK", 16)
    lines = ['{"text": "a"}', "", '{"text": "b"}', '{"text": ', '{"text": "ü"}', '{"text": "\xff"}']
    data = "\n".join(lines).encode().replace("\xff".encode(), b"\xff")
    (tmp_path / "a.jsonl").write_bytes(data)
    records = open_text(tmp_path / "a.jsonl", "jsonl")
    with pytest.raises(BadInput, match="record 2, line 4: expected a readable record"):
        records[2]
    with pytest.raises(BadInput, match="record 4, line 6: expected a record in UTF-8"):
        records[4]
    assert records[3] == {"text": "ü"}


# -- tars ------------------------------------------------------------------------------------


def test_members_that_no_modality_reads(tmp_path, modalities):
    write_tar(tmp_path / "000.tar", [("a.heic", b"x"), ("a.txt", b"a dog")])
    with pytest.raises(BadInput, match=r"suffix that a modality reads; found \.heic"):
        opened(str(tmp_path / "000.tar"), modalities)
    assert sizes(tmp_path / "000.tar", modalities, modality="text") == {"text": 1}


def test_members_that_would_be_lost(tmp_path, modalities):
    """A second file of one suffix, and a link to a file that another sample has."""
    write_tar(tmp_path / "a.tar", [("a.png", picture(0)), ("a.PNG", picture(1))])
    with pytest.raises(BadInput, match=r"'a\.PNG' twice"):
        opened(str(tmp_path / "a.tar"), modalities, modality="image")
    for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE):
        write_tar(tmp_path / "b.tar", [("a.png", picture(0)), ("a.txt", b"x")])
        with tarfile.open(tmp_path / "b.tar", "a") as tar:
            link = tarfile.TarInfo("b.png")
            link.type, link.linkname = kind, "a.png"
            tar.addfile(link)
        with pytest.raises(BadInput, match=r"the link 'b\.png'.*--hard-dereference"):
            opened(str(tmp_path / "b.tar"), modalities, modality="image")


def test_texts_that_are_not_utf8(tmp_path, modalities):
    write_tar(tmp_path / "image-0.tar", [("a.png", picture(0)), ("a.txt", b"caf\xe9")])
    (samples,) = opened(str(tmp_path / "image-0.tar"), modalities).groups.values()
    with pytest.raises(BadInput, match=r"a\.txt: expected a text in UTF-8"):
        samples[0]


def test_facts_beside_a_member_are_no_files(tmp_path, modalities):
    """As img2dataset writes them: the address that a picture came from stands in its .json."""
    facts = {"url": "https://host/a.jpg", "caption": "a dog", "width": 28, "image": "a.jpg"}
    turns = {"conversations": [["user", "<image>\nWhat?"], ["assistant", "A dog."]]}
    members = [("a.png", picture(0)), ("a.json", json.dumps(facts).encode()), ("a.txt", b"a dog")]
    write_tar(
        tmp_path / "image-000.tar",
        [*members, ("b.png", picture(1)), ("b.json", json.dumps(turns).encode())],
    )
    (samples,) = opened(str(tmp_path / "image-000.tar"), modalities).groups.values()
    assert samples[0].turns == (("assistant", "a dog"),)
    assert samples[1].turns == (("user", "What?"), ("assistant", "A dog."))
    assert samples[0].meta["url"] == "https://host/a.jpg"


def test_what_members_are_read_as_is_told(tmp_path, modalities):
    members = [("a.image.png", picture(0)), ("a.depth.png", picture(1)), ("a.txt", b"a dog")]
    write_tar(tmp_path / "000.tar", [*members, ("a.cls", b"3")])
    made = opened(str(tmp_path / "000.tar"), modalities)
    told = "image from .image.png, depth from .depth.png, text from .txt; not read: .cls"
    assert made.notes == [f"d/image+depth: {told}"]


def test_a_run_of_one_modality_reads_what_others_read_too(tmp_path, modalities):
    write_tar(tmp_path / "000.tar", [("a.png", picture(0)), ("a.txt", b"a dog")])
    data = parse(DataConfig, {"datasets": str(tmp_path / "000.tar")}, where="test")
    assert [part.group for part in open_data(data, modalities, ["image"]).parts] == ["image"]
    with pytest.raises(BadInput, match=r"one modality that reads \.png"):
        open_data(data, modalities, ["image", "audio"])
