"""What is missing of a task's data, found before a model is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from onellm.errors import BadInput
from onellm.eval.cuts import Cut
from onellm.eval.items import Item, build_items
from onellm.eval.task import Task

SHOWN = 3
"""Missing media that are named."""


@dataclass(frozen=True)
class Finding:
    """What was found of one task.

    Args:
        task: its name.
        questions: how many there are, 0 where they cannot be read.
        expected: how many the data set has; None where that is not known.
        media: how many different media files are asked for.
        missing: those of them that are not there, with their paths below the root, and stretches
            that recordings do not have.
        problem: what keeps the questions from being read, empty if nothing does.
    """

    task: str
    questions: int = 0
    expected: int | None = None
    media: int = 0
    missing: tuple[str, ...] = ()
    problem: str = ""

    @property
    def ready(self) -> bool:
        """Whether the task can be run."""
        return not self.problem and not self.missing

    def __str__(self) -> str:
        if self.problem:
            return f"{self.task}: {self.problem}"
        size = f"{self.questions} questions"
        if self.expected is not None and self.expected != self.questions:
            size += f" (the data set has {self.expected})"
        if not self.missing:
            return f"{self.task}: {size}, {self.media} media files, nothing missing"
        names = ", ".join(self.missing[:SHOWN]) + (" …" if len(self.missing) > SHOWN else "")
        return f"{self.task}: {size}, {len(self.missing)} of {self.media} media missing: {names}"


def validate(tasks: Iterable[Task], root: str | Path, limit: int | None = None) -> list[Finding]:
    """Look for the annotations and media of tasks; no medium is opened.

    Args:
        tasks: which.
        root: folder that their paths are below.
        limit: look at the first so many questions of each only.
    """
    return [_look(task, Path(root), limit) for task in tasks]


def _look(task: Task, root: Path, limit: int | None) -> Finding:
    try:
        items = build_items(task, root, limit=limit)
    except BadInput as error:
        return Finding(task.name, expected=task.size, problem=str(error))
    files = {path for item in items for medium in item.media for path in medium.files}
    missing = tuple(dict.fromkeys(lack for lacks in absent(items, root) for lack in lacks))
    expected = task.size if limit is None else None
    return Finding(task.name, len(items), expected, len(files), missing)


def absent(items: Sequence[Item], root: Path) -> list[list[str]]:
    """What each of some questions lacks: files below a folder, and stretches outside recordings.

    Args:
        items: the questions; no medium is opened, but the clocks of recordings are.
        root: folder that paths are told from.

    Returns:
        for each question the names of what is missing, none for most.
    """
    there = _present(path for item in items for medium in item.media for path in medium.files)
    lacks: dict[str, list[str]] = {}
    for medium in (medium for item in items for medium in item.media):
        if medium.id in lacks:
            continue
        gone = [os.path.relpath(path, root) for path in medium.files if path not in there]
        if not gone and isinstance(medium.source, Cut) and (lack := medium.source.lack()):
            gone = [lack]
        lacks[medium.id] = gone
    return [[lack for medium in item.media for lack in lacks[medium.id]] for item in items]


def _present(files: Iterable[Path]) -> set[Path]:
    """Those of some files that are there: one look at each folder, not one at each file."""
    listed: dict[Path, set[str]] = {}
    found = set()
    for path in files:
        if path.parent not in listed:
            folder = path.parent
            listed[folder] = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
        if path.name in listed[path.parent]:
            found.add(path)
    return found
