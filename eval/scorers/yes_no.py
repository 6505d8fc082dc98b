"""The scorer of MME: yes or no, twice per picture."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

from onellm.errors import BadInput
from onellm.eval.metrics import mme as mme_metric
from onellm.eval.metrics.intervals import share_interval, standard_error
from onellm.eval.scorers.accuracy import accuracy, media_of, meta_of, percent, target_of
from onellm.eval.scorers.registry import Records, Score, scorer

MOST = 200.0
"""Points of a subtask at most."""


@scorer("mme")
def mme(records: Records) -> Score:
    """MME: yes or no, read from the first four characters as the official tool does.

    Target: ``Yes`` or ``No``. ``meta.subtask``; ``media``, which two records share.

    Metrics: ``perception``, ``cognition`` (sums of the subtasks' scores, at most 200 each);
    ``accuracy`` and ``accuracy_plus`` over all questions; the subtasks' scores.

    Raises:
        BadInput: a picture with other than two questions.
    """
    parsed = [mme_metric.yes_or_no(record["answer"]) for record in records]
    truth = [target_of(record, str, "Yes or No").strip().lower() for record in records]
    hits = [p == t for p, t in zip(parsed, truth, strict=True)]
    keys = [(str(meta_of(r, "subtask")), media_of(r)) for r in records]
    try:
        scores = mme_metric.mme((*key, hit) for key, hit in zip(keys, hits, strict=True))
    except ValueError as error:
        raise BadInput("MME", expected="two questions per picture", found=str(error)) from error
    pictures: dict[tuple[str, Hashable], list[bool]] = defaultdict(list)
    for key, hit in zip(keys, hits, strict=True):
        pictures[key].append(hit)
    plus = percent([float(all(pair)) for pair in pictures.values()])
    base = accuracy(records, [float(hit) for hit in hits], parsed)
    metrics = mme_metric.totals(scores) | base.metrics | {"accuracy_plus": plus}
    return replace(
        base,
        metrics=metrics,
        primary=next(iter(metrics)),
        groups={"subtask": {name: each.score for name, each in scores.items()}},
        intervals=_mme_intervals(pictures) | base.intervals,
    )


def _mme_intervals(
    pictures: Mapping[tuple[str, Hashable], Sequence[bool]],
) -> dict[str, tuple[float, float]]:
    """Of the sums: a subtask's score is a mean over pictures, and subtasks are independent."""
    worth: dict[str, list[float]] = defaultdict(list)
    for (subtask, _), pair in pictures.items():
        worth[subtask].append(50.0 * sum(pair) + 100.0 * all(pair))
    intervals = {}
    parts = {"perception": mme_metric.PERCEPTION, "cognition": mme_metric.COGNITION}
    for name, subtasks in parts.items():
        there = [worth[s] for s in subtasks if s in worth]
        if there:
            most = MOST * len(there)
            total = sum(sum(values) / len(values) for values in there) / most
            error = sum(standard_error(values) ** 2 for values in there) ** 0.5 / most
            low, high = share_interval(total, error, sum(map(len, there)))
            intervals[name] = (most * low, most * high)
    return intervals
