"""From a task and a folder of data to questions: prompts filled in, media found.

Needs no torch: media are looked for here and opened by whoever answers.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from onellm.errors import BadInput, ConfigError
from onellm.eval import readers
from onellm.eval.annotations import Entry
from onellm.eval.cuts import Cut, Named
from onellm.eval.task import AnswerSettings, MediumFile, Task, fields_of
from onellm.source import Blob, Source
from onellm.spelling import did_you_mean

Reader = Callable[..., Iterable[Entry]]


@dataclass(frozen=True)
class Medium:
    """A medium to be shown.

    Args:
        modality: its modality's name.
        id: what it is known by: the sample it comes from, or its path below the data root.
        source: see :mod:`onellm.source`; or what of :mod:`onellm.eval.cuts` makes one.
        files: the files it is read from.
    """

    modality: str
    id: str
    source: Source = field(compare=False, repr=False)
    files: tuple[Path, ...] = field(default=(), compare=False, repr=False)

    def open(self) -> Source:
        """The source; a stretch of a recording is cut out of it now."""
        return self.source.make() if isinstance(self.source, Cut | Named) else self.source


@dataclass(frozen=True)
class Item:
    """One question about some media.

    Args:
        task: name of the task, with its variant.
        id: of the question, unique within the task.
        media: what is shown, in order.
        prompt: the user's turn.
        target: the truth, in the shape that the task's scorer reads.
        meta: groups, and what an official submission needs.
        options: texts to choose from.
        settings: how the answer is decoded.
        likelihood: find how likely each option is, instead of writing an answer.
    """

    task: str
    id: str
    media: tuple[Medium, ...]
    prompt: str
    target: Any
    meta: Mapping[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    settings: AnswerSettings = field(default_factory=AnswerSettings)
    likelihood: bool = False

    def key(self, model: str = "", seed: int = 0) -> str:
        """A name of everything the record depends on: 16 hexadecimal digits.

        Neither batch size nor number of processes is part of it, so an interrupted run goes on
        under any of them.

        Args:
            model: what the model is known by.
            seed: of the run; greedy answers do not depend on it.
        """
        parts = [
            *(self.task, self.id, [[m.modality, m.id] for m in self.media], self.prompt),
            *(self.target, dict(self.meta), list(self.options)),
            *(self.settings.model_dump(), self.likelihood, model),
            seed if self.settings.temperature > 0 else 0,
        ]
        text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def entries(task: Task, root: str | Path) -> Iterator[Entry]:
    """A task's questions as its data set has them.

    Args:
        task: the task.
        root: folder that the task's paths are below.

    Raises:
        BadInput: a file that is missing or not in the official format.
        ConfigError: an unknown reader, or a setting it does not have.
    """
    read, count, last = _reader(task.reader), 0, ""
    files = {role: Path(root) / path for role, path in task.files.items()}
    try:
        stream = iter(read(files, **task.reader_options))
    except TypeError as error:
        raise ConfigError(f"task {task.name}: reader_options: {error}") from error
    while True:
        try:
            entry = next(stream, None)
        except BadInput as error:
            raise _with_hint(error, task) from error
        except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
            where = f"behind {last!r}, number {count}" if count else "at its beginning"
            what = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise BadInput(
                " + ".join(str(path) for path in files.values()),
                expected=f"the format of {task.title}",
                found=f"{what} ({where})",
                hint=_hint(task),
            ) from error
        if entry is None:
            return
        yield entry
        count, last = count + 1, entry.id


def _hint(task: Task) -> str:
    return f"Where the data are had and how they lie: onellm show {task.name}."


def _with_hint(error: BadInput, task: Task) -> BadInput:
    hint = error.hint or _hint(task)
    return BadInput(error.source, expected=error.expected, found=error.found, hint=hint)


def first_entries(task: Task, found: Iterable[Entry], limit: int | None) -> Iterator[Entry]:
    """The first questions, and those of all others that are scored together with one of them.

    Args:
        task: its ``together`` says which belong to one another.
        found: all questions.
        limit: how many; all if left out.
    """
    if limit is None or not task.together:
        yield from islice(found, limit)
        return
    several = list(found)
    chosen = {str(entry.meta[task.together]) for entry in several[:limit]}
    yield from (entry for entry in several if str(entry.meta[task.together]) in chosen)


def build_items(
    task: Task,
    root: str | Path,
    *,
    limit: int | None = None,
    settings: AnswerSettings | None = None,
) -> list[Item]:
    """A task's questions with their prompts and media.

    Args:
        task: the task.
        root: folder that the task's paths are below.
        limit: the first so many questions only; see :func:`first_entries`.
        settings: decoding in place of the task's.

    Raises:
        BadInput: see :func:`entries`; or two questions of one id, or none.
        ConfigError: a template with a value that the reader does not give.
    """
    items, seen = [], set()
    for entry in first_entries(task, entries(task, root), limit):
        if entry.id in seen:
            where = f"task {task.name}, question {entry.id}"
            raise BadInput(where, expected="unique ids", found="two of it")
        seen.add(entry.id)
        items.append(item_of(task, entry, root, settings))
    if not items:
        files = ", ".join(task.files.values())
        expected = f"questions in {files}"
        raise BadInput(f"task {task.name}", expected=expected, found="none", hint=_hint(task))
    return items


def item_of(
    task: Task, entry: Entry, root: str | Path = "", settings: AnswerSettings | None = None
) -> Item:
    """One question with its prompt and media.

    Args:
        task: the task.
        entry: the question as its data set has it.
        root: folder that the task's paths are below.
        settings: decoding in place of the task's.
    """
    if entry.media is None:
        media = tuple(find_media(task, entry, Path(root)))
    else:
        media = tuple(Medium(*medium) for medium in entry.media)
    values = {"options": lettered(entry.options), **entry.values}
    return Item(
        task=task.name,
        id=entry.id,
        media=media,
        prompt=_fill(task, task.prompt, values),
        target=entry.target,
        meta=entry.meta,
        options=entry.options,
        settings=settings or task.decoding,
        likelihood=task.answering == "likelihood",
    )


def lettered(options: tuple[str, ...]) -> str:
    r"""Options as prompts show them.

    Example:
        >>> lettered(("rock", "air"))
        'A. rock\nB. air'
    """
    pairs = zip(string.ascii_uppercase, options, strict=False)
    return "\n".join(f"{letter}. {option}" for letter, option in pairs)


def find_media(task: Task, entry: Entry, root: Path) -> Iterator[Medium]:
    """The media of a question, in order; nothing is opened.

    Args:
        task: its ``media`` say where they are.
        entry: the question.
        root: folder that the paths are below.
    """
    for spec in task.media:
        if all(entry.values.get(key) == value for key, value in spec.when.items()):
            yield _medium(task, spec, entry, root)


def _medium(task: Task, spec: MediumFile, entry: Entry, root: Path) -> Medium:
    templates = (spec.file,) if isinstance(spec.file, str) else spec.file
    alone = _lone_value(templates, entry.values)
    if alone is not None:
        label = alone.name if isinstance(alone, Blob) else entry.id
        return Medium(spec.modality, label, alone)
    names = [_fill(task, template, entry.values) for template in templates]
    paths = [root / name for name in names]
    if spec.also and not paths[0].exists():
        others = (root / _fill(task, template, entry.values) for template in spec.also)
        paths[0] = next((path for path in others if path.exists()), paths[0])
    source: Source = str(paths[0]) if len(paths) == 1 else tuple(str(path) for path in paths)
    label, files = "+".join(names), tuple(paths)
    if spec.suffix and not paths[0].suffix:
        source = Named(paths[0], spec.suffix)
    begin, end = (entry.values.get(key) for key in spec.between or ("", ""))
    if spec.cut and begin is not None and end is not None:
        clock = root / _fill(task, spec.clock, entry.values) if spec.clock else None
        source = Cut(spec.cut, paths[0], float(begin), float(end), clock)
        label += f"#{float(begin):g}-{float(end):g}"
        files = (*files, clock) if clock else files
    return Medium(spec.modality, label, source, files)


def _lone_value(templates: tuple[str, ...], values: Mapping[str, Any]) -> Any:
    """The value of a template that is nothing but one value, where that is no text or number."""
    fields = fields_of(templates[0])
    if len(templates) > 1 or len(fields) != 1 or templates[0] != f"{{{fields[0]}}}":
        return None
    value = values.get(fields[0])
    return None if isinstance(value, str | int | float) else value


def _fill(task: Task, template: str, values: Mapping[str, Any]) -> str:
    try:
        return template.format_map(values)
    except KeyError as error:
        (name,) = error.args
        hint = did_you_mean(str(name), values)
        raise ConfigError(
            f"task {task.name}: template {template!r} wants {name!r}, which reader "
            f"{task.reader} does not give.{hint}"
        ) from error


def _reader(name: str) -> Reader:
    module, _, function = name.partition(":")
    try:
        if function:
            found = importlib.import_module(module)
        else:
            found, function = importlib.import_module(f"{readers.__name__}.{module}"), "read"
    except ModuleNotFoundError as error:
        hint = "" if ":" in name else did_you_mean(name, readers.names())
        raise ConfigError(f"unknown reader {name!r} ({error}).{hint}") from error
    reader: Reader | None = getattr(found, function, None)
    if reader is None:
        raise ConfigError(f"reader {name!r}: {module} has no function {function!r}")
    return reader
