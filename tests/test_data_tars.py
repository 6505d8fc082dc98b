"""Tar shards: found by place, fetched, written."""

from __future__ import annotations

import errno
import io
import json
import pickle
import sys
import tarfile
import threading
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import MODALITIES
from tiny_runs import opened, picture, recording, write_shards, write_tar

from onellm.data import tars
from onellm.data.convert import convert
from onellm.data.datasets import mixture
from onellm.data.faults import FaultConfig, Faults
from onellm.data.fetching import FetchConfig
from onellm.data.loader import medium_key
from onellm.data.order import POOL, Order, Part
from onellm.data.sample import Sample
from onellm.data.streams import Shelf, find_shards
from onellm.data.tars import index_tar
from onellm.errors import BadInput, ConfigError
from onellm.modality import Modality
from onellm.registry import get_modality


@pytest.fixture(scope="module")
def modalities() -> dict[str, Modality]:
    return {name: get_modality(name, **options) for name, options in MODALITIES.items()}


def test_members_say_their_modality(tmp_path, modalities):
    wave = io.BytesIO()
    import soundfile

    soundfile.write(wave, np.zeros(8000), 16_000, format="WAV")
    write_tar(
        tmp_path / "a.tar",
        [
            ("one/x.image.png", picture(0)),
            ("one/x.imu.npy", recording(0)),
            ("one/x.wav", wave.getvalue()),
            ("one/x.json", json.dumps({"text": "all at once"}).encode()),
            ("one/y.depth.rgb.png", picture(1)),
            ("one/y.depth.png", picture(2)),
            ("one/y.wav", wave.getvalue()),
            ("one/y.image1.png", picture(3)),
            ("one/y.txt", b"a caption\n"),
        ],
    )
    made = opened(str(tmp_path / "a.tar"), modalities)
    (samples,) = made.groups.values()
    first, second = samples[0], samples[1]
    assert (first.id, first.turns) == (f"d/{tmp_path}/a.tar/one/x", (("assistant", "all at once"),))
    assert [name for name, _ in first.media] == ["audio", "image", "imu"]
    assert [name for name, _ in second.media] == ["audio", "depth", "image"]
    assert second.turns == (("assistant", "a caption"),)
    for sample in (first, second):
        for name, source in sample.media:
            want = modalities[name].example().shape
            assert modalities[name].load(source).shape == want


def test_a_suffix_that_several_modalities_read_must_be_explained(tmp_path, modalities):
    write_tar(tmp_path / "a.tar", [("x.npy", recording(0)), ("x.txt", b"walking")])
    with pytest.raises(BadInput, match=r"fmri and imu|imu and point|and imu") as error:
        opened(str(tmp_path / "a.tar"), modalities)
    assert "Set 'modality'" in str(error.value)
    made = opened(str(tmp_path / "a.tar"), modalities, modality="imu")
    assert made.groups["imu"][0].media[0][0] == "imu"


def test_shards_called_by_their_modality(tmp_path, modalities):
    write_shards(tmp_path)
    made = opened(str(tmp_path), modalities, targets={"closed": 1, "yes_no": 2})
    assert {name: len(own) for name, own in made.groups.items()} == {
        **{"image/closed": 8, "image/yes_no": 8},
        **{"imu/closed": 6, "imu/yes_no": 6},
    }
    parts, _ = mixture([made])
    assert {part.group for part in parts} == {"image", "imu"}
    by_name = {part.name: part.weight for part in parts}
    assert by_name["d/image/yes_no"] == pytest.approx(2 * by_name["d/image/closed"])


def test_compressed_damaged_and_scattered_tars_are_refused(tmp_path):
    data = [("a.png", picture(0)), ("a.json", b"{}")]
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.png"))
    with pytest.raises(BadInput, match="unpack them"):
        index_tar(tmp_path / "packed.tar")
    write_tar(tmp_path / "scattered.tar", [*data, ("b.png", picture(1)), ("a.txt", b"x")])
    with pytest.raises(BadInput, match="'a' in 2 places"):
        index_tar(tmp_path / "scattered.tar")


def own_samples(folder: Path, count: int = 7) -> list[Sample]:
    np.save(folder / "long.npy", np.random.default_rng(0).standard_normal((500, 6)))
    (folder / "a.png").write_bytes(picture(0))
    samples = []
    for i in range(count):
        window = {"data": str(folder / "long.npy"), "window_start": 0.1 * i, "window_end": 1.0}
        media: tuple[Any, ...] = (("imu", window), ("image", str(folder / "a.png")))
        if i % 2:
            media = (("depth", (str(folder / "a.png"), str(folder / "a.png"))),)
        turns = (("user", "What?"), ("assistant", f"number {i}"))
        samples.append(Sample(f"s{i}", media, turns if i % 3 else turns[1:], captions=()))
    return samples


def test_what_is_converted_reads_the_same(tmp_path, modalities):
    samples = own_samples(tmp_path)
    done = convert([samples], modalities, tmp_path / "out", megabytes=0.01)
    assert done.samples == {"imu+image": 4, "depth": 3}
    assert len(done.shards) > 2
    made = opened(str(tmp_path / "out"), modalities)
    back = {s.turns[-1][1]: s for own in made.groups.values() for s in own[:]}
    assert len(back) == 7
    for sample in samples:
        other = back[sample.turns[-1][1]]
        assert other.turns == sample.turns
        for (name, a), (kind, b) in zip(sample.media, other.media, strict=True):
            assert name == kind
            one, two = modalities[name].load(a), modalities[name].load(b)
            assert (one - two).abs().max() < 1e-5
    again = convert([samples], modalities, tmp_path / "again", megabytes=0.01)
    assert again == done
    for name in done.shards:
        one, two = ((tmp_path / f / name).read_bytes() for f in ("out", "again"))
        assert one == two
    with pytest.raises(ConfigError, match="new or empty folder"):
        convert([samples], modalities, tmp_path / "out")


def test_files_that_are_gone_stop_the_copy_or_are_left_out(tmp_path, modalities):
    samples = [*own_samples(tmp_path, 2), Sample("x", (("image", "gone.png"),), ())]
    with pytest.raises(BadInput, match=r"gone\.png"):
        convert([samples], modalities, tmp_path / "a")
    assert not (tmp_path / "a" / "shards.json").exists()
    faults = Faults(FaultConfig(policy="skip", share=1.0))
    done = convert([samples], modalities, tmp_path / "b", faults=faults)
    assert sum(done.samples.values()) == 2
    assert faults.total == 1


def test_a_full_disk_names_the_folder(tmp_path, modalities, monkeypatch):
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("onellm.data.convert._Shards.write", full)
    with pytest.raises(ConfigError, match=r"out: cannot be written \(no space left on device\)"):
        convert([own_samples(tmp_path)], modalities, tmp_path / "out")


@pytest.mark.parametrize("path", ["/etc/passwd", "a\0b.png", "x" * 5000 + ".png"])
def test_only_files_of_the_modality_are_copied(tmp_path, modalities, path):
    samples = [Sample("x", (("image", path),), ())]
    with pytest.raises(BadInput, match="a file of image"):
        convert([samples], modalities, tmp_path / "a")


def test_fetched_shards_and_their_listing(tmp_path, modalities):
    convert([own_samples(tmp_path)], modalities, tmp_path / "far", megabytes=0.01)
    shelf = Shelf(tmp_path / "shelf", gigabytes=1)
    names = sorted(p.name for p in (tmp_path / "far").glob("depth-*.tar"))
    first, last = names[0][6:12], names[-1][6:12]
    address = f"file://{tmp_path}/far/depth-{{{first}..{last}}}.tar"
    made = opened(address, modalities, shelf)
    (samples,) = made.groups.values()
    assert sum(samples.sizes) == len(samples) == 3
    for i in range(3):
        name, source = samples[i].media[0]
        assert modalities[name].load(source).shape == (2, 3, 28, 28)
    kept = [p for p in (tmp_path / "shelf").iterdir() if p.suffix == ".tar"]
    assert len(kept) == len(names)
    piped = opened(f"pipe:cat {tmp_path}/far/{names[0]}", modalities, shelf, modality="depth")
    assert len(piped.groups["depth"]) >= 1
    with pytest.raises(BadInput, match="can be fetched"):
        opened(f"file://{tmp_path}/far/none.tar", modalities, shelf)


@pytest.mark.parametrize(
    ("place", "found"),
    [
        ("pipe:echo x; exit 3", "its command ended with code 3"),
        ("http://127.0.0.1:9/a.tar", "no connection"),
        ("s3://bucket/a.tar", "its command ended with code"),
        ("zzz://bucket/a.tar", "no gopen handler"),
    ],
)
def test_what_cannot_be_fetched_says_why(tmp_path, monkeypatch, place, found):
    """A cut-off stream is no file either."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for name, line in (("curl", "exit 7"), ("aws", "exit 255")):
        (tmp_path / name).write_text(f"#!/bin/sh\necho half a file; {line}\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(BadInput, match=found) as error:
        Shelf(tmp_path / "shelf", fetching=FetchConfig(tries=1)).path(place)
    assert "curl'," not in str(error.value)
    left = {p.suffix for p in (tmp_path / "shelf").iterdir()}
    assert left == {".lock", ".failed"}  # and no part of the file


def test_buckets_are_read_with_their_own_tool(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (tmp_path / "aws").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "aws").chmod(0o755)
    file = Shelf(tmp_path / "shelf").path("s3://bucket/a b.tar")
    assert file.read_text() == "s3 cp s3://bucket/a b.tar -\n"


def test_the_shelf_makes_room(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.tar").write_bytes(b"x" * 1000)
    shelf = Shelf(tmp_path / "shelf", gigabytes=2.5e-6)
    for i in (0, 1, 0, 2):
        assert shelf.path(f"file://{tmp_path}/{i}.tar").stat().st_size == 1000
    kept = {p.name[17:] for p in (tmp_path / "shelf").iterdir() if p.suffix == ".tar"}
    assert kept == {"0.tar", "2.tar"}


def test_shards_travel_to_workers(tmp_path, modalities):
    write_shards(tmp_path)
    samples = opened(str(tmp_path / "imu-train.tar"), modalities).groups["imu"]
    first = samples[0]
    copy = pickle.loads(pickle.dumps(samples))
    assert copy[0].id == first.id


def test_patterns_of_shards(tmp_path):
    for name in ("a-000.tar", "a-001.tar", "b.txt"):
        (tmp_path / name).touch()
    want = [str(tmp_path / n) for n in ("a-000.tar", "a-001.tar")]
    for pattern in (tmp_path, tmp_path / "a-*.tar", tmp_path / "a-{000..001}.tar"):
        assert find_shards([str(pattern)]) == want
    with pytest.raises(BadInput, match="tar files"):
        find_shards([str(tmp_path / "c-*.tar")])


def test_many_pieces_are_gone_through_a_few_at_a_time():
    pieces = tuple(200 + i % 40 for i in range(30))
    part = Part("a", "a", sum(pieces), 3.0, pieces=pieces)
    alone = Order([part], seed=1, batch=1)
    both = Order([part, Part("b", "b", sum(pieces) // 3, 1.0)], seed=1, batch=1)
    for order in (alone, both):
        _gone_through(order, part, pieces)


def _gone_through(order: Order, part: Part, pieces: tuple[int, ...]) -> None:
    piece_of = np.repeat(np.arange(30), pieces)
    draws = [d for n in range(3 * part.size) if (d := order.draw(n)).part == 0]
    epochs = [[d.index for d in draws[e * part.size :][: part.size]] for e in range(2)]
    for drawn in epochs:
        assert sorted(drawn) == list(range(part.size))
        seen = [int(piece_of[i]) for i in drawn]
        first = {piece: n for n, piece in reversed(list(enumerate(seen)))}
        last = {piece: n for n, piece in enumerate(seen)}
        for n in range(0, part.size, 50):
            at_hand = [p for p in first if first[p] <= n <= last[p]]
            assert len(at_hand) <= 2 * POOL
    assert epochs[0] != epochs[1]


def test_shards_of_the_same_name_in_two_folders_hold_different_samples(tmp_path, modalities):
    for number, folder in enumerate(("a", "b")):
        (tmp_path / folder).mkdir()
        write_tar(
            tmp_path / folder / "00000.tar",
            [("x.imu.npy", recording(number)), ("x.txt", b"a caption")],
        )
    made = opened([str(tmp_path / "a"), str(tmp_path / "b")], modalities)
    (samples,) = made.groups.values()
    one, two = (medium_key(samples[i], 0) for i in (0, 1))
    assert one != two


def test_two_threads_read_more_shards_than_are_kept_open(tmp_path, modalities, monkeypatch):
    """As a run does that measures lengths ahead of what it reads."""
    monkeypatch.setattr(tars, "_OPEN", 1)
    for number in range(3):
        write_tar(tmp_path / f"image-{number}.tar", [("a.png", picture(0)), ("a.txt", b"a chair")])
    (samples,) = opened(str(tmp_path), modalities).groups.values()
    failed: list[Exception] = []

    def read(step: int) -> None:
        try:
            for n in range(2000):
                assert samples[n * step % 3].id.endswith(f"image-{n * step % 3}.tar/a")
        except Exception as error:
            failed.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=read, args=(step,)) for step in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not failed


def test_a_lost_shard_is_told_of_without_what_was_told_before(tmp_path, modalities):
    """Each raise would keep the frames of all raises before it, and what these hold."""
    for number in range(2):
        write_tar(tmp_path / f"image-{number}.tar", [("a.png", picture(0)), ("a.txt", b"a chair")])
    (samples,) = opened(str(tmp_path), modalities).groups.values()
    (tmp_path / "image-1.tar").unlink()
    depths = []
    for _ in range(4):
        with pytest.raises(BadInput, match="image-1"):
            samples[1]
        try:
            samples[1]
        except BadInput as error:
            depths.append(len(list(traceback.walk_tb(error.__traceback__))))
    assert depths == depths[:1] * 4


def test_tars_put_one_behind_the_other_are_refused(tmp_path):
    """A tar ends at its end mark: the samples of the second would be lost without a word."""
    write_tar(tmp_path / "a.tar", [("a.png", picture(0))])
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(data + data.replace(b"a.png", b"b.png"))
    with pytest.raises(BadInput, match=r"one behind the other.*--concatenate"):
        index_tar(tmp_path / "a.tar")
    (tmp_path / "a.tar").write_bytes(data + bytes(3 * 512))
    assert [entry.key for entry in index_tar(tmp_path / "a.tar")] == ["a"]
