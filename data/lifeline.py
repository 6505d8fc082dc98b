"""How long a worker process lives: as long as its parent wants it, and never longer.

A worker that hangs in a decoder looks at nothing. So a thread of its own listens for signals and
for the end of its parent, and where a decoder lets no thread run, the parent and the kernel end it.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

GRACE = 3.0
"""Seconds that workers have to finish what they are at, when they are not needed any more."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LOOK = 1.0  # seconds between looks for the parent
_APART = 1.0  # seconds; signals that come closer are one


def stay(worker: int, *, with_thread: bool) -> None:
    """Leave signals to the parent, once; called in a new worker.

    Schedulers signal whole groups of processes, and a worker that died would end the step that is
    still to be finished and saved. Whoever signals a second time means it. A signal of the parent
    ends the worker at once.

    Args:
        worker: its number, which PyTorch tells.
        with_thread: whether the kernel may end it with the thread that started it, which is right
            where that is the parent's first.
    """
    above = os.getppid()
    if with_thread and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if not hasattr(signal, "sigtimedwait"):  # macOS; there the parent kills, or is watched
        for name in ("SIGTERM", "SIGUSR1"):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    else:
        signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
    threading.Thread(target=_listen, args=(above,), name="lifeline", daemon=True).start()


_HEARD = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def _listen(above: int) -> None:
    parent = multiprocessing.parent_process()
    first = float("inf")
    while True:
        heard = _next_signal()
        # Of a fork server, the process above is not the parent.
        if os.getppid() != above or (parent is not None and not parent.is_alive()):
            os._exit(0)
        if heard is None:
            continue
        if parent is not None and heard.si_pid == parent.pid:
            os._exit(0)
        if heard.si_signo == signal.SIGUSR1:
            continue
        if time.monotonic() - first > _APART:
            os._exit(0)
        first = min(first, time.monotonic())


def _next_signal() -> Any:
    """What a signal is, or None after a second without one."""
    if hasattr(signal, "sigtimedwait"):
        return signal.sigtimedwait(_HEARD, _LOOK)
    time.sleep(_LOOK)
    return None


def end_after_grace(workers: Sequence[Any]) -> threading.Timer:
    """Kill what is left of workers when their time is over.

    Args:
        workers: processes of ``multiprocessing``.

    Returns:
        a timer that has started; cancel it when all have ended.
    """

    def kill() -> None:
        for worker in workers:
            if worker.is_alive():
                worker.kill()

    timer = threading.Timer(GRACE, kill)
    timer.daemon = True
    timer.start()
    return timer
