"""Worker processes: they end with their parent, and what they hang or die over has a name."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tiny import tiny_model
from tiny_runs import picture, tiny_config

from onellm.config import parse
from onellm.data import lifeline, workers
from onellm.data.workers import in_processes
from onellm.errors import BadInput, MissingExtra
from onellm.modality import Modality
from onellm.source import Source
from onellm.train.config import TrainConfig
from onellm.train.engine import Place
from onellm.train.launch import prepare

ROOT = Path(__file__).parents[1]


def jobs(count: int = 40) -> Iterator[list[int]]:
    return ([n, n + 1] for n in range(0, count, 2))


def pids(path: Path) -> set[int]:
    return {int(line) for line in path.read_text().split()} if path.exists() else set()


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(found: set[int], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while any(map(alive, found)) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(map(alive, found))


def sleeps(seconds: int) -> None:
    ctypes.CDLL(None).sleep(seconds)  # in C, but other threads may run


def hangs(seconds: int) -> None:
    ctypes.PyDLL(None).sleep(seconds)  # no thread of the process can run meanwhile


def maker(folder: Path, at: int, act: Callable[[int], None]) -> Callable[[int], int]:
    def make(n: int) -> int:
        with (folder / "pids").open("a") as file:
            file.write(f"{os.getpid()}\n")
        if n == at:
            act(100)
        return n

    return make


@pytest.mark.parametrize("act", [sleeps, hangs])
def test_a_sample_that_hangs_is_named_and_its_worker_ended(tmp_path, act, monkeypatch):
    monkeypatch.setattr(workers, "_LOOK", 0.2)
    monkeypatch.setattr(lifeline, "GRACE", 0.5)
    made = in_processes(
        maker(tmp_path, 9, act), jobs(), 2, patience=3.0, name=lambda n: f"sample {n}"
    )
    got = []
    # On a busy machine the other worker may still be at one of its own, which is named as well.
    named = r"^sample 9(; sample \d+)?: expected a sample within \d+ s.*still at it.*data\.patience"
    with pytest.raises(BadInput, match=named):
        for items in made:
            got += items
    assert got == list(range(len(got))) and len(got) <= 8
    assert gone(pids(tmp_path / "pids"), 2.0)


def _dies(_: int) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _killed(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("act", "found"), [(_dies, "signal SIGSEGV"), (_killed, "SIGKILL.*Memory may have run out")]
)
def test_a_sample_over_which_a_worker_dies_is_named(tmp_path, act, found, monkeypatch):
    monkeypatch.setattr(workers, "_LOOK", 0.2)
    made = in_processes(maker(tmp_path, 6, act), jobs(), 2, name=lambda n: f"sample {n}")
    with pytest.raises(BadInput, match=f"^sample 6: .*{found}"):
        list(made)


def _lacks(_: int) -> None:
    raise MissingExtra("reader", "more")


def test_a_package_that_a_reader_lacks_is_named(tmp_path):
    made = in_processes(maker(tmp_path, 0, _lacks), jobs(), 1)
    with pytest.raises(MissingExtra, match="reader is not installed"):
        next(made)


def test_leaving_early_ends_workers_that_hang(tmp_path, monkeypatch):
    monkeypatch.setattr(lifeline, "GRACE", 0.5)
    made = in_processes(maker(tmp_path, 3, hangs), jobs(), 2)
    assert next(made) == [0, 1]
    while len(pids(tmp_path / "pids")) < 2:
        time.sleep(0.05)
    began = time.monotonic()
    made.close()
    assert time.monotonic() - began < 3.0
    assert gone(pids(tmp_path / "pids"), 0.5)


def test_one_signal_is_the_parents_and_a_second_is_meant(tmp_path, monkeypatch):
    """As a scheduler sends them to all processes of a job."""
    monkeypatch.setattr(workers, "_LOOK", 0.2)
    made = in_processes(maker(tmp_path, 39, sleeps), jobs(), 1, name=str)
    assert next(made) == [0, 1]
    (pid,) = pids(tmp_path / "pids")
    signaller = [sys.executable, "-c", f"import os; os.kill({pid}, 15)"]  # not the parent itself
    subprocess.run(signaller, check=True)
    assert next(made) == [2, 3]
    assert [items for _, items in zip(range(17), made, strict=False)][-1] == [36, 37]
    assert alive(pid)
    time.sleep(1.1)
    subprocess.run(signaller, check=True)
    assert gone({pid}, 3.0)
    with pytest.raises(BadInput, match=r"39: .*exit code 0"):
        next(made)


def test_a_run_over_whose_sample_a_worker_dies_names_it(tmp_path, monkeypatch):
    """Through the loader of a run, with its patience; the sample is named with its file."""
    (tmp_path / "good.png").write_bytes(picture(0))
    (tmp_path / "dead.png").write_bytes(picture(1))
    records = [{"image": f"{n}.png", "caption": "a chair"} for n in ("good", "dead")]
    (tmp_path / "a.json").write_text(json.dumps(records))
    config = tiny_config(tmp_path, tmp_path / "run", batch={"size": 2, "per_device": 1})
    plain = config.model_dump(mode="json")
    plain["data"] = {"datasets": str(tmp_path / "a.json"), "workers": 1, "patience": 77}
    plain["stage"] |= {"modalities": ["image"], "trainable": ["projector.*"]}
    model = tiny_model("image", "imu")
    run, _ = prepare(parse(TrainConfig, plain, where="test"), model, Place())
    assert run.loader.patience == 77
    load = type(model.modalities["image"]).load

    def dies(self: Modality, source: Source) -> torch.Tensor:
        if "dead" in str(source):
            os.kill(os.getpid(), signal.SIGSEGV)
        return load(self, source)

    monkeypatch.setattr(type(model.modalities["image"]), "load", dies)
    monkeypatch.setattr(workers, "_LOOK", 0.2)
    with pytest.raises(BadInput, match=rf"^a/#1 \({tmp_path}/dead\.png\): .*signal SIGSEGV"):
        list(run.loader.steps(0, 1, rank=0, world=1, per_device=1, workers=1))


PARENT = """
import ctypes, sys, time
sys.path.insert(0, {tests!r})
from test_data_workers import hangs, jobs, maker, pids, sleeps
from onellm.data.workers import in_processes
from pathlib import Path
made = in_processes(maker(Path({folder!r}), 3, {act}), jobs(), 2)
next(made)
while len(pids(Path({folder!r}) / "pids")) < 2:  # both have begun
    time.sleep(0.05)
{then}
"""


@pytest.mark.parametrize(
    ("act", "then"),
    [("hangs", "time.sleep(100)"), ("sleeps", "time.sleep(100)"), ("sleeps", "")],
    ids=["killed, in C", "killed", "left without closing"],
)
def test_workers_do_not_outlive_their_parent(tmp_path, act, then):
    code = PARENT.format(tests=str(ROOT / "tests"), folder=str(tmp_path), act=act, then=then)
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE)
    until = time.monotonic() + 30
    while len(pids(tmp_path / "pids")) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    found = pids(tmp_path / "pids")
    assert len(found) == 2
    if then:
        parent.kill()
    assert gone({parent.pid}, 10.0)
    assert gone(found, 3.0)
    _, said = parent.communicate()
    assert b"Traceback" not in said
