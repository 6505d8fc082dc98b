"""What there is to choose from: modalities, presets, stages and tasks, described in words.

Presets and stages are files; only modalities need torch, which is imported when they are asked for.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onellm.errors import ConfigError
from onellm.spelling import did_you_mean

if TYPE_CHECKING:
    from onellm.modality import Modality

_PACKAGE = Path(__file__).parent
_FOLDERS = {
    "presets": _PACKAGE / "presets",
    "stages": _PACKAGE / "train" / "configs",
    "hardware": _PACKAGE / "train" / "hardware",
}
KINDS = ("modalities", *_FOLDERS, "tasks")


@dataclass(frozen=True)
class Listing:
    """A table: a title, column heads and rows of text; and what is to be said of it."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""


def listings(kind: str | None = None) -> list[Listing]:
    """Tables of what there is.

    Args:
        kind: a name of :data:`KINDS`; all of them if left out.

    Raises:
        ConfigError: unknown kind.
    """
    makers: dict[str, Callable[[], Listing]] = {
        "modalities": _modalities,
        "presets": lambda: _files("presets", "onellm quickstart --preset NAME"),
        "stages": lambda: _files("stages", "onellm train NAME"),
        "tasks": _tasks,
        "hardware": lambda: _files("hardware", "onellm train STAGE --hardware NAME"),
    }
    if kind is not None and kind not in makers:
        raise ConfigError(f"unknown kind {kind!r}.{did_you_mean(kind, makers)}")
    return [make() for name, make in makers.items() if kind in (None, name)]


def describe(name: str) -> str:
    """A text about a modality, a preset, a stage or a task.

    Args:
        name: its name; a modality's published name will do, and so will ``task@variant``.

    Raises:
        ConfigError: unknown name, with the nearest spelling.
    """
    for folder in _FOLDERS.values():
        path = folder / f"{name}.yaml"
        if path.parent == folder and path.is_file():
            return f"# {path}\n{path.read_text(encoding='utf-8')}"
    from onellm.eval.describe import describe_task
    from onellm.eval.task import load_task, task_names

    tasks = task_names()
    if name.partition("@")[0] in tasks or name.partition("@")[0].endswith((".yaml", ".yml")):
        return describe_task(load_task(name))
    from onellm.registry import modality_classes

    classes = modality_classes()
    for cls in classes.values():
        if name in (cls.name, cls.published_name):
            return _describe_modality(cls)
    files = [path.stem for folder in _FOLDERS.values() for path in folder.glob("*.yaml")]
    hint = did_you_mean(name, [*classes, *files, *tasks], "onellm ls lists all there are.")
    raise ConfigError(f"unknown name {name!r}.{hint}")


def token_count(modality: Modality) -> int:
    """Tokens a signal becomes (per frame, where there are frames), found by making some.

    Args:
        modality: with the options to count for.
    """
    import torch

    from onellm.encoder import EncoderConfig, PatchTokenizer

    tokenizer = modality.build_tokenizer(64)
    if tokenizer is None:
        patch = EncoderConfig().patch_size
        tokenizer = PatchTokenizer(torch.nn.Conv2d(3, 64, patch, patch))
    example = modality.example()
    with torch.no_grad():
        tokens = tokenizer(example[:1] if modality.frame_axis else example[None])
    return int(tokens.shape[1])


def _published(cls: type[Modality]) -> Modality:
    return cls(**cls.published_options)


def _tokens(modality: Modality) -> str:
    count = str(token_count(modality))
    return f"{count} x {len(modality.example())} frames" if modality.frame_axis else count


def _modalities() -> Listing:
    from onellm.registry import modality_classes

    rows = [
        (name, _tokens(_published(cls)), " ".join(cls.suffixes), cls.__module__)
        for name, cls in modality_classes().items()
    ]
    return Listing("modalities", ("name", "tokens", "files", "source"), rows)


def _files(kind: str, title: str) -> Listing:
    rows = [(path.stem, _first_words(path)) for path in sorted(_FOLDERS[kind].glob("*.yaml"))]
    return Listing(f"{kind}  ({title})", ("name", "what"), rows)


def _tasks() -> Listing:
    from onellm.eval.describe import counted
    from onellm.eval.show_scores import number
    from onellm.eval.task import OURS, benchmark_names, load_task, task_names

    rows, names = [], list(dict.fromkeys([*benchmark_names(), *task_names()]))
    for name in names:
        task = load_task(name)
        scores = task.published.scores.get(OURS, {})
        printed = " / ".join(number(value) for value in scores.values()) or "–"
        metrics = " / ".join(task.published.metric.values()) or "–"
        rows.append((name, task.group, " + ".join(task.modalities) or "any", metrics, printed))
    columns = ("name", "group", "media", "metric", f"{OURS} in the paper")
    note = counted(map(load_task, names))
    return Listing("tasks  (onellm eval --tasks NAME,…)", columns, rows, note)


def _first_words(path: Path) -> str:
    """The first sentence of the comment on top of a YAML file."""
    words: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#") or not line.strip("# "):
            break
        words.append(line.strip("# "))
    return " ".join(words).partition(". ")[0].rstrip(".")


def _describe_modality(cls: type[Modality]) -> str:
    from onellm.modality import Modality

    modality = _published(cls)
    shape = " x ".join(str(size) for size in modality.example().shape)
    file = inspect.getsourcefile(cls) or cls.__module__
    text = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:")[0].rstrip()
    lines = [
        f"{cls.name}: {text}",
        "",
        f"command line    {', or '.join(f'--{cls.name} {form}' for form in cls.forms)}",
        f"files           {' '.join(cls.suffixes)}",
        f"signal          {shape} at the published size",
        f"tokens          {_tokens(modality)} at the published size",
        f"caption prompt  {cls.caption_prompt}",
        f"published name  {cls.published_name or 'none'}",
        f"source          {file}",
        "",
        f"options and their defaults (model.modalities.{cls.name} in a preset or in config.json)",
    ]
    meanings = option_meanings(cls)
    # Its own first, then those that all modalities have.
    for option in sorted(cls.model_fields, key=Modality.model_fields.__contains__):
        default = cls.model_fields[option].get_default(call_default_factory=True)
        value = getattr(modality, option)
        published = "" if value == default else f"  (the published weights: {value})"
        lines.append(f"  {option} = {default}{published}")
        lines += textwrap.wrap(
            meanings.get(option, ""), 96, initial_indent=" " * 6, subsequent_indent=" " * 6
        )
    return "\n".join(lines)


def option_meanings(cls: type[Modality]) -> dict[str, str]:
    """What the docstrings of a modality's classes say of its options.

    Args:
        cls: a modality.

    Returns:
        option → the text of its entry under ``Attributes``, nearest class first.
    """
    meanings: dict[str, str] = {}
    for one in reversed(cls.__mro__):
        section = inspect.cleandoc(one.__dict__.get("__doc__") or "").partition("Attributes:\n")[2]
        for entry in re.split(r"^    (?=\w+: )", section, flags=re.M)[1:]:
            option, _, meaning = entry.partition(": ")
            meanings[option] = " ".join(meaning.split()).replace("``", "")
    return {option: meanings[option] for option in cls.model_fields if option in meanings}
