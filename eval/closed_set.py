"""Scoring of short answers: exact match, majority rate, intervals, a table per class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from onellm.eval.metrics.intervals import wilson

_FINAL = ".,;:!?"


def normalise(answer: str) -> str:
    """What two answers are compared by: lower case, single spaces, no final punctuation.

    Nothing else is forgiven: neither articles nor synonyms, and not an answer that merely
    contains the true one.

    Example:
        >>> normalise("  An  Oboe. ")
        'an oboe'
    """
    return " ".join(answer.lower().split()).rstrip(_FINAL + " ")


def exact_match(answer: str, reference: str) -> bool:
    """Whether an answer is the true one; an empty answer never is."""
    said = normalise(answer)
    return bool(said) and said == normalise(reference)


def majority(references: Sequence[str]) -> tuple[str, float]:
    """The commonest true answer and its share; what a model gets that looks at nothing.

    Raises:
        ValueError: no reference.
    """
    if not references:
        raise ValueError("no majority among no references")
    counts = Counter(normalise(r) for r in references)
    # The alphabet breaks ties, so that the order of the file does not.
    answer, count = min(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return answer, count / len(references)


@dataclass(frozen=True)
class ClassScore:
    """How one true answer fared.

    Args:
        answer: the normalised true answer.
        n: items that have it.
        right: how many of them were answered so.
        said: how often it was answered, rightly or wrongly.
        mistaken_for: the commonest wrong answer in its place, empty if there is none.
    """

    answer: str
    n: int
    right: int
    said: int
    mistaken_for: str = ""


def per_class(pairs: Iterable[tuple[str, str]]) -> list[ClassScore]:
    """Count by true answer, commonest first.

    Args:
        pairs: (answer, reference).
    """
    table = [(normalise(a), normalise(r)) for a, r in pairs]
    counts = Counter(reference for _, reference in table)
    said = Counter(answer for answer, _ in table)
    scores = []
    for reference, n in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])):
        wrong = Counter(a for a, r in table if r == reference and a != r)
        worst = min(wrong.items(), key=lambda pair: (-pair[1], pair[0]))[0] if wrong else ""
        right = n - wrong.total()
        scores.append(ClassScore(reference, n, right, said[reference], worst))
    return scores


def score(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Everything about the short answers to one kind of question.

    Args:
        pairs: (answer, reference), at least one.

    Returns:
        ``n``, ``exact_match`` with its 95 % ``interval``, ``majority`` and ``majority_answer``,
        ``off_list`` (share of answers that are nobody's true answer) and ``per_class``.
    """
    references = [reference for _, reference in pairs]
    hits = sum(exact_match(a, r) for a, r in pairs)
    commonest, rate = majority(references)
    known = {normalise(r) for r in references}
    strangers = sum(normalise(a) not in known for a, _ in pairs)
    return {
        "n": len(pairs),
        "exact_match": hits / len(pairs),
        "interval": list(wilson(hits, len(pairs))),
        "majority": rate,
        "majority_answer": commonest,
        "off_list": strangers / len(pairs),
        "per_class": [asdict(s) for s in per_class(pairs)],
    }
