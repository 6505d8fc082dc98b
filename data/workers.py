"""Making items in other processes, in order, for media that one core cannot decode fast enough.

Shape legend: W worker processes.
"""

from __future__ import annotations

import io
import pickle
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data._utils import signal_handling

from onellm.data.lifeline import end_after_grace, stay
from onellm.errors import BadInput, OneLLMError

K = TypeVar("K")
T = TypeVar("T")

PATIENCE = 1200.0
"""Seconds to wait for what a worker process makes: more than a large shard takes to be fetched."""

_LOOK = 2.0  # seconds between looks for dead workers
_ALIGN = 16  # bytes; every number type begins at a multiple of its size


def in_processes(
    make: Callable[[K], T],
    jobs: Iterable[list[K]],
    workers: int,
    ahead: int = 2,
    *,
    patience: float = PATIENCE,
    name: Callable[[K], str] = str,
) -> Iterator[list[T]]:
    """Make the items of each job in one of several processes; jobs come back in their order.

    Args:
        make: makes one item; it is copied into the processes, and what it changes stays there.
        jobs: what to make, a list at a time. They are asked for a few at a time.
        workers: number of processes, at least 1.
        ahead: jobs that each process may have under way.
        patience: seconds to wait for a job; 0 waits for ever.
        name: what an item is called in an error message.

    Raises:
        OneLLMError: what ``make`` raised.
        BadInput: a process came to its end, or to none, over an item.
    """
    under_way: deque[list[tuple[int, K]]] = deque()
    # What each process is at, so that an item over which one hangs or dies has a name.
    at_W = torch.full((workers,), -1, dtype=torch.int64).share_memory_()
    first_thread = threading.current_thread() is threading.main_thread()
    loader: Any = DataLoader(
        _Made(make, at_W),
        batch_sampler=_numbered(jobs, under_way),  # type: ignore[arg-type]
        num_workers=workers,
        prefetch_factor=ahead,
        collate_fn=wrap,
        worker_init_fn=partial(stay, with_thread=first_thread),
        timeout=_LOOK,
    )
    finalizing = sys.is_finalizing  # this module may be cleared before this generator is closed
    parcels = iter(loader)
    _end_quietly(parcels)
    try:
        while True:
            try:
                parcel = _next(parcels, patience)
            except StopIteration:
                return
            except _Lost as lost:
                raise _explained(lost, under_way, at_W, name) from lost
            under_way.popleft()
            items = unwrap(*parcel)
            for item in items:
                if isinstance(item, OneLLMError):
                    raise item
            yield items
    finally:
        if not finalizing():  # no thread can be started then, and workers have been ended
            timer = end_after_grace(getattr(parcels, "_workers", ()))
            parcels._shutdown_workers()
            timer.cancel()


def _numbered(
    jobs: Iterable[list[K]], under_way: deque[list[tuple[int, K]]]
) -> Iterator[list[tuple[int, K]]]:
    number = 0
    for job in jobs:
        under_way.append(list(enumerate(job, number)))
        number += len(job)
        yield under_way[-1]


def _end_quietly(parcels: Any) -> None:
    """Look for dead workers where parcels are waited for, and nowhere else.

    PyTorch raises from a signal handler, in the middle of whatever the first thread is at.
    """
    if getattr(parcels, "_worker_pids_set", False):
        signal_handling._remove_worker_pids(id(parcels))
        parcels._worker_pids_set = False


class _Lost(Exception):
    """No parcel comes any more: the numbers of dead workers, or none of them where one hangs."""

    def __init__(self, dead: Mapping[int, int], waited: float) -> None:
        super().__init__(f"dead: {dead}")
        self.dead, self.waited = dead, waited


def _next(parcels: Any, patience: float) -> Any:
    began = time.monotonic()
    while True:
        try:
            return next(parcels)
        except RuntimeError as error:  # PyTorch has no kinds of errors for these
            codes = {n: w.exitcode for n, w in enumerate(parcels._workers)}
            dead = {n: code for n, code in codes.items() if code is not None}
            if not dead and "timed out" not in str(error):
                raise
            waited = time.monotonic() - began
            if dead or (patience and waited >= patience):
                raise _Lost(dead, waited) from error


def _explained(
    lost: _Lost, under_way: deque[list[tuple[int, K]]], at_W: Tensor, name: Callable[[K], str]
) -> BadInput:
    """Name the items over which workers have died, or the one that is not finished."""
    keys = dict(pair for job in under_way for pair in job)
    awaited = dict(under_way[0]) if under_way else {}
    if not lost.dead:
        # Where no other thread can run, what a process made before is still with it.
        at = [n for n in at_W.tolist() if n in keys]
        stuck = [n for n in at if n in awaited] or at
        hangs = "a worker process that is still at it: its decoder may hang"
        return BadInput(
            "; ".join(name(keys[n]) for n in stuck or awaited),
            expected=f"a sample within {lost.waited:.0f} s",
            found=hangs if stuck else "no worker process that has begun with it",
            hint="Take it out of the data, or raise data.patience.",
        )
    number, code = next(iter(lost.dead.items()))
    last = int(at_W[number])
    cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    memory = "Memory may have run out: fewer data.workers need less." if code == -9 else ""
    return BadInput(
        name(keys[last]) if last in keys else "the data",
        expected="a sample that can be decoded",
        found=f"the end of the worker process that was at it ({cause})",
        hint=memory or "Take it out of the data, if it happens again.",
    )


class _Made(Dataset[Any], Generic[K, T]):
    def __init__(self, make: Callable[[K], T], at_W: Tensor) -> None:
        self.make, self.at_W = make, at_W

    def __getitem__(self, numbered: tuple[int, K]) -> T | OneLLMError:
        info = get_worker_info()
        number, key = numbered
        self.at_W[info.id if info else 0] = number
        try:
            return self.make(key)
        except OneLLMError as error:  # PyTorch would raise it again from its message alone
            return error


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []

    def persistent_id(self, item: Any) -> Any:
        if not isinstance(item, Tensor):
            return None
        self.tensors.append(item.contiguous())
        return len(self.tensors) - 1, tuple(item.shape), item.dtype


def wrap(items: Any) -> tuple[bytes, Tensor]:
    """Put whatever holds tensors into one tensor of bytes and a description.

    Each tensor that is sent on its own costs an open file.

    Args:
        items: can be pickled.
    """
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(items)
    sizes = [-(-t.numel() * t.element_size() // _ALIGN) * _ALIGN for t in pickler.tensors]
    buffer = torch.zeros(sum(sizes), dtype=torch.uint8)
    for tensor, piece in zip(pickler.tensors, buffer.split(sizes), strict=True):
        flat = tensor.reshape(-1).view(torch.uint8)
        piece[: len(flat)] = flat
    return file.getvalue(), buffer


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, buffer: Tensor) -> None:
        super().__init__(io.BytesIO(data))
        self.buffer, self.at = buffer, 0

    def persistent_load(self, key: Any) -> Tensor:
        _, shape, dtype = key
        size = torch.Size(shape).numel() * dtype.itemsize
        flat = self.buffer[self.at : self.at + size]
        self.at += -(-size // _ALIGN) * _ALIGN
        return flat.view(dtype).reshape(shape)


def unwrap(data: bytes, buffer: Tensor) -> Any:
    """Inverse of :func:`wrap`; the tensors share the buffer's memory."""
    return _Unpickler(data, buffer).load()
