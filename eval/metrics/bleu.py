"""BLEU of captions over a corpus, as ``pycocoevalcap`` computes it.

Papineni and others, ACL 2002, with that package's small constants (``1e-15`` above, ``1e-9``
below the line) and the closest reference length, the shorter one of two equally close.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from onellm.eval.metrics.captions import aligned
from onellm.eval.metrics.ngrams import Grams, Ints, count_ngrams, shared

_ABOVE, _BELOW = 1e-15, 1e-9


def bleu(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]], longest: int = 4
) -> tuple[list[float], dict[str, list[float]]]:
    """BLEU-1 to BLEU-``longest`` of a corpus, and of each item alone.

    Args:
        candidates: caption by item id, words divided by spaces.
        references: true captions by item id, at least one each.
        longest: greatest n-gram length.

    Returns:
        the corpus scores (0 to 1), which are not the means of the items' scores, and those by id.

    Raises:
        ValueError: no items, other ids on the two sides, or an item without a reference.
    """
    ids = aligned("BLEU", candidates, references)
    captions = [candidates[i] for i in ids] + [text for i in ids for text in references[i]]
    of_each = [len(references[i]) for i in ids]
    item_C = np.concatenate([np.arange(len(ids)), np.repeat(np.arange(len(ids)), of_each)])
    lengths = [len(text.split()) for text in captions]
    length_I = lengths[: len(ids)]
    closest_I, start = [], len(ids)
    for length, number in zip(length_I, of_each, strict=True):
        around = lengths[start : start + number]
        closest_I.append(min((abs(other - length), other) for other in around)[1])
        start += number
    right_NI = [_clipped(g, item_C, len(ids)) for g in count_ngrams(captions, longest)]
    said_NI = [[max(0, length - n) for length in length_I] for n in range(longest)]
    each = {
        key: _score([r[i] for r in right_NI], [s[i] for s in said_NI], length_I[i], closest_I[i])
        for i, key in enumerate(ids)
    }
    corpus = _score(
        [int(sum(r)) for r in right_NI], [sum(s) for s in said_NI], sum(length_I), sum(closest_I)
    )
    return corpus, each


def _clipped(grams: Grams, item_C: Ints, items: int) -> list[int]:
    """For each item, how many of its candidate's n-grams a reference grants."""
    own_M, their_M = shared(grams, item_C, items)
    granted_P = np.zeros_like(grams.count_P)
    np.maximum.at(granted_P, own_M, grams.count_P[their_M])
    clipped_P = np.minimum(granted_P, grams.count_P)  # a reference's own pairs are granted nothing
    counts: list[int] = np.bincount(grams.caption_P, clipped_P, items)[:items].astype(int).tolist()
    return counts


def _score(right_N: Sequence[int], said_N: Sequence[int], length: int, closest: int) -> list[float]:
    product, scores = 1.0, []
    for n, (right, said) in enumerate(zip(right_N, said_N, strict=True), 1):
        product *= (right + _ABOVE) / (said + _BELOW)
        scores.append(product ** (1 / n))
    ratio = (length + _ABOVE) / (closest + _BELOW)
    return [s * math.exp(1 - 1 / ratio) for s in scores] if ratio < 1 else scores
