"""Two runs side by side: which of their files belong together, and what is said of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from onellm.errors import BadInput
from onellm.eval.answers import Record
from onellm.eval.compare import Comparison, compare
from onellm.eval.score_file import read_records


def compare_runs(first: Path, second: Path) -> list[Comparison]:
    """Compare two runs' folders, or two files of scored answers, task by task.

    Tasks that only one folder has are left out. Two files may be of two variants of a task.

    Args:
        first: a folder or a file.
        second: another one.

    Raises:
        BadInput: no task in common, or other questions on the two sides.
    """
    for path in (first, second):
        if not path.exists():
            raise BadInput(path, expected="a run's folder or a file of answers", found="neither")
    if first.is_dir() != second.is_dir():
        raise BadInput(second, expected="two folders or two files", found="one of each")
    if not first.is_dir():
        return _pair(read_records(first), read_records(second))
    common = [name for name in tasks_of(first) if name in tasks_of(second)]
    if not common:
        found = ", ".join(tasks_of(second)) or "no answers"
        raise BadInput(second, expected=f"a task of {', '.join(tasks_of(first))}", found=found)
    files = [(first / f"{name}.jsonl", second / f"{name}.jsonl") for name in common]
    return [c for one, other in files for c in _pair(read_records(one), read_records(other))]


def tasks_of(folder: Path) -> list[str]:
    """Names of the tasks that a run's folder has answers to."""
    names = (path.stem for path in folder.glob("*.jsonl"))
    return sorted(name for name in names if ".part-" not in name and not name.endswith(".grades"))


def _pair(first: list[Record], second: list[Record]) -> list[Comparison]:
    names = [{str(record.get("task", "")) for record in side} for side in (first, second)]
    if names[0] != names[1] and len(names[0]) == len(names[1]) == 1:
        (one,), (other,) = names
        if one.partition("@")[0] == other.partition("@")[0]:
            both = f"{one}, {other}"
            first, second = ([{**r, "task": both} for r in side] for side in (first, second))
    return compare(first, second)


def spoken(found: Comparison, differences: int) -> Iterator[str]:
    """A comparison in lines for a terminal.

    Args:
        found: of one task.
        differences: how many questions with different scores to list.
    """
    test = found.test
    low, high = (100 * bound for bound in test.interval)
    yield f"{found.task}: {found.first:.2f} and {found.second:.2f} on {test.n} questions"
    yield (
        f"  difference {100 * test.difference:+.2f}, 95 % {low:+.2f} to {high:+.2f}, "
        f"p = {test.p:.3g}; the first is better on {test.better}, worse on {test.worse}"
    )
    for gap in found.differences[:differences]:
        one, other = (_short(said) for said in gap.answers)
        yield f"  {gap.id}: {gap.first:g} {one}  |  {gap.second:g} {other}"
    if differences and len(found.differences) > differences:
        yield f"  and {len(found.differences) - differences} more; --differences lists them"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 40 else line[:39] + "…")
