"""Worker processes: they end with their parent, and what they hang or die over has a name."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from onellm.data import lifeline, workers
from onellm.data.workers import in_processes
from onellm.errors import BadInput

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
        maker(tmp_path, 9, act), jobs(), 2, patience=1.0, name=lambda n: f"sample {n}"
    )
    got = []
    with pytest.raises(BadInput, match=r"^sample 9: expected a sample within 1 s.*data\.patience"):
        for items in made:
            got += items
    assert got == list(range(8))
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


PARENT = """
import ctypes, sys, time
sys.path.insert(0, {tests!r})
from test_data_workers import hangs, jobs, maker, sleeps
from onellm.data.workers import in_processes
from pathlib import Path
made = in_processes(maker(Path({folder!r}), 3, {act}), jobs(), 2)
next(made)
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
