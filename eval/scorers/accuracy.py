"""What all scorers of right and wrong answers share: means, breakdowns, intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from onellm.errors import BadInput
from onellm.eval.metrics.intervals import mean_interval
from onellm.eval.scorers.registry import Record, Records, Score


def accuracy(
    records: Records,
    samples: Sequence[float | None],
    parsed: Sequence[str | None],
    *,
    metric: str = "accuracy",
    others: Mapping[str, float] | None = None,
    groups: Iterable[str] = (),
    notes: tuple[str, ...] = (),
) -> Score:
    """A score whose primary metric is the mean of what each answer gets.

    Args:
        records: the answers.
        samples: 0 to 1 for each; None is left out of the mean.
        parsed: what each was read as.
        metric: the primary metric's name.
        others: further metrics, in percent.
        groups: keys of ``meta`` to break the mean down by, where records have them.
        notes: what the numbers depend on.
    """
    counted = [(r, s) for r, s in zip(records, samples, strict=True) if s is not None]
    values, intervals = [s for _, s in counted], {}
    if values:
        low, high = mean_interval(values, [media_of(record) for record, _ in counted])
        intervals[metric] = (100 * low, 100 * high)
    metrics = {metric: percent(values), **(others or {})}
    broken = {key: by_group(records, samples, key) for key in groups}
    return Score(
        metrics=metrics,
        primary=metric,
        samples=list(samples),
        parsed=list(parsed),
        unparsed=sum(p is None for p in parsed),
        groups={key: values for key, values in broken.items() if values},
        intervals=intervals,
        empty=count_empty(records),
        notes=notes,
    )


def percent(values: Sequence[float]) -> float:
    """A mean times 100; 0 of nothing."""
    return 100 * sum(values) / len(values) if values else 0.0


def count_empty(records: Records) -> int:
    """How many answers have no text."""
    return sum(not record["answer"].strip() for record in records)


def by_group(records: Records, samples: Sequence[float | None], key: str) -> dict[str, float]:
    """Means in percent by a key of ``meta``; a record with a list there counts for each of it."""
    found: dict[str, list[float]] = defaultdict(list)
    for record, sample in zip(records, samples, strict=True):
        group = record.get("meta", {}).get(key)
        if sample is None or group is None or group == "":
            continue
        for one in group if isinstance(group, list) else [group]:
            found[str(one)].append(sample)
    return {group: percent(found[group]) for group in sorted(found)}


def media_of(record: Record) -> Hashable:
    """What a record shows, to tell which questions share it; its id where it shows nothing."""
    media = record.get("media")
    return repr(media) if media else ("id", record.get("id"))


def target_of(record: Record, kind: type | tuple[type, ...], wanted: str) -> Any:
    """A record's truth, checked.

    Raises:
        BadInput: missing, empty or of another shape.
    """
    target = record.get("target")
    if not isinstance(target, kind):
        raise BadInput(f"record {record.get('id')}", expected=wanted, found=repr(target))
    if not target:
        hint = "Where only a server has the truth, export a submission instead."
        raise BadInput(f"record {record.get('id')}", expected=wanted, found="none", hint=hint)
    return target


def meta_of(record: Record, key: str) -> Any:
    """An entry of a record's ``meta``.

    Raises:
        BadInput: it has none.
    """
    try:
        return record["meta"][key]
    except KeyError as error:
        where = f"record {record.get('id')}"
        raise BadInput(where, expected=f"meta.{key}", found="none") from error
