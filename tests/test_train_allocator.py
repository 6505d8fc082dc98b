"""The allocator keeps what a step frees, whatever the glibc, and never over a user's word."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from typing import Any

import pytest

from onellm.train import allocator
from onellm.train.allocator import keep_freed_memory

TRIM, MMAP = -1, -3


class Glibc:
    """What ``mallopt`` was told; it refuses thresholds over a limit, as older ones do."""

    def __init__(self, limit: int) -> None:
        self.limit, self.told = limit, {}

    def mallopt(self, key: int, value: int) -> int:
        if key == MMAP and value > self.limit:
            return 0
        self.told[key] = value
        return 1


@pytest.fixture
def unsaid(monkeypatch: Any) -> None:
    for name in allocator.SETTINGS:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("limit", "blocks"), [(2**40, 2**30), (2**25, 2**25)])
def test_old_and_new_glibc_keep_blocks(monkeypatch, unsaid, limit, blocks):
    glibc = Glibc(limit)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: glibc)
    assert keep_freed_memory()
    assert glibc.told == {MMAP: blocks, TRIM: 2**30}


def test_an_allocator_that_does_not_listen_is_left_as_it_is(monkeypatch, unsaid):
    glibc = Glibc(0)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: glibc)
    assert not keep_freed_memory()
    assert glibc.told == {}


@pytest.mark.parametrize("name", allocator.SETTINGS)
def test_what_the_environment_says_holds(monkeypatch, unsaid, name):
    monkeypatch.setenv(name, "1000000")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("told all the same"))
    assert not keep_freed_memory()


FAULTS = """
import resource
from onellm.train.allocator import keep_freed_memory
kept = keep_freed_memory()
bytearray(30_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    bytearray(30_000_000)
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_blocks_are_not_faulted_in_again(unsaid):
    ran = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, timeout=60
    )
    kept, faults = map(int, ran.stdout.split())
    if not kept:
        pytest.skip("another allocator")
    assert faults < 5_000  # each page anew: 5 times 7,324
