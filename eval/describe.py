"""A task in words, for ``onellm show`` and for the documentation; made from its YAML file."""

from __future__ import annotations

import string
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence

from onellm.eval.show_scores import number
from onellm.eval.task import Task, benchmark_names, fields_of, load_task, task_names

WIDTH = 88
STARTER = "starter pack"
"""The group of tasks on the packaged data."""
_EXAMPLES = {
    "question": "What colour is the mug?",
    "options": "A. red\nB. green",
    "classes": "kitchen, bedroom, office",
}
"""What stands for a reader's values in the prompt that is shown."""


def describe_task(task: Task) -> str:
    """Everything a task's file says, as plain text.

    Args:
        task: the task.
    """
    return "\n".join(_lines(task)) + "\n"


def _lines(task: Task) -> Iterator[str]:
    yield f"{task.name}: {task.title}"
    yield from textwrap.wrap(task.about, WIDTH)
    yield ""
    size = f", {task.size:,} questions" if task.size else ""
    yield from _field("split", f"{task.split}{size}")
    yield from _field("data", task.source)
    yield from _field("answers", answers_of(task))
    yield from _field("scorer", scorer_of(task))
    if task.export:
        yield from _field("exports", ", ".join(task.export))
    yield "\nlayout, below the folder that --data names"
    yield from (f"  {place}" for place in layout(task))
    yield "\nprompt"
    yield from textwrap.indent(task.prompt, "  ").split("\n")
    yield "\nfor example"
    yield from textwrap.indent(example_prompt(task), "  ").split("\n")
    if task.published.scores:
        yield f"\npublished ({task.published.table}), * trained on it"
        yield from (f"  {line}" for line in _columns(published_rows(task)))
    if task.published.note:
        yield from textwrap.wrap(task.published.note, WIDTH)
    if task.variants:
        yield "\nvariants"
        for name, variant in task.variants.items():
            text = f"{task.name}@{name}: {variant.about}"
            yield from textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ")
    if task.notes:
        yield "\nnotes"
        for note in task.notes:
            yield from textwrap.wrap(note, WIDTH, initial_indent="  ", subsequent_indent="  ")


def _field(name: str, text: str) -> Iterator[str]:
    first = f"{name:<9}"
    yield from textwrap.wrap(
        *(text, WIDTH),
        initial_indent=first,
        subsequent_indent=" " * 9,
        break_on_hyphens=False,
        break_long_words=False,  # addresses are copied
    )


def answers_of(task: Task) -> str:
    """How answers come about."""
    if task.answering == "likelihood":
        return "the likelihood of each option as the answer"
    limit = f"at most {task.decoding.max_new_tokens} tokens"
    if task.decoding.temperature == 0:
        return f"greedy, {limit}"
    return f"sampled at {task.decoding.temperature:g}, top-p {task.decoding.top_p:g}, {limit}"


def scorer_of(task: Task) -> str:
    """What scores them."""
    if task.scorer is None:
        return "a server; export the answers"
    options = ", ".join(f"{key} {value}" for key, value in task.scorer.options.items())
    return f"{task.scorer.name} ({options})" if options else task.scorer.name


def layout(task: Task) -> list[str]:
    """Paths of annotations and media, values in braces; ``or`` and another place one may be at."""
    places = [path or "." for path in task.files.values()]
    for medium in task.media:
        for template in medium.templates:
            if template in medium.also:
                places.append(f"or {template}")
            elif [template] != [f"{{{field}}}" for field in fields_of(template)]:
                places.append(template)
    return list(dict.fromkeys(places))


def example_prompt(task: Task) -> str:
    """The prompt with values of an invented question."""
    names = fields_of(task.prompt)
    values = {name: _EXAMPLES.get(name, f"<{name}>") for name in names}
    return string.Formatter().vformat(task.prompt, (), values)


def published_rows(task: Task) -> list[tuple[str, ...]]:
    """A table of published scores: heads, then a row per model, the paper's own first."""
    metrics = list(task.published.metric)
    heads = ("model", *(task.published.metric[name] for name in metrics))
    rows = [heads]
    for model, scores in task.published.scores.items():
        mark = " *" if model in task.published.trained else ""
        rows.append((model + mark, *(number(scores.get(name)) for name in metrics)))
    return rows


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def counted(tasks: Iterable[Task]) -> str:
    """How many tasks there are, and why they are more than the paper's benchmarks.

    Args:
        tasks: all of them.
    """
    several = list(tasks)
    paper = [task for task in several if not task.extra]
    # Each data set of scenes is a benchmark of the paper, and a task by depth and one by normals.
    twice = sum(task.reader == "scenes" for task in paper) // 2
    extras = sum(task.extra and task.group != STARTER for task in several)
    return (
        f"{len(paper)} tasks are the paper's {len(paper) - twice} benchmarks: {twice} of these, "
        f"scene classification, are run by depth and by normals. {extras} extras are benchmarks "
        f"without a number of OneLLM, and {len(several) - len(paper) - extras} tasks ask about the "
        "starter pack."
    )


# -- the documentation ----------------------------------------------------------------------------

MARK = "<!-- What follows is written by `python -m onellm.eval.describe`. -->"


def handbook() -> str:
    """A section per packaged task, in Markdown."""
    groups: dict[str, list[Task]] = {}
    tasks = [load_task(name) for name in dict.fromkeys([*benchmark_names(), *task_names()])]
    for task in tasks:
        groups.setdefault(task.group, []).append(task)
    parts = [MARK, counted(tasks)]
    for group, found in groups.items():
        parts.append(f"## {group[:1].upper()}{group[1:]}")
        parts += [_section(task) for task in found]
    return "\n\n".join(parts) + "\n"


def _section(task: Task) -> str:
    size = f", {task.size:,} questions" if task.size else ""
    facts: Mapping[str, str] = {
        "Split": f"{task.split}{size}",
        "Data": task.source,
        "Answers": answers_of(task),
        "Scorer": f"`{scorer_of(task)}`" if task.scorer else scorer_of(task),
        "Exports": ", ".join(f"`{name}`" for name in task.export),
    }
    lines = [f"### {task.title} (`{task.name}`)", task.about]
    lines.append("\n".join(f"* {key}: {_plain(text)}" for key, text in facts.items() if text))
    lines.append("Below the data root:\n\n" + _block("\n".join(layout(task))))
    lines.append("Prompt:\n\n" + _block(task.prompt))
    if task.published.scores:
        lines.append(f"Published ({task.published.table}; * trained on it):")
        heads, *rows = published_rows(task)
        table = [heads, ["---"] * len(heads), *rows]
        lines.append("\n".join(f"| {' | '.join(_plain(c) for c in row)} |" for row in table))
    if task.published.note:
        lines.append(_plain(task.published.note))
    if task.variants:
        pairs = task.variants.items()
        lines.append("\n".join(f"* `{task.name}@{name}`: {v.about}" for name, v in pairs))
    if task.notes:
        lines.append("\n".join(f"* {_plain(note)}" for note in task.notes))
    return "\n\n".join(lines)


def _block(text: str) -> str:
    return f"```text\n{text}\n```"


def _plain(text: str) -> str:
    """Text in which nothing is taken for markup."""
    text = " ".join(text.split())
    for character in "*<":
        text = text.replace(character, f"\\{character}")
    return text


def updated(document: str) -> str:
    """A document with its generated part written anew.

    Args:
        document: has :data:`MARK` in it.
    """
    return document.partition(MARK)[0] + handbook()


def main() -> None:
    """Write ``docs/evaluation.md`` of this checkout anew."""
    from pathlib import Path

    path = Path(__file__).resolve().parents[1] / "docs" / "evaluation.md"
    path.write_text(updated(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
