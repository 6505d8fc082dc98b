"""One run of benchmarks: ask what has not been asked, score, report.

A run's folder holds ``run.json`` (the model, the settings, the data), ``<task>.jsonl`` (the
answers, with what was read in them and given for them) and the report in three forms.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onellm.errors import BadInput, ConfigError
from onellm.eval.answers import read_answers
from onellm.eval.fingerprint import files_fingerprint
from onellm.eval.items import Item, build_items
from onellm.eval.machine import environment
from onellm.eval.parts import Shard, merge, wait
from onellm.eval.scoring import row_of, score_answers
from onellm.eval.task import Task, load_task, published_sampling
from onellm.progress import Progress, SilentProgress

if TYPE_CHECKING:
    from onellm.model import OneLLM

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
    """

    model: str
    model_id: str
    data: Path
    out: Path
    decoding: str = "greedy"
    limit: int | None = None
    batch_size: int = 16
    seed: int = 0

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
    """

    spec: str
    task: Task
    items: Sequence[Item]


def plan(specs: Mapping[str, Task], settings: Settings) -> list[Planned]:
    """Build the questions of all tasks, before a model is loaded.

    Args:
        specs: tasks by what they were asked for by.
        settings: the run.

    Raises:
        BadInput: data that are missing or not in their format.
    """
    planned = []
    for spec, task in specs.items():
        sampling = published_sampling(task) if settings.decoding == "published" else None
        items = build_items(task, settings.data, limit=settings.limit, settings=sampling)
        planned.append(Planned(spec, task, items))
    return planned


def evaluate(
    planned: Sequence[Planned],
    settings: Settings,
    load: Callable[[], OneLLM],
    *,
    shard: Shard | None = None,
    progress: Progress | None = None,
) -> Path | None:
    """Ask everything that has not been asked, score and report.

    Args:
        planned: what :func:`plan` returned.
        settings: the run.
        load: loads the model; not called where all answers are there.
        shard: this process among others; the first one waits for the rest, scores and reports.
        progress: told about every task.

    Returns:
        the path of ``report.html``; None of other processes than the first.

    Raises:
        BadInput: a medium that cannot be read, or answers that are missing in the end.
        ConfigError: the folder holds a run of another model, decoding or seed.
    """
    shard, progress = shard or Shard(), progress or SilentProgress()
    model: OneLLM | None = None
    if shard.rank == 0:
        _claim(planned, settings)
    for job in planned:
        file = answers_file(settings.out, job.task.name)
        if _all_there(job, file, settings):
            continue
        if model is None:
            model = load()
        _run(model, job, file, settings, shard, progress)
    if shard.rank:
        return None
    for job in planned:
        order = [item.key(settings.model_id, settings.seed) for item in job.items]
        file = answers_file(settings.out, job.task.name)
        if shard.world > 1:
            wait(file, set(order), note=progress.note)
        merge(file, order)
    return report(settings.out, planned, progress=progress)


def _run(
    model: OneLLM,
    job: Planned,
    file: Path,
    settings: Settings,
    shard: Shard,
    progress: Progress,
) -> None:
    from onellm.eval.runner import run

    _check_modalities(model, job)
    run(
        *(model, job.items, file, settings.batch_size, progress),
        shard=shard,
        model_id=settings.model_id,
        seed=settings.seed,
        phase=job.task.name,
    )


def _check_modalities(model: OneLLM, job: Planned) -> None:
    names = {medium.modality for item in job.items for medium in item.media}
    for name in sorted(names):
        try:
            model.modality(name)
        except ConfigError as error:
            raise ConfigError(f"task {job.task.name}: {error}") from error


def _all_there(job: Planned, file: Path, settings: Settings) -> bool:
    if not file.exists():
        return False
    keys = {record["key"] for record in read_answers(file)}
    return all(item.key(settings.model_id, settings.seed) in keys for item in job.items)


def answers_file(out: Path, task: str) -> Path:
    """Where a task's answers are."""
    return out / f"{task}.jsonl"


# -- the run's header -----------------------------------------------------------------------------


def _claim(planned: Sequence[Planned], settings: Settings) -> None:
    """Take the folder, new or of the same run, and note what is in it."""
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


# -- scores and the report ------------------------------------------------------------------------


def report(
    out: Path,
    planned: Sequence[Planned] = (),
    *,
    thumbnails: bool = True,
    progress: Progress | None = None,
) -> Path:
    """Score every task that a run's folder holds, and write its report.

    Args:
        out: the folder.
        planned: tasks whose media may be shown.
        thumbnails: show the media of sample answers; needs the modalities, and so torch.
        progress: told about it.

    Returns:
        the path of ``report.html``.
    """
    from onellm.eval.benchmark_report import write_benchmarks

    header = read_header(out / HEADER)
    items = {job.task.name: job.items for job in planned}
    tasks = {job.task.name: job.task for job in planned}
    rows: list[dict[str, Any]] = []
    pictures: dict[Any, list[Any]] = {}
    names = list(header["tasks"])
    (progress or SilentProgress()).phase("scoring", len(names))
    for name in names:
        facts, file = header["tasks"][name], answers_file(out, name)
        if not file.exists():  # of another call, which was cut off
            continue
        task = tasks.get(name) or load_task(facts["spec"])
        row = task_row(task, file, header["seed"])
        row["partial"] = facts["limit"] is not None or row["n"] < (row["size"] or 0)
        if thumbnails and name in items:
            shown = {sample["id"] for sample in row["samples"]}
            pictures |= _pictures(name, items[name], shown)
        rows.append(row)
        (progress or SilentProgress()).advance()
    return write_benchmarks(out, header, rows, pictures)


def task_row(task: Task, file: Path, seed: int = 0) -> dict[str, Any]:
    """A task's line of the report, scored anew.

    Args:
        task: the task.
        file: its answers.
        seed: picks the sample answers.
    """
    from onellm.eval.benchmark_report import picked

    if task.scorer is None:
        records, score = read_answers(file), None
    else:
        records, score = score_answers(task, file)
    return row_of(task, records, score) | {"samples": picked(task, records, seed)}


def _pictures(task: str, items: Sequence[Item], ids: Collection[str]) -> dict[Any, list[Any]]:
    """Pictures of the media of some questions; what has none is left out."""
    from onellm.registry import get_modality

    pictures: dict[tuple[str, str], list[Any]] = {}
    for item in items:
        if item.id not in ids:
            continue
        for medium in item.media:
            try:
                picture = get_modality(medium.modality).thumbnail(medium.open())
            except (BadInput, TypeError):
                continue
            pictures.setdefault((task, item.id), []).append(picture)
    return pictures
