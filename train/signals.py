"""Leaving a run in good order when the machine is about to be taken away."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from onellm.errors import OneLLMError

ASKED_BY = ("SIGTERM", "SIGUSR1")  # SLURM sends USR1 ahead of the end, where asked to


class Stopped(OneLLMError):
    """A run that was asked to stop, and has saved what it has done."""


class StopFlag:
    """Whether this process was asked to stop.

    Attributes:
        asked: True from the signal on.
    """

    def __init__(self) -> None:
        self.asked = False

    def raise_(self, number: int, frame: FrameType | None) -> None:
        """Note a signal; the loop looks after every step."""
        self.asked = True


@contextmanager
def stop_flag() -> Iterator[StopFlag]:
    """Within it, SIGTERM and SIGUSR1 ask for a stop in place of ending the process.

    Only a process's first thread may listen to signals; in others the flag is never raised.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    numbers = [getattr(signal, name) for name in ASKED_BY if hasattr(signal, name)]
    before = {number: signal.signal(number, flag.raise_) for number in numbers}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
