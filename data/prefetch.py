"""Reading ahead in a thread, so that the next batch is ready when the step is done."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

J = TypeVar("J")
T = TypeVar("T")


def make_ahead(make: Callable[[J], T], jobs: Iterable[J], depth: int) -> Iterator[T]:
    """Make one thing of each job, in order, up to ``depth`` ahead in a thread.

    Unlike with :func:`prefetch`, jobs are asked for in the caller's thread, ``depth`` + 2 before
    the first thing and then one for each, so that the thread is at one while ``depth`` wait.

    Args:
        make: called in the thread; what it raises is raised here when it is its turn.
        jobs: what to make things of.
        depth: how many finished things may wait; 0 makes them in the caller's thread.
    """
    if depth < 1:
        yield from map(make, jobs)
        return
    made: deque[Future[T]] = deque()
    with ThreadPoolExecutor(1, "ahead") as thread:
        try:
            for job in jobs:
                made.append(thread.submit(make, job))
                if len(made) > depth + 1:
                    yield made.popleft().result()
            while made:
                yield made.popleft().result()
        finally:
            thread.shutdown(wait=False, cancel_futures=True)


def prefetch(items: Iterable[T], depth: int) -> Generator[T, None, None]:
    """Pass items on unchanged and in order, produced up to ``depth`` ahead in a thread.

    An error of the producer is raised here; leaving the loop early stops the thread.

    Args:
        items: what to produce.
        depth: how many finished items may wait; 0 produces them in the caller's thread.
    """
    if depth < 1:
        yield from items
        return
    ready: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def put(kind: str, value: T | BaseException | None) -> bool:
        while not stop.is_set():
            try:
                ready.put((kind, value), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put("item", item):
                    return
            put("end", None)
        except BaseException as error:  # handed to the consumer, who raises it
            put("error", error)

    thread = threading.Thread(target=produce, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if isinstance(value, BaseException):
                raise value
            yield value  # type: ignore[misc]  # kind "item" carries a T
    finally:
        stop.set()
        thread.join()
