"""MM-Vet (Yu and others, ICML 2024): a judge's grades and their means; a score without one."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")
_WORD = re.compile(r"-?\d+(?:[.,]\d+)*|[^\W\d_]+(?:'[^\W_]+)*")


def read_grade(reply: str) -> float | None:
    """A judge's grade: its reply's first word, where that is a number from 0 to 1."""
    try:
        grade = float(reply.split(" ")[0].strip())
    except ValueError:
        return None
    return grade if 0 <= grade <= 1 else None


def by_capability(
    grades: Iterable[tuple[Sequence[str], float]],
) -> tuple[dict[str, float], dict[str, float]]:
    """Means in percent for each capability, and for each exact combination of them.

    Args:
        grades: (capabilities of a question, its grade 0 to 1).
    """
    single: dict[str, list[float]] = defaultdict(list)
    combined: dict[str, list[float]] = defaultdict(list)
    for capabilities, grade in grades:
        for capability in capabilities:
            single[capability].append(grade)
        combined["_".join(sorted(capabilities, key=_order))].append(grade)
    return _means(single), _means(combined)


def _order(capability: str) -> tuple[int, str]:
    known = capability in CAPABILITIES
    return (CAPABILITIES.index(capability) if known else len(CAPABILITIES)), capability


def _means(values: dict[str, list[float]]) -> dict[str, float]:
    return {key: 100 * sum(each) / len(each) for key, each in values.items()}


def string_match(answer: str, truth: str) -> float:
    """Share of a truth's ``<AND>`` parts that an answer has as whole phrases; best ``<OR>`` branch.

    Not MM-Vet's score, which needs a judge: never write it under that name.

    Example:
        >>> string_match("x is -1", "-1<AND>-5<OR>one of them")
        0.5
    """
    said = f" {_phrase(answer)} "
    shares = []
    for branch in truth.split("<OR>"):
        parts = [part for part in map(_phrase, branch.split("<AND>")) if part]
        if parts:
            shares.append(sum(f" {part} " in said for part in parts) / len(parts))
    return max(shares, default=0.0)


def _phrase(text: str) -> str:
    return " ".join(_WORD.findall(text.lower()))
