"""Shards under an address: fetched again where that can help, on a shelf that processes share."""

from __future__ import annotations

import errno
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tiny import MODALITIES
from tiny_runs import opened, write_shards

from onellm.data import streams
from onellm.data.fetching import FetchConfig, OutOfReach, fetch
from onellm.data.streams import Shelf, listed_sizes
from onellm.errors import BadInput, ConfigError
from onellm.modality import Modality
from onellm.registry import get_modality

QUICK = FetchConfig(tries=4, pause_seconds=0.01, stall_seconds=0.5)
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def modalities() -> dict[str, Modality]:
    return {name: get_modality(name, **MODALITIES[name]) for name in ("image", "imu")}


Answer = Callable[[BaseHTTPRequestHandler, int], None]


@contextmanager
def server(answer: Answer) -> Iterator[tuple[str, list[str]]]:
    """A web server on this machine: its address, and the paths it was asked for.

    Args:
        answer: is given the request and how many have asked for the same path before.
    """
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            answer(self, asked.count(self.path) - 1)

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        thread = threading.Thread(target=web.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{web.server_address[1]}", asked
        web.shutdown()


def give(request: BaseHTTPRequestHandler, data: bytes, length: int | None = None) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(len(data) if length is None else length))
    request.end_headers()
    request.wfile.write(data)


def refuse(status: int) -> Answer:
    return lambda request, _: request.send_error(status)


def test_a_server_that_fails_twice_and_then_serves(tmp_path, modalities, caplog):
    data = (write_shards(tmp_path) / "imu-train.tar").read_bytes()

    def answer(request: BaseHTTPRequestHandler, before: int) -> None:
        if not request.path.endswith(".tar"):
            request.send_error(404)
        elif before < 2:
            request.send_error(503)
        else:
            give(request, data)

    with server(answer) as (address, asked):
        shelf = Shelf(tmp_path / "shelf", fetching=QUICK)
        made = opened(f"{address}/imu-train.tar", modalities, shelf)
        (samples,) = made.groups.values()
        assert len(samples) == 6
        assert modalities["imu"].load(samples[5].media[0][1]).shape == (6, 40)
    assert asked.count("/imu-train.tar") == 3
    assert asked.count("/shards.json") == 1
    told = [record.getMessage() for record in caplog.records]
    assert [line.rpartition(": ")[2] for line in told] == [
        "the server answered 503; trying again in 0.01 s (try 2 of 4)",
        "the server answered 503; trying again in 0.02 s (try 3 of 4)",
    ]


def test_a_shard_out_of_reach_is_asked_for_again_later(tmp_path, modalities, monkeypatch):
    """A network that was away for an hour has not lost its shards for the rest of a run."""
    data = (write_shards(tmp_path) / "imu-train.tar").read_bytes()
    away = [True]

    def answer(request: BaseHTTPRequestHandler, _: int) -> None:
        if away[0] or "shards.json" in request.path:
            request.send_error(503 if "imu" in request.path else 404)
        else:
            give(request, data)

    config = FetchConfig(tries=2, pause_seconds=0)
    with server(answer) as (address, asked):
        shelf = Shelf(tmp_path / "shelf", fetching=config)
        made = opened(f"{address}/imu-0.tar", modalities, shelf, shard_samples=6)
        (samples,) = made.groups.values()
        for _ in range(3):
            with pytest.raises(OutOfReach):
                samples[0]
        assert asked.count("/imu-0.tar") == 2
        away[0] = False
        with pytest.raises(OutOfReach):
            samples[0]
        monkeypatch.setattr("onellm.data.tars.time.monotonic", lambda: time.time() + 1e9)
        assert samples[0].media


def cut_off(request: BaseHTTPRequestHandler, before: int) -> None:
    give(request, b"x" * 1000, length=5000 if before < 2 else None)


def stuck(request: BaseHTTPRequestHandler, before: int) -> None:
    give(request, b"x" * 1000, length=5000 if before < 1 else None)
    time.sleep(2.0 if before < 1 else 0)


@pytest.mark.parametrize(("answer", "times"), [(cut_off, 3), (stuck, 2)])
def test_what_breaks_off_or_stands_still_is_fetched_anew(tmp_path, answer, times):
    with server(answer) as (address, asked):
        fetch(f"{address}/a", tmp_path / "a", QUICK)
    assert (tmp_path / "a").read_bytes() == b"x" * 1000
    assert len(asked) == times


def test_pauses_grow_and_the_last_reason_is_told(tmp_path):
    pauses: list[float] = []
    config = FetchConfig(tries=8, pause_seconds=2)
    with (
        server(refuse(500)) as (address, _),
        pytest.raises(OutOfReach, match="the server answered 500, 8 times"),
    ):
        fetch(f"{address}/a", tmp_path / "a", config, pauses.append)
    assert pauses == [2, 4, 8, 16, 32, 60, 60]


@pytest.mark.parametrize(
    ("status", "found"), [(404, "404: no such file"), (403, "403: no right to it")]
)
def test_what_stays_so_is_asked_for_once(tmp_path, status, found):
    with (
        server(refuse(status)) as (address, asked),
        pytest.raises(BadInput, match=found) as error,
    ):
        fetch(f"{address}/a", tmp_path / "a", QUICK)
    assert len(asked) == 1
    assert not isinstance(error.value, OutOfReach)


@pytest.mark.parametrize(
    ("command", "tries"),
    [
        ("echo 'fatal error: An error occurred (404): Key does not exist' >&2; exit 1", 1),
        ("no-such-command-as-this", 1),
        ("echo 'connection reset by peer' >&2; exit 1", 2),
    ],
)
def test_commands_say_why_they_failed(tmp_path, command, tries):
    config = FetchConfig(tries=2, pause_seconds=0)
    pauses: list[float] = []
    with pytest.raises(BadInput, match=r"code \d+ \(.*(404|not found|reset)"):
        fetch(f"pipe:{command}", tmp_path / "a", config, pauses.append)
    assert len(pauses) == tries - 1


def test_a_listing_that_is_out_of_reach_is_not_taken_for_none(tmp_path):
    """Every shard would be fetched, to be counted."""
    shelf = Shelf(tmp_path / "shelf", fetching=QUICK)
    with server(refuse(503)) as (address, _), pytest.raises(OutOfReach):
        listed_sizes([f"{address}/a.tar"], shelf)
    with server(refuse(404)) as (address, _):
        assert listed_sizes([f"{address}/a.tar"], shelf) == {}


def test_a_damaged_shard_is_named_by_its_address(tmp_path, modalities):
    def answer(request: BaseHTTPRequestHandler, _: int) -> None:
        give(request, b"<html>" * 1000) if request.path == "/imu-0.tar" else request.send_error(404)

    with server(answer) as (address, asked), pytest.raises(BadInput) as error:
        opened(f"{address}/imu-0.tar", modalities, Shelf(tmp_path / "shelf", fetching=QUICK))
    assert error.value.source == f"{address}/imu-0.tar"
    assert f"Fetched to {tmp_path}" in str(error.value)
    assert asked.count("/imu-0.tar") == 1


# -- the shelf -----------------------------------------------------------------------------------


def together(target: Callable[..., None], *arguments: Any, processes: int = 2) -> list[int | None]:
    """Exit codes of a function run in several processes at once."""
    started = [FORK.Process(target=target, args=arguments) for _ in range(processes)]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    return [process.exitcode for process in started]


def _read_in_turns(shelf: Shelf, folder: Path, rounds: int) -> None:
    for n in range(rounds):
        name = f"{n % 4}.tar"
        data = shelf.read(f"file://{folder}/{name}", Path.read_bytes)
        assert data == name.encode() * 200


def test_processes_that_take_each_others_room(tmp_path):
    """What one has found may be gone before it has noted that, or opened it."""
    for i in range(4):
        (tmp_path / f"{i}.tar").write_bytes(f"{i}.tar".encode() * 200)
    shelf = Shelf(tmp_path / "shelf", gigabytes=2.5e-6)
    assert together(_read_in_turns, shelf, tmp_path, 400) == [0, 0]
    kept = [p for p in (tmp_path / "shelf").iterdir() if not p.name.startswith(".")]
    assert len(kept) <= 3


def _ask(shelf: Shelf, address: str) -> None:
    with pytest.raises(OutOfReach, match="3 times"):
        shelf.path(f"{address}/bad.tar")
    assert shelf.path(f"{address}/good.tar").read_bytes() == b"x" * 1000


def test_processes_wait_for_the_one_that_fetches(tmp_path):
    """They have its file, or its failure: tries of each for itself would follow one another."""

    def answer(request: BaseHTTPRequestHandler, before: int) -> None:
        time.sleep(0.2)
        if request.path == "/bad.tar":
            request.send_error(503)
        else:
            give(request, b"x" * 1000)

    config = FetchConfig(tries=3, pause_seconds=0.2)
    with server(answer) as (address, asked):
        shelf = Shelf(tmp_path / "shelf", fetching=config)
        assert together(_ask, shelf, address, processes=3) == [0, 0, 0]
    assert asked.count("/bad.tar") == 3
    assert asked.count("/good.tar") == 1


def test_a_failure_is_not_kept(tmp_path):
    shelf = Shelf(tmp_path / "shelf", fetching=FetchConfig(tries=1))
    with pytest.raises(BadInput, match="no such file"):
        shelf.path(f"file://{tmp_path}/a.tar")
    (tmp_path / "a.tar").write_bytes(b"now it is there")
    assert shelf.path(f"file://{tmp_path}/a.tar").read_bytes() == b"now it is there"


def test_a_table_is_not_among_what_makes_room(tmp_path):
    """It is read all through a run, also by processes that start later."""
    for name in ("table.json", "a.tar", "b.tar"):
        (tmp_path / name).write_bytes(b"x" * 1000)
    shelf = Shelf(tmp_path / "shelf", gigabytes=1e-6)
    table = shelf.path(f"file://{tmp_path}/table.json", keep=True)
    for name in ("a.tar", "b.tar"):
        shelf.path(f"file://{tmp_path}/{name}")
    assert table.is_file()


@pytest.mark.parametrize("folder", ["taken", "taken/below", "/sys/onellm-shelf"])
def test_a_shelf_that_cannot_be_written(tmp_path, folder):
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "a.tar").write_text("a shard")
    shelf = Shelf(tmp_path / folder)
    for use in (shelf.path, lambda place: shelf.count(place, lambda path: 1)):
        with pytest.raises(ConfigError, match=r"data\.shelf: .* Set data\.shelf to") as error:
            use(f"file://{tmp_path}/a.tar")
        assert str(tmp_path / folder) in str(error.value)


def test_a_full_disk(tmp_path, monkeypatch):
    def full(place: str, file: Path, config: FetchConfig) -> None:
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(streams, "fetch", full)
    shelf = Shelf(tmp_path / "shelf", gigabytes=5)
    with pytest.raises(ConfigError, match=r"the disk full.*data\.shelf_gigabytes \(5\)"):
        shelf.path("https://host/a.tar")
    assert all(p.suffix in (".lock",) for p in (tmp_path / "shelf").iterdir())


def test_a_shelf_of_someone_else_can_be_read(tmp_path, monkeypatch):
    (tmp_path / "a.tar").write_text("a shard")
    shelf = Shelf(tmp_path / "shelf")
    shelf.path(f"file://{tmp_path}/a.tar")

    def denied(*args: Any, **named: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(streams.os, "utime", denied)
    assert shelf.path(f"file://{tmp_path}/a.tar").read_text() == "a shard"
