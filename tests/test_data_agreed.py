"""Plans that several processes make together: each measures its share of a step's texts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import MODALITIES, tiny_text
from tiny_runs import opened, write_shards

from onellm.data.datasets import mixture
from onellm.data.faults import FaultConfig, Faults
from onellm.data.loader import Batch, Loader, merged
from onellm.data.order import Draw, Order, Part
from onellm.data.plan import Layout
from onellm.data.prefetch import make_ahead
from onellm.data.signal_reader import SignalReader
from onellm.errors import BadInput, CheckpointError, ConfigError
from onellm.modality import Modality
from onellm.prompts import encode_example
from onellm.registry import get_modality
from onellm.train.agreement import check_same_data, check_same_step

TEXT = tiny_text()
STEPS, BATCH = 4, 12
PACKED = Layout(arrange="length", pack=True, tokens=60)


@pytest.fixture(scope="module")
def modalities() -> dict[str, Modality]:
    return {name: get_modality(name, **options) for name, options in MODALITIES.items()}


class Counting(Loader):
    """A loader that remembers what it has measured."""

    measured: list[Draw]

    def length(self, draw: Draw) -> int:
        self.measured.append(draw)
        return super().length(draw)


def loader_of(folder: Path, modalities: dict[str, Modality], **options: Any) -> Counting:
    parts, kept = mixture([opened(str(folder), modalities)])
    made = Counting(
        *(kept, Order(parts, seed=3, batch=BATCH)),
        *(lambda turns: encode_example(TEXT, "plain", turns), SignalReader(modalities)),
        medium_tokens=6,
        **options,
    )
    made.measured = []
    return made


class Group:
    """Threads that stand for the processes of a run."""

    def __init__(self, world: int) -> None:
        self.world = world
        self.told: list[Any] = [None] * world
        self.wait = threading.Barrier(world, timeout=60)

    def share_of(self, rank: int) -> Callable[[list[int]], list[list[int]]]:
        def share(value: list[int]) -> list[list[int]]:
            self.told[rank] = value
            self.wait.wait()
            seen = list(self.told)
            self.wait.wait()
            return seen

        return share

    def steps(self, loaders: list[Counting], **options: Any) -> list[list[list[Batch]]]:
        """What each rank's loader gives."""
        found: list[Any] = [None] * self.world

        def run(rank: int) -> None:
            where = {"rank": rank, "world": self.world, "per_device": 2}
            share = self.share_of(rank)
            found[rank] = list(loaders[rank].steps(0, STEPS, **where, share=share, **options))

        threads = [threading.Thread(target=run, args=(r,)) for r in range(self.world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return found


def ids(steps: list[list[Batch]]) -> list[list[list[str]]]:
    return [[[example.id for example in batch] for batch in step] for step in steps]


@pytest.mark.parametrize("layout", [PACKED, Layout(arrange="length"), Layout()])
@pytest.mark.parametrize("options", [{}, {"ahead": 2}, {"ahead": 1, "workers": 1}])
def test_what_is_measured_together_is_planned_as_if_by_one(tmp_path, modalities, layout, options):
    write_shards(tmp_path)
    world = 3
    loaders = [loader_of(tmp_path, modalities, layout=layout) for _ in range(world)]
    together = Group(world).steps(loaders, **options)
    for rank, loader in enumerate(loaders):
        assert len(loader.measured) == (STEPS * BATCH // world if layout.needs_lengths else 0)
        alone = loader_of(tmp_path, modalities, layout=layout)
        want = alone.steps(0, STEPS, rank=rank, world=world, per_device=2)
        assert ids(together[rank]) == ids(list(want))
    if layout.needs_lengths:
        measured = [{(d.part, d.index, d.epoch) for d in loader.measured} for loader in loaders]
        assert not set.intersection(*measured)


def test_a_shard_lost_on_one_machine_alone_leaves_passes_as_many_as_elsewhere(tmp_path, modalities):
    """Its samples have other stand-ins there; each process by itself would plan other rows."""
    write_shards(tmp_path)
    skip = FaultConfig(policy="skip", share=1.0)
    world = 2

    def loaders() -> list[Counting]:
        made = [
            loader_of(tmp_path, modalities, layout=PACKED, faults=Faults(skip))
            for _ in range(world)
        ]
        plain = made[1].outline

        def outline(draw: Draw) -> Any:
            sample, ids, labels = plain(draw)
            return sample, ids.repeat(3), labels.repeat(3)  # a longer stand-in

        made[1].outline = outline  # type: ignore[method-assign]
        return made

    apart = [
        list(loader.steps(0, STEPS, rank=r, world=world, per_device=2))
        for r, loader in enumerate(loaders())
    ]
    assert [len(step) for step in apart[0]] != [len(step) for step in apart[1]]
    together = Group(world).steps(loaders())
    assert [len(step) for step in together[0]] == [len(step) for step in together[1]]
    for step in zip(*together, strict=True):
        assert sum(len(batch) for batches in step for batch in batches) == BATCH


def test_merged_is_the_way_back_from_strides():
    for world in (1, 2, 3, 5):
        assert merged([list(range(13))[rank::world] for rank in range(world)]) == list(range(13))


def test_jobs_are_asked_for_in_the_callers_thread_and_no_further_than_needed():
    here, asked = threading.get_ident(), []

    def jobs() -> Any:
        for job in range(9):
            assert threading.get_ident() == here
            asked.append(job)
            yield job

    def make(job: int) -> int:
        assert threading.get_ident() != here
        return job * job

    made = make_ahead(make, jobs(), 2)
    for n in range(9):
        assert next(made) == n * n
        assert asked == list(range(min(n + 4, 9)))
    assert list(make_ahead(lambda job: -job, range(3), 0)) == [0, -1, -2]


def test_an_error_in_the_thread_comes_when_it_is_its_turn():
    def make(job: int) -> int:
        if job == 2:
            raise BadInput("a.jpg", expected="a picture", found="none")
        return job

    made = make_ahead(make, range(9), 3)
    assert [next(made), next(made)] == [0, 1]
    with pytest.raises(BadInput, match=r"a\.jpg"):
        next(made)


class Told:
    """An engine whose fellow processes say what the test wants."""

    rank, world = 1, 2

    def __init__(self, first: Any) -> None:
        self.first = first

    def share(self, value: Any) -> list[Any]:
        return [self.first, value]


def test_processes_that_see_other_files_are_told_so_before_they_begin():
    parts = [Part("image", "image", 8), Part("imu", "imu", 6)]
    same = [("image", 8), ("imu", 6)]
    check_same_data(Told(same), parts)
    with pytest.raises(ConfigError, match="imu has 6 samples in process 1 and 5 in process 0"):
        check_same_data(Told([("image", 8), ("imu", 5)]), parts)
    with pytest.raises(ConfigError, match="imu has 6 samples in process 1 and 0 in process 0"):
        check_same_data(Told(same[:1]), parts)
    check_same_step(Told(4), 4, Path("runs"))
    with pytest.raises(CheckpointError, match="process 1 sees a checkpoint of step 4, process 0"):
        check_same_step(Told(0), 4, Path("runs"))
