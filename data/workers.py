"""Making items in other processes, in order, for media that one core cannot decode fast enough."""

from __future__ import annotations

import io
import pickle
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from onellm.errors import OneLLMError

K = TypeVar("K")
T = TypeVar("T")

_ALIGN = 16  # bytes; every number type begins at a multiple of its size


def in_processes(
    make: Callable[[K], T], jobs: Iterable[list[K]], workers: int, ahead: int = 2
) -> Iterator[list[T]]:
    """Make the items of each job in one of several processes; jobs come back in their order.

    Args:
        make: makes one item; it is copied into the processes, and what it changes stays there.
        jobs: what to make, a list at a time. They are asked for a few at a time.
        workers: number of processes, at least 1.
        ahead: jobs that each process may have under way.

    Raises:
        OneLLMError: what ``make`` raised.
    """
    loader: Any = DataLoader(
        _Made(make),
        batch_sampler=jobs,  # type: ignore[arg-type]  # any iterable of lists will do
        num_workers=workers,
        prefetch_factor=ahead,
        collate_fn=wrap,
        worker_init_fn=_stay,
    )
    for parcel in loader:
        items = unwrap(*parcel)
        for item in items:
            if isinstance(item, OneLLMError):
                raise item
        yield items


def _stay(worker: int) -> None:
    """Leave signals to the parent.

    Schedulers signal whole groups of processes, and a worker that died would end the step that is
    still to be finished and saved. A worker ends when its parent does.
    """
    for name in ("SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


class _Made(Dataset[Any], Generic[K, T]):
    def __init__(self, make: Callable[[K], T]) -> None:
        self.make = make

    def __getitem__(self, key: K) -> T | OneLLMError:
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
