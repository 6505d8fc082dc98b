"""What a run is and where it lies: its settings, its folder, and the header that speaks of both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onellm.errors import BadInput, ConfigError
from onellm.eval.answers import read_answers
from onellm.eval.fingerprint import files_fingerprint
from onellm.eval.items import Item
from onellm.eval.machine import environment
from onellm.eval.task import Task

HEADER = "run.json"
DECODINGS = ("greedy", "published")
"""``greedy``: each task's own limit, the likeliest token. ``published``: the sampling of the
published scripts (temperature 0.1, top-p 0.75, 128 tokens), with a seed for every answer."""


@dataclass(frozen=True)
class Settings:
    """What is run.

    Args:
        model: folder or hub id, for the report.
        model_id: what the model is known by: answers of another one are not mixed with its own.
        data: folder that the tasks' paths are below.
        out: folder of the run.
        decoding: a name of :data:`DECODINGS`.
        limit: the first so many questions of each task.
        batch_size: questions of one pass.
        seed: of sampling.
        skip_missing: leave out questions whose media are not there, and say how many.
    """

    model: str
    model_id: str
    data: Path
    out: Path
    decoding: str = "greedy"
    limit: int | None = None
    batch_size: int = 16
    seed: int = 0
    skip_missing: bool = False

    def __post_init__(self) -> None:
        """Check the decoding's name."""
        if self.decoding not in DECODINGS:
            raise ConfigError(f"--decoding {self.decoding}: expected {' or '.join(DECODINGS)}")


@dataclass(frozen=True)
class Planned:
    """A task and its questions.

    Args:
        spec: what it was asked for by: a name, or the path of a file.
        task: the task.
        items: its questions.
        left_out: how many were left out because their media are not there.
    """

    spec: str
    task: Task
    items: Sequence[Item]
    left_out: int = 0


def answers_file(out: Path, task: str) -> Path:
    """Where a task's answers are."""
    return out / f"{task}.jsonl"


def claim(planned: Sequence[Planned], settings: Settings) -> None:
    """Take the run's folder, new or of the same run, and note what is in it.

    Args:
        planned: what is to be asked.
        settings: the run.

    Raises:
        ConfigError: it holds a run of another model, decoding or seed, or more answers than are
            asked for now.
    """
    path = settings.out / HEADER
    about = {
        "model": {"name": settings.model, "id": settings.model_id},
        "decoding": settings.decoding,
        "seed": settings.seed,
    }
    known: dict[str, Any] = {}
    if path.exists():
        known = read_header(path)
        for key, value in about.items():
            if known.get(key) != value:
                raise ConfigError(
                    f"{settings.out} holds a run of another {key} ({known.get(key)}); take "
                    "another --out"
                )
    tasks = dict(known.get("tasks", {}))
    for job in planned:
        before = tasks.get(job.task.name, {}).get("questions", 0)
        if before > len(job.items):
            raise ConfigError(
                f"{settings.out} holds a run of {before} questions of {job.task.name}, and now "
                f"{len(job.items)} are asked; take another --out"
            )
    tasks |= {job.task.name: _facts(job, settings) for job in planned}
    settings.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**about, "tasks": tasks, **environment()}, indent=1, ensure_ascii=False)
    temporary = path.with_name(f".{HEADER}.tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)


def _facts(job: Planned, settings: Settings) -> dict[str, Any]:
    task = job.task
    ids = [item.id for item in job.items]
    return {
        "spec": job.spec,
        "questions": len(ids),
        "ids": ids_digest(ids),
        "limit": settings.limit,
        "left_out": job.left_out,
        "size": task.size,
        "data": str(settings.data),
        "annotations": files_fingerprint(
            settings.data, [settings.data / name for name in task.files.values()]
        ),
        "prompt": task.prompt,
        "decoding": job.items[0].settings.model_dump(),
        "scorer": task.scorer.model_dump() if task.scorer else None,
    }


def ids_digest(ids: Iterable[str]) -> str:
    """A name for a set of ids."""
    return hashlib.sha256("\x1f".join(sorted(ids)).encode()).hexdigest()[:16]


def read_header(path: Path) -> dict[str, Any]:
    """A run's ``run.json``.

    Raises:
        BadInput: it is not readable.
    """
    try:
        header: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(path, expected="the header of a run", found=str(error)) from error
    return header


def check_whole(file: Path) -> str:
    """Compare a file of answers with what the header beside it says there should be.

    Args:
        file: a run's file of answers.

    Returns:
        a remark where it could not be checked, else nothing.

    Raises:
        BadInput: another number of answers, or others than were asked for.
    """
    path = file.parent / HEADER
    facts = read_header(path)["tasks"].get(file.stem) if path.is_file() else None
    if facts is None:
        return f"nothing says how many answers {file.name} should have; --data would"
    ids = [record["id"] for record in read_answers(file)]
    if len(ids) != facts["questions"] or ids_digest(ids) != facts["ids"]:
        expected = f"the {facts['questions']} answers that {path.name} speaks of"
        raise BadInput(file, expected=expected, found=f"{len(ids)}, or others")
    return ""
