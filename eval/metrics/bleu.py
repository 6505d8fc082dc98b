"""BLEU of captions over a corpus, as ``pycocoevalcap`` computes it.

Papineni and others, ACL 2002, with that package's small constants (``1e-15`` above, ``1e-9``
below the line) and the closest reference length, the shorter one of two equally close.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from onellm.eval.metrics.captions import aligned
from onellm.eval.metrics.ngrams import Corpus, Grams, count_ngrams, shared

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
    corpus = Corpus.of(ids, candidates, references)
    lengths = corpus.length_C.tolist()
    starts = np.flatnonzero(corpus.candidate_C).tolist()
    length_I = [lengths[start] for start in starts]
    closest_I = [
        min((abs(other - lengths[start]), other) for other in lengths[start + 1 : end])[1]
        for start, end in pairwise([*starts, len(lengths)])
    ]
    right_NI = [_clipped(grams, corpus) for grams in count_ngrams(corpus, longest)]
    said_NI = [[max(0, length - n) for length in length_I] for n in range(longest)]
    each = {
        key: _score([r[i] for r in right_NI], [s[i] for s in said_NI], length_I[i], closest_I[i])
        for i, key in enumerate(ids)
    }
    whole = _score(
        [sum(r) for r in right_NI], [sum(s) for s in said_NI], sum(length_I), sum(closest_I)
    )
    return whole, each


def _clipped(grams: Grams, corpus: Corpus) -> list[int]:
    """For each item, how many of its candidate's n-grams a reference grants."""
    own_M, their_M = shared(grams, corpus)
    granted_P = np.zeros_like(grams.count_P)
    np.maximum.at(granted_P, own_M, grams.count_P[their_M])
    clipped_P = np.minimum(granted_P, grams.count_P)  # a reference's own pairs are granted nothing
    items = int(corpus.item_C[-1]) + 1
    counts: list[int] = np.bincount(corpus.item_C[grams.caption_P], clipped_P, items).tolist()
    return [int(count) for count in counts]


def _score(right_N: Sequence[int], said_N: Sequence[int], length: int, closest: int) -> list[float]:
    product, scores = 1.0, []
    for n, (right, said) in enumerate(zip(right_N, said_N, strict=True), 1):
        product *= (right + _ABOVE) / (said + _BELOW)
        scores.append(product ** (1 / n))
    ratio = (length + _ABOVE) / (closest + _BELOW)
    return [s * math.exp(1 - 1 / ratio) for s in scores] if ratio < 1 else scores
