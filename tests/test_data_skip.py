"""``faults.policy: skip`` where a stage goes through all samples before its first step."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import MODALITIES, tiny_model
from tiny_runs import description, picture, tiny_config, write_shards, write_tar

from onellm.config import parse
from onellm.data.datasets import Collection, DatasetConfig, mixture, open_dataset
from onellm.data.faults import Fault, FaultConfig, Faults
from onellm.data.order import Part
from onellm.data.sample import Sample
from onellm.data.streams import Shelf
from onellm.errors import BadInput
from onellm.modality import Modality
from onellm.registry import get_modality
from onellm.train.broken import forget_later, gather_faults
from onellm.train.config import DataConfig
from onellm.train.engine import Place
from onellm.train.launch import prepare, run_training
from onellm.train.metrics import read_metrics
from onellm.train.mixture import Drawn, open_data

SKIP = {"policy": "skip", "share": 0.2}


@pytest.fixture(scope="module")
def modalities() -> dict[str, Modality]:
    return {name: get_modality(name, **MODALITIES[name]) for name in ("image", "imu")}


def spoiled(shard: Path, change: Callable[[str, bytes], bytes | None]) -> None:
    """Write a tar again with other members."""
    with tarfile.open(shard) as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]
    changed = [(name, change(name, data)) for name, data in members]
    write_tar(shard, [(name, data) for name, data in changed if data is not None])


def _no_json(name: str, data: bytes) -> bytes | None:
    return None if name == "image01.json" else data


def _bad_json(name: str, data: bytes) -> bytes | None:
    return b"{'" if name == "image01.json" else data


def _no_picture(name: str, data: bytes) -> bytes | None:
    return None if name == "image01.png" else data


def _bad_question(name: str, data: bytes) -> bytes | None:
    return b'{"qa": [{"question": 5}]}' if name == "image01.json" else data


BAD: dict[str, Callable[[str, bytes], bytes | None]] = {
    "no json": _no_json,
    "bad json": _bad_json,
    "no picture": _no_picture,
    "bad question": _bad_question,
}


@pytest.mark.parametrize(
    ("route", "bad"),
    # A sample of a data set may be without a .json; it then has no target.
    [("folder", bad) for bad in BAD] + [("datasets", bad) for bad in BAD if bad != "no json"],
)
def test_samples_whose_texts_are_gone_through(tmp_path, modalities, bad, route):
    """Targets are made of all texts before the first step."""
    folder = write_shards(tmp_path)
    spoiled(folder / "image-train.tar", BAD[bad])
    plain: dict[str, Any] = {"folder": str(folder), "targets": {"closed": 1, "qa": 1}}
    if route == "datasets":
        shards = [str(folder / f"{m}-train.tar") for m in ("image", "imu")]
        one = {"path": shards, "name": "d", "targets": {"closed": 1, "qa": 1}}
        plain = {"datasets": [one]}
    with pytest.raises(BadInput, match="image01"):
        open_data(parse(DataConfig, plain, where=""), modalities, ["image", "imu"])
    config = parse(DataConfig, plain | {"faults": SKIP}, where="")
    faults = Faults(config.faults)
    drawn = open_data(config, modalities, ["image", "imu"], faults)
    assert dict(faults.by_modality) == {"image": 1}
    assert ["image01" in file for file in faults.by_file] == [True]
    assert faults.set_aside == len(faults.found) == 1
    sizes = [len(kept) for kept in drawn.kept]
    assert sizes == [7, 14, 6, 12]
    assert all(kept[i].turns for kept in drawn.kept for i in range(len(kept)))
    assert drawn.kept[1][13].id.endswith("image07")
    strict = config.model_copy(update={"faults": FaultConfig(policy="skip", share=0.0)})
    with pytest.raises(BadInput, match=r"at most 0\.0% broken samples; found 1 of"):
        open_data(strict, modalities, ["image", "imu"])


def test_the_share_is_that_of_the_samples_gone_through():
    """Broken ones among the first are no verdict on a thousand, nor on media read later."""

    def read(index: int) -> int:
        if index in (3, 5, 7):
            raise BadInput(f"file{index}", expected="sense", found="none")
        return index

    faults = Faults(FaultConfig(policy="skip", share=0.01))
    assert len(list(faults.each(read, range(1000), "imu"))) == 997
    assert (faults.reads, faults.total, faults.set_aside) == (0, 3, 3)
    # Their count stays, and does not bring the reads to come nearer to the limit.
    assert faults.read(lambda index: index + 3 if index else read(3), 0, 2, "imu") == 4
    with pytest.raises(BadInput, match="found 2 of 102"):
        faults.reads = 101
        faults.attempt(lambda: read(3), "imu")
    with pytest.raises(BadInput, match=r"found 3 of 200 \(imu 3\)"):
        list(Faults(FaultConfig(policy="skip", share=0.01)).each(read, range(200), "imu"))


def texts_of(folder: Path, broken: int) -> Path:
    lines = [json.dumps({"caption": f"a chair {i}", "image": "a.png"}) for i in range(10)]
    lines[broken] = lines[broken][:-5]
    (folder / "a.jsonl").write_text("\n".join(lines))
    (folder / "a.png").write_bytes(picture(0))
    return folder / "a.jsonl"


def run_config(file: Path, out: Path, **stage: Any) -> Any:
    config = tiny_config(file.parent, out).model_dump(mode="json")
    config["data"] = {"datasets": [str(file)], "faults": SKIP, "augment": True}
    config["stage"] |= {"modalities": ["image"], "trainable": ["projector.*"], **stage}
    return parse(type(tiny_config(file.parent, out)), config, where="test")


def test_texts_of_the_contrastive_objective(tmp_path):
    """The mean text is taken over all of them; which row is broken does not matter."""
    for broken in (0, 4):
        folder = tmp_path / str(broken)
        folder.mkdir()
        config = run_config(texts_of(folder, broken), folder / "run", objective="contrastive")
        run, _ = prepare(config, tiny_model("image", "imu"), Place())
        assert dict(run.loader.faults.by_modality) == {"image": 1}
        (fault,) = run.loader.faults.found
        assert f"record {broken}" in fault.file


def test_fit_output_and_its_counts_go_on_after_a_stop(tmp_path):
    folder = write_shards(tmp_path / "data")
    spoiled(folder / "image-train.tar", _bad_question)
    stage = {"fit_output": {"modalities": ["image"], "ridge": 1e-3}}
    sections: dict[str, Any] = {"stage": stage, "data": {"faults": SKIP}}
    with pytest.raises(BadInput, match="image01"):
        prepare(
            tiny_config(folder, tmp_path / "x", stage=stage), tiny_model("image", "imu"), Place()
        )
    whole = tmp_path / "whole"
    run_training(tiny_config(folder, whole, **sections), model=tiny_model("image", "imu"))
    records = read_metrics(whole / "metrics.jsonl")
    # Once for the targets of the run, once for that of fit_output.
    assert [r["faults"] for r in records] == [{"image": 2}] * 6
    cut = tmp_path / "cut"
    for steps in (4, 6):
        config = tiny_config(folder, cut, **sections, length={"steps": steps})
        run_training(config, model=tiny_model("image", "imu"))
    assert [r["faults"] for r in read_metrics(cut / "metrics.jsonl")] == [{"image": 2}] * 6
    listed = [(run / "faults" / "0.jsonl").read_text() for run in (whole, cut)]
    assert listed[0] == listed[1]
    assert len(listed[0].splitlines()) == 2


def test_fit_output_without_one_readable_medium(tmp_path):
    folder = write_shards(tmp_path / "data")
    spoiled(folder / "image-train.tar", lambda name, d: d[:50] if name.endswith("png") else d)
    sections: dict[str, Any] = {
        "stage": {"fit_output": {"modalities": ["image"]}},
        "data": {"faults": {"policy": "skip", "share": 1.0}},
    }
    with pytest.raises(BadInput, match="image data: expected a readable sample"):
        config = tiny_config(folder, tmp_path / "run", **sections)
        prepare(config, tiny_model("image", "imu"), Place())


def opened(path: Any, modalities: dict[str, Modality], **options: Any) -> Collection:
    config = parse(DatasetConfig, {"path": path, "name": "d", **options}, where="test")
    return open_dataset(config, modalities, Shelf("unused"))


def test_the_first_sample_of_a_shard_may_be_broken(tmp_path, modalities):
    """What a shard holds is told by the first of its samples that can be read."""
    good = [("b.image.png", picture(1)), ("b.json", description("b", "chair"))]
    write_tar(tmp_path / "000.tar", [("a.image.png", picture(0)), ("a.json", b"{'"), *good])
    made = opened(str(tmp_path / "000.tar"), modalities)
    assert {group: len(own) for group, own in made.groups.items()} == {"image": 2}
    with pytest.raises(BadInput, match="valid JSON"):
        made.groups["image"][0]
    write_tar(tmp_path / "000.tar", [("a.image.png", picture(0)), ("a.json", b"{'")])
    with pytest.raises(BadInput, match="valid JSON"):
        opened(str(tmp_path / "000.tar"), modalities)


def test_the_first_row_of_a_table_may_be_broken(tmp_path, modalities):
    (tmp_path / "a.csv").write_text("caption\turl\nno second cell\na chair\ta.png\n")
    made = opened(str(tmp_path / "a.csv"), modalities, modality="image")
    assert list(made.groups) == ["image"]


def test_without_media_broken_texts_are_the_loaders_matter(tmp_path, modalities):
    file = texts_of(tmp_path, 3)
    collection = opened(str(file), modalities)
    parts, kept = mixture([collection], media=False)
    assert [part.group for part in parts] == ["text"]
    assert not kept[0][0].media
    with pytest.raises(BadInput, match="record 3"):
        kept[0][3]
    config = run_config(file, tmp_path / "run", trainable=["llm.*"])
    config = config.model_copy(update={"data": config.data.model_copy(update={"media": False})})
    run_training(config, model=tiny_model("image", "imu"))
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert set(records[-1]["faults"]) == {"text"}


@pytest.mark.parametrize("records", ["media: 5", "media: a kind", "media: no pair"])
def test_media_that_are_no_list_are_broken_records(tmp_path, modalities, records):
    value = {"media: 5": 5, "media: a kind": [[7, "a"]], "media: no pair": ["a.png"]}[records]
    good = {"media": [["image", "a.png"]], "caption": "a chair"}
    lines = [json.dumps({"media": value, "caption": "x"}), json.dumps(good)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    made = opened(str(tmp_path / "a.jsonl"), modalities)
    assert {group: len(own) for group, own in made.groups.items()} == {"image": 2}
    with pytest.raises(BadInput, match=r"MODALITY|one of image, imu"):
        made.groups["image"][0]
    write_tar(tmp_path / "image-0.tar", [("a.png", picture(0)), ("a.json", lines[0].encode())])
    with pytest.raises(BadInput, match=r"MODALITY|one of image, imu"):
        opened(str(tmp_path / "image-0.tar"), modalities).groups["image"][0]


def test_what_one_process_set_aside_is_no_share_of_the_reads_of_all():
    class Two:
        """Sums with a device that has read 200 samples, one of them broken."""

        def sum(self, own: torch.Tensor) -> torch.Tensor:
            return own + torch.tensor([200.0, 0.0, 0.0, 1.0, 0.0])

    def read(index: int) -> int:
        raise BadInput(f"file{index}", expected="sense", found="none")

    faults = Faults(FaultConfig(policy="skip", share=0.01))
    list(faults.each(lambda i: read(i) if i < 9 else i, range(1000), "image"))
    faults.add([], 100)
    engine: Any = Two()
    assert gather_faults(engine, faults, ["image", "imu"]) == {"image": 10}
    faults.add([*faults.found[:3]], 3)
    with pytest.raises(BadInput, match="found 4 of 303"):
        gather_faults(engine, faults, ["image", "imu"])


class Beside:
    """An engine whose other device has these counts."""

    def __init__(self, other: Faults, names: list[str]) -> None:
        self.other, self.names, self.shared = other, names, 0

    def sum(self, own: torch.Tensor) -> torch.Tensor:
        known = sorted({*self.names, *self.other.names})
        counts = [self.other.by_modality[name] for name in known]
        others = self.other.total - sum(counts)
        return own + torch.tensor(
            [self.other.reads, self.other.set_aside, others, *counts], dtype=torch.float64
        )

    def share(self, own: dict[str, int]) -> list[dict[str, int]]:
        self.shared += 1
        self.other.names |= set(own) - set(self.names)
        return [own, dict(self.other.by_modality)]


def test_counts_under_names_that_only_one_process_knows():
    """Lists with targets are opened under groups that a run without media does not have."""

    def broken(group: str, count: int) -> Faults:
        faults = Faults(FaultConfig(policy="skip", share=0.01))
        fault = Fault(group, "file", "broken")
        faults.add([fault] * count, 1000)
        return faults

    mine, names = broken("image+imu", 7), ["text"]
    engine: Any = Beside(broken("text", 2), names)
    for _ in range(3):
        assert gather_faults(engine, mine, names) == {"image+imu": 7, "text": 2}
    assert engine.shared == 1
    mine.add([Fault("depth", "file", "broken")] * 20, 100)
    with pytest.raises(BadInput, match=r"found 29 of 2100 \(depth 20, image\+imu 7, text 2\)"):
        gather_faults(engine, mine, names)


def test_a_run_without_media_counts_all_that_is_broken(tmp_path):
    """Two modalities in a record, their texts gone through for the targets of the data set."""
    records = [{"image": "a.png", "imu": "m.npy", "text": f"a chair {i}"} for i in range(20)]
    records[3]["text"] = 5
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    config = tiny_config(tmp_path, tmp_path / "run").model_dump(mode="json")
    one = {"path": str(tmp_path / "a.jsonl"), "targets": {"caption": 1}}
    config["data"] = {"datasets": [one], "media": False, "faults": SKIP}
    config["stage"]["trainable"] = ["llm.*"]
    run_training(
        parse(type(tiny_config(tmp_path, tmp_path)), config, where="test"),
        model=tiny_model("image", "imu"),
    )
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [record["faults"] for record in records] == [{"image+imu": 1}] * 6


def test_texts_are_taken_from_a_few_files_of_many():
    class Files(list):  # type: ignore[type-arg]
        pieces = (3,) * 100

    samples = Files(Sample(f"{i}", (), (("assistant", f"{i}"),)) for i in range(300))
    plain = [Sample(f"{i}", (), (("assistant", f"{i}"),)) for i in range(300)]
    part = Part("a", "text", 300)
    drawn = Drawn([part, part], [samples, plain], {})
    texts = [int(text) for text in drawn.texts(Faults())]
    of_files, of_plain = texts[:-300], texts[-300:]
    assert of_plain == list(range(300))
    assert len(of_files) == 3 * len({i // 3 for i in of_files}) == 45
    assert max(of_files) > 270


def test_lists_of_faults_end_where_a_run_goes_on(tmp_path):
    (tmp_path / "faults").mkdir()
    for rank in (0, 3):  # the run may have had more processes before
        lines = [json.dumps({"step": step, "file": "a"}) for step in (1, 4, 5)]
        lines.insert(1, "\0\0\0")  # of a machine that lost its power
        (tmp_path / "faults" / f"{rank}.jsonl").write_text("\n".join(lines) + '\n{"step": 5, "fi')
    forget_later(tmp_path, 4)
    for rank in (0, 3):
        lines = (tmp_path / "faults" / f"{rank}.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 4]
