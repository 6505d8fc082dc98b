"""One run of benchmarks: ask what has not been asked, score, report.

A run's folder holds ``run.json`` (the model, the settings, the data), ``<task>.jsonl`` (the
answers, with what was read in them and given for them) and the report in three forms.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onellm.errors import BadInput, ConfigError
from onellm.eval.answers import read_answers
from onellm.eval.items import Item, build_items
from onellm.eval.parts import Shard, answered, merge, wait
from onellm.eval.run_folder import HEADER, Planned, Settings, answers_file, claim, read_header
from onellm.eval.scoring import row_of, score_answers
from onellm.eval.task import Task, load_task, published_sampling
from onellm.eval.validate import SHOWN, absent
from onellm.progress import Progress, SilentProgress

if TYPE_CHECKING:
    from onellm.model import OneLLM


def plan(specs: Mapping[str, Task], settings: Settings) -> list[Planned]:
    """Build the questions of all tasks, before a model is loaded.

    Args:
        specs: tasks by what they were asked for by.
        settings: the run.

    Raises:
        BadInput: annotations that are missing or not in their format; or no question whose media
            are there, where others are to be left out.
    """
    planned = []
    for spec, task in specs.items():
        sampling = published_sampling(task) if settings.decoding == "published" else None
        items = build_items(task, settings.data, limit=settings.limit, settings=sampling)
        planned.append(_with_media(Planned(spec, task, items), settings))
    return planned


def _with_media(job: Planned, settings: Settings) -> Planned:
    """A task without the questions whose media are not there, if they are to be left out."""
    if not settings.skip_missing:
        return job
    lacks = absent(job.items, settings.data)
    items = [item for item, lack in zip(job.items, lacks, strict=True) if not lack]
    if not items:
        raise _missing_media(job, lacks)
    return Planned(job.spec, job.task, items, len(job.items) - len(items))


def _check_media(job: Planned, settings: Settings) -> None:
    """Before a model is loaded: whether the media of all questions to ask are there."""
    keys = {item.key(settings.model_id, settings.seed): item for item in job.items}
    known = answered(answers_file(settings.out, job.task.name), keys)
    lacks = absent([item for key, item in keys.items() if key not in known], settings.data)
    if any(lacks):
        raise _missing_media(job, lacks)


def _missing_media(job: Planned, lacks: Sequence[Sequence[str]]) -> BadInput:
    names = list(dict.fromkeys(lack for several in lacks for lack in several))
    few = ", ".join(names[:SHOWN]) + (" …" if len(names) > SHOWN else "")
    return BadInput(
        f"task {job.task.name}",
        expected="the media of all questions",
        found=f"{sum(map(bool, lacks))} of {len(lacks)} questions without theirs: {few}",
        hint=f"onellm show {job.task.name} says how they lie; --skip-missing leaves them out.",
    )


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
        BadInput: a medium that is not there or cannot be read, or answers that are missing in the
            end.
        ConfigError: the folder holds a run of another model, decoding or seed.
    """
    shard, progress = shard or Shard(), progress or SilentProgress()
    to_ask = [job for job in planned if not _all_there(job, settings)]
    for job in to_ask:  # of all tasks first, or hours may pass before one is missed
        _check_media(job, settings)
    if shard.rank == 0:
        claim(planned, settings)
    model = load() if to_ask else None
    for job in to_ask:
        assert model is not None
        _run(model, job, settings, shard, progress)
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
    settings: Settings,
    shard: Shard,
    progress: Progress,
) -> None:
    from onellm.eval.runner import run

    _check_modalities(model, job)
    file = answers_file(settings.out, job.task.name)
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


def _all_there(job: Planned, settings: Settings) -> bool:
    file = answers_file(settings.out, job.task.name)
    if not file.exists():
        return False
    keys = {record["key"] for record in read_answers(file)}
    return all(item.key(settings.model_id, settings.seed) in keys for item in job.items)


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
        row["left_out"] = facts.get("left_out", 0)
        row["partial"] = (
            facts["limit"] is not None or bool(row["left_out"]) or row["n"] < (row["size"] or 0)
        )
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
