"""Telling the person at the keyboard how far long work is, and how long it will still take."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import TaskID


class Progress(Protocol):
    """What long work tells of itself: phases one after the other, each counted to its total."""

    def phase(self, name: str, total: int, done: int = 0) -> None:
        """Begin a phase; the one before it is over.

        Args:
            name: a few words, such as ``"evaluation"``.
            total: units of the whole phase.
            done: units done in an earlier, interrupted run.
        """
        ...

    def advance(self, count: int = 1) -> None:
        """Count units of the current phase."""
        ...

    def note(self, text: str) -> None:
        """Say something about the current phase in one line, such as its loss.

        Args:
            text: a second line, if there is one, is for those who have room for it.
        """
        ...


class SilentProgress:
    """Says nothing; for callers who did not ask."""

    def phase(self, name: str, total: int, done: int = 0) -> None:
        """Ignore it."""

    def advance(self, count: int = 1) -> None:
        """Ignore it."""

    def note(self, text: str) -> None:
        """Ignore it."""


class PlainProgress:
    """A line now and then, for logs and pipes.

    Args:
        out: where lines go; standard error if left out.
        every: seconds between two lines of a phase.
        clock: seconds, rising.
    """

    def __init__(
        self,
        out: TextIO | None = None,
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._out, self._every, self._clock = out or sys.stderr, every, clock
        self._name, self._note = "", ""
        self._total = self._done = self._first = 0
        self._began = self._last = clock()

    def phase(self, name: str, total: int, done: int = 0) -> None:
        """Close the phase before and announce this one."""
        self.close()
        self._name, self._total, self._done, self._first, self._note = name, total, done, done, ""
        self._began = self._last = self._clock()
        self._write(f"{name}: {done}/{total}")

    def advance(self, count: int = 1) -> None:
        """Count, and write a line if the last one is old enough."""
        self._done += count
        now = self._clock()
        if now - self._last < self._every:
            return
        self._last = now
        self._write(f"{self._name}: {self._done}/{self._total}, {self._left(now)} left{self._tail}")

    def note(self, text: str) -> None:
        """Keep it for the next line."""
        self._note = text.partition("\n")[0]

    def close(self) -> None:
        """Write the last line of the current phase."""
        if self._name:
            spent = duration(self._clock() - self._began)
            self._write(f"{self._name}: done in {spent}{self._tail}")
        self._name = ""

    @property
    def _tail(self) -> str:
        return f", {self._note}" if self._note else ""

    def _left(self, now: float) -> str:
        here = self._done - self._first
        if here <= 0:
            return "?"
        return duration((now - self._began) / here * max(0, self._total - self._done))

    def _write(self, line: str) -> None:
        self._out.write(line + "\n")
        self._out.flush()


class RichProgress:
    """Bars with the time left, one per phase, on a terminal; use it as a context manager."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bars
        from rich.text import Text

        self._below = ""
        outer = self

        class WithLine(Bars):
            """Bars, and a line below them."""

            def get_renderables(self) -> Iterator[Any]:
                yield from super().get_renderables()
                if outer._below:
                    yield Text(f"  {outer._below}", style="dim")

        self._bars = WithLine(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]left"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=Console(stderr=True),
        )
        self._task: TaskID | None = None

    def __enter__(self) -> RichProgress:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self._finish()
        self._bars.stop()

    def phase(self, name: str, total: int, done: int = 0) -> None:
        """Finish the bar before and start another below it."""
        self._finish()
        self._task = self._bars.add_task(name, total=total, completed=done, note="")

    def advance(self, count: int = 1) -> None:
        """Move the bar."""
        if self._task is not None:
            self._bars.advance(self._task, count)

    def note(self, text: str) -> None:
        """Show it behind the bar, and its second line below."""
        behind, _, self._below = text.partition("\n")
        if self._task is not None:
            self._bars.update(self._task, note=behind)

    def _finish(self) -> None:
        self._below = ""
        if self._task is not None:
            task = next(t for t in self._bars.tasks if t.id == self._task)
            self._bars.update(self._task, completed=task.total)


@contextmanager
def watch() -> Iterator[Progress]:
    """Progress for the place where the program runs: bars on a terminal, else plain lines.

    Example:
        >>> with watch() as progress:
        ...     progress.phase("counting", total=3)
        ...     for _ in range(3):
        ...         progress.advance()
    """
    if sys.stderr.isatty():
        with RichProgress() as bars:
            yield bars
        return
    plain = PlainProgress()
    yield plain
    plain.close()


def follow(progress: Progress, name: str = "") -> Callable[[Any], None]:
    """A callback for :func:`onellm.train.launch.run_training` that moves a progress.

    Args:
        progress: told of each phase of the run, and of every step with its loss.
        name: what to call the run; its stage's name if left out.
    """
    current: tuple[str, int] = ("", 0)

    def see(event: Any) -> None:
        nonlocal current
        if event.phase == "note":  # for those who read lines
            return
        title = name or event.stage
        title = title if event.phase == "train" else f"{title}: encoding once"
        if current[0] != title:
            # The first step that a resumed run tells of may well be number 300.
            start = event.done - 1 if event.phase == "train" else 0
            current = (title, start)
            progress.phase(title, event.total, start)
        if "loss" in event.metrics:
            progress.note(_both_lines(event.metrics))
        progress.advance(event.done - current[1])
        current = (title, event.done)

    return see


def _short_line(metrics: dict[str, Any]) -> str:
    """What fits behind a bar: loss, that of each group where there are several, speed."""
    losses = metrics.get("losses", {})
    by_group = " ".join(f"{name} {value:.2f}" for name, value in losses.items())
    text = f"loss {metrics['loss']:.3f}" + (f" ({by_group})" if len(losses) > 1 else "")
    rate = metrics.get("samples_per_second")
    return text if rate is None else f"{text}, {rate:.3g} samples/s"


def _both_lines(metrics: dict[str, Any]) -> str:
    """Behind a bar, and below it."""
    from onellm.train.metrics import rates

    rest = {key: value for key, value in metrics.items() if key != "samples_per_second"}
    return f"{_short_line(metrics)}\n{'  '.join(rates(rest))}"


def duration(seconds: float) -> str:
    """Seconds in words: ``"42 s"``, ``"3 min 20 s"``, ``"1 h 05 min"``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
