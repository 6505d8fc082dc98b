"""A benchmark as data: files, prompt, decoding, scorer and published numbers, in one YAML file.

Packaged tasks are the files of ``eval/tasks``; a path names a task of the user's own. Nothing here
imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import Formatter
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, field_validator

from onellm.config import StrictModel, parse, read_yaml
from onellm.errors import ConfigError
from onellm.eval.postprocess import STEPS
from onellm.spelling import did_you_mean

TASKS = Path(__file__).parent / "tasks"
OURS = "OneLLM-7B"
"""The row of a task's published scores that ours are compared with."""
CHANCE = "random"
"""The row of what guessing scores, which is nobody's."""


class AnswerSettings(StrictModel):
    """How answers are decoded.

    Attributes:
        max_new_tokens: answers are cut behind this many tokens.
        temperature: 0 takes the likeliest token.
        top_p: nucleus mass, with a temperature.
    """

    max_new_tokens: PositiveInt = 32
    temperature: NonNegativeFloat = 0.0
    top_p: float = Field(default=1.0, gt=0, le=1)


class MediumFile(StrictModel):
    """Where one medium of a question is.

    Attributes:
        modality: its modality's name.
        file: path below the data root with the reader's values in braces, or several of them for
            a modality that takes aligned files. A template that is a single value which is no
            text (a file inside another file, say) stands for that value.
        also: further places where the file may be, for layouts that are in use; the first that
            exists is taken, and the question is known by ``file`` all the same.
        suffix: what files without a suffix are to be read as, such as ``.jpg``.
        when: the medium is there only where the reader's values are these.
        cut: what a stretch of time is cut out of: ``frames`` of a video, or ``samples`` of an
            array whose times are in ``clock``. The whole file is used where the values are None.
        between: names of the values that hold beginning and end of the stretch in seconds.
        clock: path of an array of times in milliseconds, one per sample.
    """

    modality: str
    file: str | tuple[str, ...]
    also: tuple[str, ...] = ()
    suffix: str = ""
    when: dict[str, Any] = Field(default_factory=dict)
    cut: Literal["frames", "samples"] | None = None
    between: tuple[str, str] | None = None
    clock: str = ""

    @property
    def templates(self) -> tuple[str, ...]:
        """All paths, the clock's and the further places among them."""
        files = (self.file,) if isinstance(self.file, str) else self.file
        return (*files, *self.also, *([self.clock] if self.clock else []))


class Scorer(StrictModel):
    """What turns answers into numbers.

    Attributes:
        name: of :mod:`onellm.eval.scorers`.
        options: its settings.
    """

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


class Published(StrictModel):
    """What others report.

    Attributes:
        table: of the paper, or the section where there is none.
        metric: the metric of each number by the name our scorer gives it, and what the table
            calls it.
        scores: by model, then by our metric's name, in the table's unit.
        trained: models that were trained on the benchmark's own training set; the others are
            zero-shot or generalists.
        note: what is not known about the numbers.
    """

    table: str = ""
    metric: dict[str, str] = Field(default_factory=dict)
    scores: dict[str, dict[str, float]] = Field(default_factory=dict)
    trained: tuple[str, ...] = ()
    note: str = ""


class Variant(StrictModel):
    """A named way to run a task otherwise.

    Attributes:
        about: what is different, and who does it so.
        set: keys of the task to replace; mappings are merged.
    """

    about: str
    set: dict[str, Any]


class Task(StrictModel):
    """One benchmark.

    Attributes:
        name: stem of the file; with a variant ``name@variant``.
        title: as the literature writes it.
        group: what kind of benchmark it is; tasks of a group stand together in tables.
        about: what is asked, in a sentence or two.
        split: which part of the data set is used.
        size: number of questions of that split, None where it depends on what could be had.
        source: where to get annotations and media.
        files: annotation files below the data root by the name their reader knows.
        reader: module of :mod:`onellm.eval.readers`, or ``package.module:function``.
        reader_options: its settings.
        media: what is shown, in order; empty where the data themselves say it.
        together: key of ``meta`` whose questions are scored together, so that a run of a few
            questions has all of them or none.
        prompt: what is asked, with the reader's values and ``{options}`` in braces.
        answering: ``generate`` writes an answer; ``likelihood`` finds how likely each option is.
        decoding: greedy, with a limit that fits the answers.
        published_tokens: limit of the published scripts, which sample.
        post: steps between a model's text and the scorer (:mod:`onellm.eval.postprocess`).
        scorer: what turns answers into numbers; None where only a server has the truth.
        rubric: how a judge grades the answers (:mod:`onellm.eval.rubrics`), where one may; the
            variant ``judged`` scores its grades.
        published: what the paper and others report.
        export: formats of official submissions (:mod:`onellm.eval.exports`).
        notes: traps, and where others do otherwise.
        variants: further ways to run the task: name → keys to lay over these.
        extra: not one of the paper's benchmarks.
    """

    name: str
    title: str
    group: str
    about: str
    split: str
    size: PositiveInt | None = None
    source: str
    files: dict[str, str]
    reader: str
    reader_options: dict[str, Any] = Field(default_factory=dict)
    media: tuple[MediumFile, ...] = ()
    together: str = ""
    prompt: str
    answering: Literal["generate", "likelihood"] = "generate"
    decoding: AnswerSettings = AnswerSettings()
    published_tokens: PositiveInt = 128
    post: tuple[str, ...] = ("cut_at_turn", "strip")
    scorer: Scorer | None = None
    rubric: str = ""
    published: Published = Published()
    export: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    variants: dict[str, Variant] = Field(default_factory=dict)
    extra: bool = False

    @field_validator("post")
    @classmethod
    def _known_steps(cls, steps: tuple[str, ...]) -> tuple[str, ...]:
        for step in steps:
            if step not in STEPS:
                raise ValueError(f"unknown step {step!r}.{did_you_mean(step, STEPS)}")
        return steps

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities that the task shows, each once."""
        return tuple(dict.fromkeys(medium.modality for medium in self.media))


def published_sampling(task: Task) -> AnswerSettings:
    """The settings of the published scripts (spec §1.4): sampled, nearly greedy.

    Args:
        task: some scripts allow longer answers.
    """
    return AnswerSettings(max_new_tokens=task.published_tokens, temperature=0.1, top_p=0.75)


def task_names() -> list[str]:
    """Names of the packaged tasks."""
    return sorted(path.stem for path in TASKS.glob("*.yaml"))


def load_task(name: str) -> Task:
    """Read a task.

    Args:
        name: a packaged name or the path of a YAML file; ``name@variant`` takes a variant of it,
            ``name@one+two`` one laid over the other.

    Raises:
        ConfigError: unknown task or variant, with the nearest spelling; or a fault in the file.

    Example:
        >>> load_task("ego4d_imu@repository").prompt
        'Describe the scene.'
    """
    base, _, chosen = name.partition("@")
    own = base.endswith((".yaml", ".yml"))
    path = Path(base) if own else TASKS / f"{base}.yaml"
    if not own and path not in TASKS.glob("*.yaml"):
        raise ConfigError(f"unknown task {base!r}.{did_you_mean(base, task_names())}")
    data = read_yaml(path)
    if data.setdefault("name", path.stem) != path.stem:
        raise ConfigError(f"{path}: the task's name is {data['name']!r}, its file's is another")
    task = parse(Task, data, where=str(path))
    if chosen:
        data["name"] = f"{path.stem}@{chosen}"
        for variant in chosen.split("+"):
            if variant not in task.variants:
                hint = did_you_mean(variant, task.variants)
                raise ConfigError(f"task {base} has no variant {variant!r}.{hint}")
            data = merged(data, task.variants[variant].set)
        task = parse(Task, data, where=f"{path}, variant {chosen}")
    _check_templates(task, path)
    return task


def load_tasks(names: str) -> list[Task]:
    """Read the tasks of a comma-separated list; ``all`` stands for every benchmark.

    Args:
        names: such as ``"gqa,textvqa@ocr,mine.yaml"``.

    Raises:
        ConfigError: see :func:`load_task`; or the same task twice.
    """
    tasks = [load_task(spec) for spec in task_specs(names)]
    if len({task.name for task in tasks}) < len(tasks):
        raise ConfigError(f"--tasks {names}: the same task is there twice")
    return tasks


def task_specs(names: str) -> list[str]:
    """What a comma-separated list of tasks names, ``all`` spelled out.

    Raises:
        ConfigError: nothing.
    """
    specs = [name.strip() for name in names.split(",") if name.strip()]
    if not specs:
        raise ConfigError("no tasks: expected some, such as --tasks gqa,msvd_qa")
    return benchmark_names() if specs == ["all"] else specs


def benchmark_names() -> list[str]:
    """Names of the packaged tasks but the starter pack's: in the paper's order, extras last."""
    tasks = [load_task(name) for name in task_names() if not name.startswith("starter_")]
    # "Section …" comes behind "Table …" where neither is sorted by its first letter.
    tasks.sort(key=lambda t: (t.extra, not t.published.table.startswith("Table"), _place(t)))
    return [task.name for task in tasks]


def _place(task: Task) -> tuple[str, str, str]:
    return task.published.table, task.group, task.name


def merged(data: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping with another laid over it; mappings inside are merged, all else is replaced.

    A key of no value (``null``) is taken away.
    """
    out = dict(data)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = merged(out[key], value) if both else value
    return {key: value for key, value in out.items() if value is not None}


def fields_of(template: str) -> list[str]:
    """Names of the values in a template's braces."""
    return [field for _, field, _, _ in Formatter().parse(template) if field is not None]


def _check_templates(task: Task, path: Path) -> None:
    for template in (task.prompt, *(t for m in task.media for t in m.templates)):
        try:
            names = fields_of(template)
        except ValueError as error:
            raise ConfigError(f"{path}: template {template!r}: {error}") from error
        if bad := [name for name in names if not name.isidentifier()]:
            raise ConfigError(f"{path}: template {template!r}: {bad[0]!r} is no value's name")
