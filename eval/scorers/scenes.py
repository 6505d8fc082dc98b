"""The scorer of free answers that name a class of a closed list."""

from __future__ import annotations

from collections.abc import Sequence

from onellm.errors import BadInput
from onellm.eval.metrics.scenes import named_class
from onellm.eval.scorers.accuracy import accuracy, by_group, target_of
from onellm.eval.scorers.registry import Records, Score, scorer


@scorer("scenes")
def scenes(records: Records, classes: Sequence[str] = (), metric: str = "accuracy") -> Score:
    """Closed-set classification from free text: scenes, objects.

    Case, underscores and hyphens do not matter. An answer that is a class name means it;
    otherwise the longest class name that stands in it as whole words does. Where there is none,
    or two equally long ones, the answer is unparsed.

    Target: a class name. ``options``: all class names, unless the option ``classes`` has them.

    Options: ``classes``; ``metric``: what the primary metric is called, for benchmarks whose
    usual accuracy comes from a judge.

    Metrics: ``accuracy`` (or the name given); ``class_mean`` over classes; by class.

    Raises:
        BadInput: a record without classes, or with a target that is none of them.
    """
    hits, parsed, by_class = [], [], []
    for record in records:
        names = classes or record.get("options") or ()
        target = target_of(record, str, "a class")
        if target not in names:
            where, found = f"record {record.get('id')}", repr(target)
            raise BadInput(where, expected=f"a class among {', '.join(names)}", found=found)
        parsed.append(named_class(record["answer"], names))
        hits.append(float(parsed[-1] == target))
        by_class.append({"meta": {"class": target}})
    means = by_group(by_class, hits, "class")
    others = {"class_mean": sum(means.values()) / len(means)}
    result = accuracy(records, hits, parsed, metric=metric, others=others)
    result.groups["class"] = means
    return result
