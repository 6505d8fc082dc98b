"""PointLLM's caption scores (Xu and others, ECCV 2024): sentences by themselves, then their mean.

BLEU there is NLTK's sentence BLEU with smoothing method 1 on words between spaces, ROUGE that of
the package ``rouge`` 1.0.1. Neither compares with corpus BLEU and ROUGE-L of
:mod:`onellm.eval.metrics.bleu` and :mod:`onellm.eval.metrics.rouge`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import chain

_EMPTY = "##"  # stands for an empty output, as in PointLLM's evaluator
_WEIGHT = {1: 1.0, 2: 0.5, 3: 0.33, 4: 0.25}  # of each n-gram length; three times 0.33 is theirs
_NUMERATOR = 0.1  # smoothing method 1: of a precision without a single match
_BELOW = 1e-8  # the package's guard against a division by zero


def sentence_scores(candidate: str, reference: str) -> dict[str, float]:
    """``bleu_1`` to ``bleu_4``, ``rouge_1``, ``rouge_2``, ``rouge_l`` of one sentence, 0 to 1."""
    candidate = candidate or _EMPTY
    scores = {f"bleu_{n}": sentence_bleu(candidate, reference, n) for n in range(1, 5)}
    scores |= {f"rouge_{n}": _rouge_n(candidate, reference, n) for n in (1, 2)}
    return scores | {"rouge_l": _rouge_l(candidate, reference)}


def sentence_bleu(candidate: str, reference: str, longest: int) -> float:
    """BLEU-1 to BLEU-4 of one sentence against one reference; 0 without a word in common."""
    said, true = candidate.split(), reference.split()
    logs = 0.0
    for n in range(1, longest + 1):
        have, granted = Counter(_grams(said, n)), Counter(_grams(true, n))
        right, total = (have & granted).total(), max(1, len(said) - n + 1)
        if n == 1 and not right:
            return 0.0
        logs += math.log((right or _NUMERATOR) / total) * _WEIGHT[longest]
    short = math.exp(1 - len(true) / len(said)) if len(said) <= len(true) else 1.0
    return short * math.exp(logs)


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _sentences(text: str) -> list[list[str]]:
    # A part of nothing but spaces is one empty word there.
    return [part.split() or [""] for part in text.split(".") if part]


def _f_score(common: int, said: int, true: int) -> float:
    if not said or not true:
        return 0.0
    precision, recall = common / said, common / true
    return 2 * precision * recall / (precision + recall + _BELOW)


def _rouge_n(candidate: str, reference: str, n: int) -> float:
    """F of the sets of n-grams, across full stops."""
    said, true = (
        {*_grams([word for words in _sentences(text) for word in words], n)}
        for text in (candidate, reference)
    )
    return _f_score(len(said & true), len(said), len(true))


def _rouge_l(candidate: str, reference: str) -> float:
    """F of different words: those of the longest common sequences over all different words."""
    said, true = _sentences(candidate), _sentences(reference)
    common = {word for t in true for s in said for word in _common_words(t, s)}
    return _f_score(len(common), len({*chain(*said)}), len({*chain(*true)}))


def _common_words(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """One longest common subsequence; where two ways are equally long, back along ``second``."""
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first, 1):
        for j, b in enumerate(second, 1):
            table[i][j] = (
                table[i - 1][j - 1] + 1 if a == b else max(table[i - 1][j], table[i][j - 1])
            )
    words, i, j = [], len(first), len(second)
    while i and j:
        if first[i - 1] == second[j - 1]:
            words.append(first[i - 1])
            i, j = i - 1, j - 1
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return words
