"""Lists over lists of samples, texts without media, and shards that are not fetched before time."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import MODALITIES, tiny_text
from tiny_runs import description, opened, picture, recording, write_shards, write_tar

from onellm.data import tars
from onellm.data.convert import convert
from onellm.data.datasets import Collection, mixture
from onellm.data.faults import FaultConfig, Faults
from onellm.data.lists import Joined, Targeted, by_target, outline, pieces_of
from onellm.data.loader import Loader
from onellm.data.order import POOL, Order
from onellm.data.plan import Layout
from onellm.data.sample import Sample
from onellm.data.signal_reader import SignalReader
from onellm.data.streams import Shelf
from onellm.data.tar_sets import group_in_name
from onellm.errors import BadInput
from onellm.modality import Modality
from onellm.prompts import encode_example
from onellm.registry import get_modality

TEXT = tiny_text()


@pytest.fixture(scope="module")
def modalities() -> dict[str, Modality]:
    return {name: get_modality(name, **options) for name, options in MODALITIES.items()}


def loader_of(made: Collection, modalities: dict[str, Modality], **options: Any) -> Loader:
    parts, kept = mixture([made])
    return Loader(
        kept,
        Order(parts, seed=3, batch=8),
        lambda turns: encode_example(TEXT, "plain", turns),
        SignalReader(modalities),
        medium_tokens=6,
        **options,
    )


# -- outlines ---------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [{}, {"qa": 1.0}])
def test_an_outline_is_the_sample_but_for_its_bytes(tmp_path, modalities, targets):
    write_shards(tmp_path)
    for samples in opened(str(tmp_path), modalities, targets=targets).groups.values():
        for index in (0, len(samples) - 1):
            whole, text = samples[index], outline(samples, index)
            assert (text.id, text.turns, text.meta) == (whole.id, whole.turns, whole.meta)
            assert [name for name, _ in text.media] == [name for name, _ in whole.media]
            blob = text.media[0][1]
            assert not (blob["data"] if isinstance(blob, dict) else blob).data
        assert samples[-1].id == samples[len(samples) - 1].id
        assert [s.id for s in samples[1:3]] == [samples[1].id, samples[2].id]
        assert pickle.loads(pickle.dumps(samples))[0].id == samples[0].id


def test_lengths_of_all_devices_are_found_without_their_media(tmp_path, modalities, monkeypatch):
    """And the same samples stand in each step, for any number of devices."""
    write_shards(tmp_path)
    made = opened(str(tmp_path), modalities)
    read: list[int] = []
    pread = os.pread
    monkeypatch.setattr(
        tars.os, "pread", lambda file, size, at: read.append(size) or pread(file, size, at)
    )
    pictures = {len(picture(i)) for i in range(8)} | {len(recording(i)) for i in range(6)}
    drawn = {}
    for world in (1, 2, 4):
        loader = loader_of(made, modalities, layout=Layout(arrange="length"))
        ids: list[str] = []
        for rank in range(world):
            read.clear()
            steps = list(loader.steps(0, 3, rank=rank, world=world, per_device=2))
            own = [example.id for step in steps for batch in step for example in batch]
            # Of 24 samples 24 / world are this device's, and no other medium has been read.
            assert sum(size in pictures for size in read) == len(own) == 24 // world
            ids += own
        drawn[world] = sorted(ids)
    assert drawn[1] == drawn[2] == drawn[4]


def test_the_length_of_an_unreadable_sample_is_that_of_its_stand_in(tmp_path, modalities):
    said = ["a chair", None, "a long text about a table, a plant, a lamp and a chair"]
    lines = [json.dumps({"caption": text} if text else {"caption": 5}) for text in said]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    made = opened(str(tmp_path / "a.jsonl"), modalities)
    skip = Faults(FaultConfig(policy="skip", share=1.0))
    loader = loader_of(made, modalities, faults=skip)
    draws = {draw.index: draw for draw in loader.order.global_batch(0)}
    lengths = {index: loader.length(draws[index]) for index in range(3)}
    assert lengths[1] == lengths[2] > lengths[0] > 1
    assert skip.total == 0  # counted where it is read, once
    for index, draw in draws.items():
        assert len(loader.example(draw).ids) == lengths[index]
    assert loader_of(made, modalities).length(draws[1]) == 1  # "raise" will tell of it


# -- pieces -----------------------------------------------------------------------------------


def plain(count: int, name: str) -> list[Sample]:
    qa = [{"question": "What?", "answer": "That."}] * 2
    return [Sample(f"{name}{i}", (), (), {"qa": qa if i % 2 else []}) for i in range(count)]


class Pieces(list):  # type: ignore[type-arg]
    pieces = (3, 0, 4)


def test_lists_know_which_file_an_example_is_from():
    samples = Pieces(plain(7, "a"))
    made = by_target(samples, ["qa"], "", Faults(), "text")["qa"]
    assert isinstance(made, Targeted)
    assert len(made) == 6
    assert pieces_of(made) == (2, 0, 4)  # samples 1 | 3, 5 with two questions each
    assert pieces_of(Joined([made, samples, plain(2, "b")])) == (2, 0, 4, 3, 0, 4, 2)
    assert pieces_of(Joined([plain(1, "a"), plain(2, "b")])) == ()
    both = Joined([made, plain(2, "b")])
    assert [s.id for s in both[5:8]] == ["a5", "b0", "b1"]
    assert both[-1].id == "b1"


def test_named_and_unnamed_shards_of_one_group_are_shuffled_a_few_at_a_time(tmp_path, modalities):
    for i in range(2 * POOL):
        head = "image-" if i % 2 else ""
        members = [(f"{k}.image.png", picture(k)) for k in range(3)]
        texts = [(f"{k}.json", description(f"{k}", "chair")) for k in range(3)]
        pairs = [m for pair in zip(members, texts, strict=True) for m in pair]
        write_tar(tmp_path / f"{head}{i:03d}.tar", [(n.replace("image.", ""), d) for n, d in pairs])
    for targets, size in (({}, 3), ({"qa": 1.0}, 6)):
        options = {"targets": targets} if targets else {}
        made = opened(str(tmp_path), {"image": modalities["image"]}, **options)
        (part,), _ = mixture([made])
        assert part.pieces == (size,) * 2 * POOL
        assert sum(part.pieces) == part.size


# -- captions of targets ----------------------------------------------------------------------


def test_targets_of_a_table_of_captions(tmp_path, modalities):
    lines = [{"image": "a.png", "caption": ["one", "two"], "label": "chair"}]
    (tmp_path / "a.json").write_text(json.dumps(lines))
    made = opened(str(tmp_path / "a.json"), modalities, targets={"caption": 1, "label": 1})
    caption, label = made.groups["image/caption"][0], made.groups["image/label"][0]
    assert [caption.said(epoch)[0][1] for epoch in range(3)] == ["one", "two", "one"]
    # Other captions are no labels.
    assert [label.said(epoch)[0][1] for epoch in range(3)] == ["chair"] * 3


# -- addresses --------------------------------------------------------------------------------


def far(tmp_path: Path, modalities: dict[str, Modality], count: int = 12) -> tuple[str, list[str]]:
    """Shards of one group under ``file://``, with a listing; their address and names."""
    (tmp_path / "a.png").write_bytes(picture(0))
    media = (("image", str(tmp_path / "a.png")), ("depth", str(tmp_path / "a.png")))
    samples = [Sample(f"{i}", media, (("assistant", f"number {i}"),)) for i in range(count)]
    done = convert([samples], modalities, tmp_path / "far", megabytes=0.008)
    names = list(done.shards)
    assert len(names) > 2
    return f"file://{tmp_path}/far/", names


def fetched(shelf: Shelf) -> int:
    return len(list(shelf.folder.glob("*.tar")))


def test_groups_are_read_off_names(modalities):
    tell = {
        **{"audio-000.tar": "audio", "s3://b/audio+image-01.tar?key=1": "audio+image"},
        **{"https://h/audio%2Bimage-01.tar": "audio+image", "text-000.tar": "text"},
        **{"00001.tar": "", "laion-000.tar": "", "pipe:cat x/imu-1.tar": "imu"},
    }
    assert {name: group_in_name(name, modalities) for name in tell} == tell


def test_shards_that_tell_what_they_hold_are_fetched_when_they_are_drawn(tmp_path, modalities):
    base, names = far(tmp_path, modalities)
    shelf = Shelf(tmp_path / "shelf")
    made = opened([base + name for name in names], modalities, shelf)
    assert {g: len(own) for g, own in made.groups.items()} == {"image+depth": 12}
    assert fetched(shelf) == 0
    assert made.groups["image+depth"][0].media[1][0] == "depth"
    assert fetched(shelf) == 1


def test_of_shards_with_other_names_the_first_tells(tmp_path, modalities):
    _, names = far(tmp_path, modalities)
    listing = json.loads((tmp_path / "far" / "shards.json").read_text())
    for number, name in enumerate(names):
        (tmp_path / "far" / name).rename(tmp_path / "far" / f"{number}.tar")
    new = {f"{i}.tar": listing["shards"][name] for i, name in enumerate(names)}
    (tmp_path / "far" / "shards.json").write_text(json.dumps({"shards": new}))
    shelf = Shelf(tmp_path / "shelf")
    made = opened([f"file://{tmp_path}/far/{name}" for name in new], modalities, shelf)
    assert list(made.groups) == ["image+depth"]
    assert fetched(shelf) == 1


def test_without_a_listing_shards_are_counted_once_for_all_time(tmp_path, modalities):
    base, names = far(tmp_path, modalities)
    (tmp_path / "far" / "shards.json").unlink()
    shelf = Shelf(tmp_path / "shelf", gigabytes=1e-9)  # room for one
    paths = [base + name for name in names]
    sizes = opened(paths, modalities, shelf).groups["image+depth"].sizes
    assert sum(sizes) == 12
    for tar in shelf.folder.glob("*.tar"):
        tar.unlink()
    again = opened(paths, modalities, shelf)
    assert again.groups["image+depth"].sizes == sizes
    assert fetched(shelf) == 0
    # A shard that has changed since is told of.
    (tmp_path / "far" / names[0]).write_bytes((tmp_path / "far" / names[-1]).read_bytes())
    first = again.groups["image+depth"]
    if sizes[0] != sizes[-1]:
        with pytest.raises(BadInput, match="an earlier count says"):
            first[0]


def test_a_number_of_samples_can_be_told(tmp_path, modalities):
    base, names = far(tmp_path, modalities)
    (tmp_path / "far" / "shards.json").unlink()
    shelf = Shelf(tmp_path / "shelf")
    made = opened([base + name for name in names], modalities, shelf, shard_samples=50)
    (samples,) = made.groups.values()
    assert len(samples) == 50 * len(names) == sum(samples.pieces)
    assert fetched(shelf) == 0
    drawn = {samples[i].turns[0][1] for i in range(50)}
    assert fetched(shelf) == 1
    assert len(drawn) < 12  # those of the first shard, several times
    every = {samples[i].turns[0][1] for i in range(len(samples))}
    assert every == {f"number {i}" for i in range(12)}
    here = opened(str(tmp_path / "far"), modalities, shard_samples=50)
    assert len(here.groups["image+depth"]) == 12  # what is at hand is counted


def test_each_sample_of_a_lost_shard_is_one_broken_sample(tmp_path, modalities, monkeypatch):
    base, names = far(tmp_path, modalities)
    shelf = Shelf(tmp_path / "shelf")
    made = opened([base + name for name in names], modalities, shelf)
    (tmp_path / "far" / names[0]).unlink()
    tried: list[str] = []
    path = Shelf.path
    monkeypatch.setattr(Shelf, "path", lambda self, place: tried.append(place) or path(self, place))
    with pytest.raises(BadInput, match=r"-000000\.tar: expected a file that can be fetched"):
        list(loader_of(made, modalities).steps(0, 3, rank=0, world=1, per_device=8))
    for targeted in (False, True):
        tried.clear()
        made = opened([base + name for name in names], modalities, shelf)
        samples = made.groups["image+depth"]
        lost = samples.sizes[0]
        if targeted:  # texts were gone through while the shard was there
            places = np.array([(row, 0) for row in range(len(samples))])
            made.groups["image+depth"] = Targeted(samples, "caption", "", places)
        skip = Faults(FaultConfig(policy="skip", share=1.0))
        loader = loader_of(made, modalities, faults=skip)
        draws = [draw for n in range(3) for draw in loader.order.global_batch(n)]
        steps = list(loader.steps(0, 3, rank=0, world=1, per_device=8))
        # Each draw of the lost shard is one broken sample, and fetching is tried once.
        gone = [draw.index for draw in draws if draw.index < lost]
        assert dict(skip.by_modality) == {"image+depth": len(gone)}
        assert all(names[0] in file for file in skip.by_file)
        assert sum(names[0] in place for place in tried) == 1
        # Other samples of the lost shard have other stand-ins.
        ids = [example.id for step in steps for batch in step for example in batch]
        stand_ins = {d.index: i for d, i in zip(draws, ids, strict=True) if d.index < lost}
        assert len(set(stand_ins.values())) == len(stand_ins) > 1
