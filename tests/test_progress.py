"""Progress on a terminal and off it."""

from __future__ import annotations

import io

import pytest

from onellm.progress import PlainProgress, RichProgress, SilentProgress, duration, follow, watch
from onellm.train.metrics import Progress as Event


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (3900, "1 h 05 min")],
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words


def test_plain_lines_come_now_and_then():
    out, clock = io.StringIO(), Clock()
    progress = PlainProgress(out, every=10, clock=clock)
    progress.phase("encoder", total=100, done=20)
    for _ in range(40):
        clock.now += 1
        progress.note("loss 1.5")
        progress.advance()
    progress.phase("warmup", total=1)
    progress.close()
    assert out.getvalue().splitlines() == [
        "encoder: 20/100",
        "encoder: 30/100, 1 min 10 s left, loss 1.5",
        "encoder: 40/100, 1 min 00 s left, loss 1.5",
        "encoder: 50/100, 50 s left, loss 1.5",
        "encoder: 60/100, 40 s left, loss 1.5",
        "encoder: done in 40 s, loss 1.5",
        "warmup: 0/1",
        "warmup: done in 0 s",
    ]


def test_without_a_terminal_watch_is_plain(capsys):
    with watch() as progress:
        progress.phase("counting", total=3)
        progress.advance(3)
    assert capsys.readouterr().err == "counting: 0/3\ncounting: done in 0 s\n"


def test_bars_count_and_finish():
    with RichProgress() as progress:
        progress.advance()  # before any phase: ignored
        progress.phase("one", total=4)
        progress.advance(2)
        progress.note("half")
        progress.phase("two", total=2, done=1)
        progress.advance()
    one, two = progress._bars.tasks
    assert (one.completed, one.fields["note"]) == (4, "half")
    assert two.completed == 2


def test_an_interrupted_bar_stays_where_it_was():
    progress = RichProgress()
    with pytest.raises(KeyboardInterrupt), progress:
        progress.phase("one", total=4)
        progress.advance()
        raise KeyboardInterrupt
    assert progress._bars.tasks[0].completed == 1


def test_follow_turns_signs_of_life_into_phases():
    out, clock = io.StringIO(), Clock()
    progress = PlainProgress(out, every=1, clock=clock)
    see = follow(progress)
    for done in (16, 40):
        see(Event("instruct", "frozen", done, 40))
    for step in (301, 302):  # resumed
        clock.now += 2
        see(Event("instruct", "train", step, 400, {"loss": 0.5}))
    assert out.getvalue().splitlines()[0] == "instruct: encoding once: 0/40"
    assert "instruct: 300/400" in out.getvalue()
    assert "instruct: 302/400, 1 min 38 s left, loss 0.500" in out.getvalue()


def test_a_line_below_the_bars_tells_the_rest():
    from rich.console import Console

    progress = RichProgress()
    see = follow(progress)
    metrics = {"loss": 0.5, "lr": 1e-3, "samples_per_second": 20.0, "memory_gb": 1.5, "mfu": None}
    see(Event("instruct", "train", 1, 4, metrics))
    console = Console(width=200, record=True)
    with console.capture() as shown:
        console.print(progress._bars.get_renderable())
    bar, below = shown.get().splitlines()
    assert "loss 0.500, 20 samples/s" in bar
    assert below.strip() == "lr 1.0e-03  memory 1.50 GB"
    progress.phase("save", 1)
    assert "memory" not in str(progress._below)


def test_silence(capsys):
    progress = SilentProgress()
    progress.phase("x", 1)
    progress.advance()
    progress.note("y")
    assert capsys.readouterr() == ("", "")
