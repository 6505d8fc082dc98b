"""The sentences of the report on benchmarks, shared by the page and the Markdown file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onellm.eval.show_scores import headline, paper_score
from onellm.eval.task import CHANCE, OURS
from onellm.eval.wording import count


def headline_words(rows: Sequence[Mapping[str, Any]]) -> str:
    """The report's title."""
    number = len(rows)
    return f"{count(number).capitalize()} benchmark{'s' if number != 1 else ''}, one model"


def comparison_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """How the run compares with the paper's numbers, in one sentence."""
    pairs = [(ours(row), paper_score(row)) for row in rows if is_whole(row)]
    both = [(mine, printed) for mine, printed in pairs if mine is not None and printed is not None]
    if not both and not all(map(is_whole, rows)):
        return (
            "Only parts of the data sets were asked: nothing here compares with published numbers."
        )
    if not both:
        return f"None of these has a number of {OURS} in the paper to compare with."
    reached = sum(mine >= printed for mine, printed in both)
    what = "benchmark that has" if len(both) == 1 else "benchmarks that have"
    return (
        f"On {count(reached)} of the {count(len(both))} {what} a number of {OURS} in the paper, "
        f"this model reaches it."
    )


def partial_words(rows: Sequence[Mapping[str, Any]]) -> str:
    """A warning where not all questions of a split were asked, else nothing."""
    few = [row["title"] for row in rows if not is_whole(row)]
    if not few:
        return ""
    which = ", ".join(few[:6]) + (" …" if len(few) > 6 else "")
    text = f"Not the whole data set: {which}. Numbers of a part do not compare with published ones."
    gone = [row for row in rows if row.get("left_out")]
    for row in gone:
        many = "questions were" if row["left_out"] > 1 else "question was"
        text += f" {row['title']}: {row['left_out']:,} {many} left out, without media."
    return text


def is_whole(row: Mapping[str, Any]) -> bool:
    """Whether all questions of the split were asked, as far as it is known how many there are."""
    return not row["partial"]


def ours(row: Mapping[str, Any]) -> float | None:
    """The run's own headline score."""
    metric = headline(row)
    return None if metric is None else float(row["metrics"][metric])


def run_words(report: Mapping[str, Any]) -> str:
    """What was run."""
    model = report["model"]
    commit = f", commit {report['commit']}" if report.get("commit") else ""
    return (
        f"Model {model['name']} ({model['id']}), {report['decoding']} decoding, "
        f"seed {report['seed']}{commit}."
    )


def reading() -> tuple[tuple[str, str], ...]:
    """Terms and what they mean."""
    return (
        ("score", "of this run, in the unit that papers print; how it is made: onellm show TASK"),
        (
            "95 %",
            "interval of the score over questions; it says nothing of another seed or training run",
        ),
        (f"{OURS} (paper)", "what the paper's tables print for the model of its authors"),
        (
            "best rival",
            "the best number in the same table of a model that was not trained on the benchmark's "
            "own training set",
        ),
        ("unparsed", "answers in which no option, class, or yes or no was found; they are wrong"),
        ("empty", "answers of no text"),
    )


def best_rival(row: Mapping[str, Any], metric: str) -> tuple[str, float] | None:
    """The best published score of another model that was not trained on the benchmark.

    Args:
        row: of :func:`onellm.eval.scoring.row_of`.
        metric: ours.
    """
    published = row["published"]
    scores = {
        model: values[metric]
        for model, values in published["scores"].items()
        if metric in values and model not in (OURS, CHANCE, *published["trained"])
    }
    return max(scores.items(), key=lambda pair: pair[1], default=None)


def truth_words(target: Any) -> str:
    """A target in one line: the first of several, and how many there are."""
    if isinstance(target, list):
        different = list(dict.fromkeys(str(text) for text in target))
        more = f" (and {len(different) - 1} more)" if len(different) > 1 else ""
        return f"{different[0]}{more}" if different else "–"
    return str(target)
