"""Shards, targets, faults and the loader."""

from __future__ import annotations

import json
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import MODALITIES, tiny_text
from tiny_runs import description, picture, recording, write_shards, write_tar

from onellm.data.faults import FaultConfig, Faults, Skipped
from onellm.data.loader import Loader, medium_key
from onellm.data.order import Order, Part
from onellm.data.packaged import starter_folder
from onellm.data.plan import Layout
from onellm.data.prefetch import prefetch
from onellm.data.sample import Sample
from onellm.data.shards import read_folder, read_shard
from onellm.data.signal_reader import SignalReader
from onellm.data.targets import examples
from onellm.data.workers import unwrap, wrap
from onellm.errors import BadInput, ConfigError
from onellm.modality import Modality
from onellm.prompts import encode_example
from onellm.registry import get_modality

TEXT = tiny_text()


@pytest.fixture(scope="module")
def modalities() -> dict[str, Modality]:
    return {name: get_modality(name, **MODALITIES[name]) for name in ("image", "imu")}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: Any) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


def test_samples_of_a_folder(shards, modalities):
    samples = read_folder(shards, "train", modalities)
    assert {name: len(found) for name, found in samples.items()} == {"image": 8, "imu": 6}
    first = samples["image"][0]
    assert (first.id, first.turns) == ("image00", (("assistant", "a chair"),))
    assert modalities["image"].load(first.media[0][1]).shape == (3, 28, 28)
    assert list(read_folder(shards, "train", modalities, ["imu"])) == ["imu"]


def test_a_tar_cut_between_two_samples_is_refused(modalities, tmp_path):
    path = write_shards(tmp_path) / "imu-train.tar"
    assert len(read_shard(path, modalities["imu"])) == 6
    with tarfile.open(path) as tar:
        third = tar.getmembers()[4].offset
    path.write_bytes(path.read_bytes()[:third])
    with pytest.raises(BadInput, match=r"imu-train\.tar: .*it is cut off"):
        read_shard(path, modalities["imu"])


def test_two_samples_of_one_id_are_refused(modalities, tmp_path):
    """Signals are kept by id: the second sample would be answered with the first one's."""
    members = [
        (f"{key}.{ext}", data)
        for seed, key in enumerate("ab")
        for ext, data in (("png", picture(seed)), ("json", description("same", "chair")))
    ]
    write_tar(tmp_path / "image-train.tar", members)
    with pytest.raises(BadInput, match="2 samples with the id 'same'"):
        read_shard(tmp_path / "image-train.tar", modalities["image"])


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_packaged_shard_can_be_read(split):
    modalities = {name: get_modality(name) for name in MODALITIES}
    samples = read_folder(starter_folder(), split, modalities)
    assert set(samples) == set(MODALITIES)
    for name, found in samples.items():
        assert all(s.media[0][0] == name and s.turns and s.meta["qa"] for s in found)
        assert len(examples(found, "closed")) == len(found)


def _broken_tar(folder: Path) -> None:
    data = (write_shards(folder) / "imu-train.tar").read_bytes()
    (folder / "imu-train.tar").write_bytes(data[:1700])


def _no_json(folder: Path) -> None:
    write_tar(folder / "imu-train.tar", [("a.npy", recording(0))])


def _no_medium(folder: Path) -> None:
    write_tar(folder / "imu-train.tar", [("a.json", b"{}")])


def _bad_json(folder: Path) -> None:
    write_tar(folder / "imu-train.tar", [("a.npy", recording(0)), ("a.json", b"{'")])


def _list_json(folder: Path) -> None:
    write_tar(folder / "imu-train.tar", [("a.npy", recording(0)), ("a.json", b"[]")])


def _empty_tar(folder: Path) -> None:
    write_tar(folder / "imu-train.tar", [])


def _empty_file(folder: Path) -> None:
    (folder / "imu-train.tar").write_bytes(b"")


def _nothing(folder: Path) -> None:
    pass


def _other(folder: Path) -> None:
    write_tar(folder / "image-train.tar", [("a.png", picture(0)), ("a.json", b"{}")])


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (_broken_tar, "imu-train.tar", "readable tar"),
        (_no_json, "a.json", "no such member"),
        (_no_medium, "train.tar/a", "one member with a suffix"),
        (_bad_json, "a.json", "valid JSON"),
        (_list_json, "a.json", "JSON object"),
        (_empty_tar, "imu-train.tar", "no sample in it"),
        (_empty_file, "imu-train.tar", "expected a"),
        (_nothing, "", "an empty folder"),
        (_other, "", "imu-train.tar"),
    ],
)
def test_bad_shards_name_the_fault(tmp_path, modalities, make, name, message):
    make(tmp_path)
    with pytest.raises(BadInput, match=message) as error:
        read_folder(tmp_path, "train", modalities, ["imu"])
    assert name in str(error.value)


def test_missing_folder_and_file(tmp_path, modalities):
    with pytest.raises(BadInput, match="no such folder"):
        read_folder(tmp_path / "nowhere", "train", modalities)
    with pytest.raises(BadInput, match="no such file"):
        read_shard(tmp_path / "nowhere.tar", modalities["imu"])


def test_targets():
    meta = json.loads(description("a", "chair"))
    sample = Sample("a", (), (), meta)
    assert [s.turns for s in examples([sample], "label")] == [(("assistant", "chair"),)]
    assert examples([sample], "describe", "Say.")[0].turns[0] == ("user", "Say.")
    assert examples([sample], "closed")[0].turns[1] == ("assistant", "chair")
    assert examples([sample], "yes_no")[0].turns[1] == ("assistant", "yes")
    assert len(examples([sample], "qa")) == 2
    assert examples([Sample("b", (), (), {})], "qa") == []
    with pytest.raises(ConfigError, match="unknown target"):
        examples([sample], "poem")
    for qa in ("no list", [{"question": "only"}]):
        with pytest.raises(BadInput, match=r"'question'|a list"):
            examples([Sample("c", (), (), {"qa": qa})], "qa")
    with pytest.raises(BadInput, match="text under 'label'"):
        examples([Sample("d", (), (), {"label": 3})], "label")


# -- faults ---------------------------------------------------------------------------------


def _read(broken: set[int]) -> Any:
    def read(index: int) -> int:
        if index in broken:
            raise BadInput(f"file{index}", expected="sense", found="none")
        return index

    return read


def test_raise_stops_at_the_first():
    with pytest.raises(BadInput, match="file3"):
        Faults().read(_read({3}), 3, 10, "imu")


def test_skip_takes_the_next_and_counts():
    faults = Faults(FaultConfig(policy="skip", share=0.5))
    assert faults.read(_read({8, 9}), 8, 10, "imu") == 0
    assert faults.read(_read({8, 9}), 9, 10, "imu") == 0
    assert dict(faults.by_modality) == {"imu": 3}
    assert dict(faults.by_file) == {"file8": 1, "file9": 2}
    assert (faults.reads, faults.total, faults.summary()) == (5, 3, "imu 3")


def test_skip_stops_above_the_share():
    faults = Faults(FaultConfig(policy="skip"))
    faults.read(_read({0}), 0, 10, "imu")
    with pytest.raises(BadInput, match=r"at most 1\.0% broken samples; found 2 of"):
        faults.read(_read({0}), 0, 10, "imu")


def test_skip_gives_up_when_nothing_is_left():
    faults = Faults(FaultConfig(policy="skip", share=1.0))
    with pytest.raises(BadInput, match="3 broken ones"):
        faults.read(_read({0, 1, 2}), 1, 3, "imu")
    with pytest.raises(Skipped):
        faults.attempt(lambda: _read({0})(0), "imu")


# -- loader ---------------------------------------------------------------------------------


def _loader(shards: Path, modalities: dict[str, Modality], **options: Any) -> Loader:
    samples = read_folder(shards, "train", modalities)
    kept = [examples(found, "closed") for found in samples.values()]
    parts = [Part(name, name, len(made)) for name, made in zip(samples, kept, strict=True)]
    reader = options.pop("reader", None) or SignalReader(modalities)
    order = Order(parts, seed=3, batch=4)
    return Loader(kept, order, lambda t: encode_example(TEXT, "plain", t), reader, **options)


def test_batches_do_not_depend_on_reading_ahead_or_starting_point(shards, modalities):
    loader = _loader(shards, modalities, augment=True)
    where = {"rank": 0, "world": 1, "per_device": 2}
    plain = list(loader.steps(0, 5, **where))
    ahead = list(loader.steps(0, 5, **where, ahead=2))
    later = list(loader.steps(3, 5, **where))
    assert [len(step) for step in plain] == [2] * 5
    for one, other in ((plain, ahead), (plain[3:], later)):
        for a, b in zip(one, other, strict=True):
            pairs = list(zip([*a[0], *a[1]], [*b[0], *b[1]], strict=True))
            assert all(x.id == y.id for x, y in pairs)
            assert all(torch.equal(x.media[0].signal, y.media[0].signal) for x, y in pairs)


def test_augmentation_changes_by_epoch_only(shards, modalities):
    loader = _loader(shards, modalities, augment=True)
    draws = [loader.order.draw(n) for n in range(60)]
    by_sample: dict[tuple[int, int], dict[int, torch.Tensor]] = {}
    for draw in draws:
        signal = loader.example(draw).media[0].signal
        assert torch.equal(signal, loader.example(draw).media[0].signal)
        by_sample.setdefault((draw.part, draw.index), {})[draw.epoch] = signal
    some = next(v for v in by_sample.values() if len(v) > 1)
    assert not torch.equal(*list(some.values())[:2])


def test_kept_signals_are_read_once(shards, modalities, monkeypatch):
    reader = SignalReader(modalities, megabytes=1.0)
    loader = _loader(shards, modalities, reader=reader)
    for _ in loader.steps(0, 12, rank=0, world=1, per_device=4):
        pass
    monkeypatch.setattr(type(modalities["imu"]), "load", lambda *a: pytest.fail("read again"))
    for _ in loader.steps(0, 12, rank=0, world=1, per_device=4):
        pass


def test_a_sample_without_an_answer_in_reach_is_named(shards, modalities):
    loader = _loader(shards, modalities, max_tokens=2)
    with pytest.raises(BadInput, match=r"image0\d|imu0\d") as error:
        next(loader.steps(0, 1, rank=0, world=1, per_device=4))
    assert "within 2 tokens" in str(error.value)


def test_skipping_is_deterministic_and_counted(tmp_path, modalities):
    write_shards(tmp_path)
    with tarfile.open(tmp_path / "imu-train.tar") as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar]
    members[2] = (members[2][0], b"broken")
    write_tar(tmp_path / "imu-train.tar", members)
    with pytest.raises(BadInput, match=r"imu01\.npy"):
        list(_loader(tmp_path, modalities).steps(0, 9, rank=0, world=1, per_device=4))
    seen = []
    for _ in range(2):
        faults = Faults(FaultConfig(policy="skip", share=0.2))
        loader = _loader(tmp_path, modalities, faults=faults)
        steps = loader.steps(0, 9, rank=0, world=1, per_device=4)
        seen.append([e.id for step in steps for batch in step for e in batch])
        assert faults.by_modality["imu"] == faults.total > 0
    assert seen[0] == seen[1]
    assert "imu01" not in seen[0]
    assert len(seen[0]) == 36


def _drawn(loader: Loader, first: int, last: int, world: int, **options: Any) -> list[list[Any]]:
    """Ids and signals of each step, over all ranks in the order of the step."""
    ranks = [
        list(loader.steps(first, last, rank=r, world=world, per_device=1, **options))
        for r in range(world)
    ]
    return [
        [
            (example.id, example.media[0].signal, example.labels)
            for batches in zip(*(steps[n] for steps in ranks), strict=True)
            for batch in batches
            for example in batch
        ]
        for n in range(last - first)
    ]


def _same(one: list[list[Any]], other: list[list[Any]]) -> bool:
    return all(
        a[0] == b[0] and torch.equal(a[1], b[1]) and torch.equal(a[2], b[2])
        for x, y in zip(one, other, strict=True)
        for a, b in zip(x, y, strict=True)
    )


def test_order_and_augmentation_do_not_depend_on_ranks_and_workers(shards, modalities):
    """Nor on where a run was cut off: the second half of an epoch goes on with other ranks."""
    loader = _loader(shards, modalities, augment=True)
    alone = _drawn(loader, 0, 6, 1)
    assert _same(_drawn(loader, 0, 6, 2), alone)
    assert _same(_drawn(loader, 0, 2, 2) + _drawn(loader, 2, 6, 4), alone)
    assert _same(_drawn(loader, 0, 6, 1, workers=2, ahead=1), alone)
    assert _same(_drawn(loader, 2, 6, 1, workers=1), alone[2:])


def test_any_layout_draws_the_same_samples(shards, modalities):
    def ids(world: int, **options: Any) -> list[list[str]]:
        loader = _loader(shards, modalities, layout=Layout(**options), medium_tokens=6)
        return [sorted(id for id, *_ in step) for step in _drawn(loader, 0, 5, world)]

    want = ids(1)
    for world in (1, 2):
        assert ids(world, arrange="length") == want
        assert ids(world, arrange="length", pack=True, tokens=60) == want


def test_workers_pass_on_errors_and_count_what_is_skipped(tmp_path, modalities):
    write_shards(tmp_path)
    with tarfile.open(tmp_path / "imu-train.tar") as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar]
    members[2] = (members[2][0], b"broken")
    write_tar(tmp_path / "imu-train.tar", members)
    loader = _loader(tmp_path, modalities)
    with pytest.raises(BadInput, match=r"imu01\.npy") as error:
        list(loader.steps(0, 9, rank=0, world=1, per_device=4, workers=1))
    assert error.value.expected
    counts = []
    for workers in (0, 1):
        faults = Faults(FaultConfig(policy="skip", share=0.2))
        loader = _loader(tmp_path, modalities, faults=faults)
        list(loader.steps(0, 9, rank=0, world=1, per_device=4, workers=workers))
        counts.append((faults.reads, faults.by_modality, faults.by_file))
    assert counts[0] == counts[1]
    assert counts[0][1]["imu"] > 0


def test_one_file_of_many_questions_is_read_once(tmp_path, modalities, monkeypatch):
    (tmp_path / "a.png").write_bytes(picture(0))
    media = (("image", str(tmp_path / "a.png")),)
    samples = [Sample(f"s{i}", media, (("assistant", f"{i}"),)) for i in range(5)]
    assert len({medium_key(sample, 0) for sample in samples}) == 1
    reader, calls = SignalReader(modalities, megabytes=1.0), []
    load = type(modalities["image"]).load
    monkeypatch.setattr(type(modalities["image"]), "load", lambda *a: calls.append(a) or load(*a))
    for sample in samples:
        reader.read(*sample.media[0], medium_key(sample, 0))
    assert len(calls) == 1


def test_captions_take_turns_by_epoch(modalities):
    sample = Sample("a", (), (("assistant", "one"),), captions=("two", "three"))
    order = Order([Part("a", "text", 1)], seed=0, batch=1)
    loader = Loader(
        [[sample]], order, lambda t: encode_example(TEXT, "plain", t), SignalReader(modalities)
    )
    steps = loader.steps(0, 4, rank=0, world=1, per_device=1)
    assert [batch[0].answer for (batch,) in steps] == ["one", "two", "three", "one"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool, torch.uint8])
def test_tensors_travel_in_one_piece(dtype):
    items = [{"a": torch.arange(5).to(dtype), "b": [torch.ones(2, 3)]}, torch.zeros(0), "text"]
    data, buffer = wrap(items)
    back = unwrap(data, buffer)
    assert back[2] == "text"
    assert torch.equal(back[0]["a"], items[0]["a"]) and back[0]["a"].dtype == dtype
    assert torch.equal(back[0]["b"][0], torch.ones(2, 3)) and back[1].shape == (0,)


# -- prefetch -------------------------------------------------------------------------------


def _numbers(stop_at: int | None = None) -> Iterator[int]:
    for n in range(1000):
        if n == stop_at:
            raise BadInput("file", expected="a number", found="none")
        yield n


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_prefetch_keeps_order_and_errors(depth):
    assert list(prefetch(iter(range(50)), depth)) == list(range(50))
    got = []
    with pytest.raises(BadInput):
        for n in prefetch(_numbers(7), depth):
            got.append(n)
    assert got == list(range(7))


def test_prefetch_stops_with_its_consumer():
    before = threading.active_count()
    stream = prefetch(_numbers(), 2)
    assert next(stream) == 0
    stream.close()
    assert threading.active_count() == before
