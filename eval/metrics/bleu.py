"""BLEU of captions over a corpus, as ``pycocoevalcap`` computes it.

Papineni and others, ACL 2002, with that package's small constants (``1e-15`` above, ``1e-9``
below the line) and the closest reference length, the shorter one of two equally close.

Legend: I items, N lengths of n-grams, S sets of items, K counts that are added up, M of n-grams.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from onellm.eval.metrics.captions import aligned
from onellm.eval.metrics.intervals import percentiles, resamples
from onellm.eval.metrics.ngrams import Corpus, Grams, count_ngrams, shared

_ABOVE, _BELOW = 1e-15, 1e-9
Floats = NDArray[np.float64]


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
    ids, counts = _counted(candidates, references, longest)
    scores_NI = _scores(counts)
    each = {key: scores_NI[:, i].tolist() for i, key in enumerate(ids)}
    return _scores(counts.sum(axis=1, keepdims=True))[:, 0].tolist(), each


def bleu_intervals(
    candidates: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    longest: int = 4,
    times: int = 1000,
) -> list[tuple[float, float]]:
    """95 % percentile intervals of a corpus' BLEU-1 to BLEU-``longest``, items drawn anew.

    A resample's score is the corpus score of its items: their counts are added up, not their
    scores.

    Args:
        candidates: see :func:`bleu`.
        references: see :func:`bleu`.
        longest: greatest n-gram length.
        times: how many resamples.
    """
    _, counts_KI = _counted(candidates, references, longest)
    drawn_KS = np.stack([counts_KI @ drawn for drawn in resamples(counts_KI.shape[1], times)], 1)
    return [percentiles(scores.tolist()) for scores in _scores(drawn_KS)]


def _counted(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]], longest: int
) -> tuple[list[str], Floats]:
    """What BLEU adds up over items: right n-grams and all of them by n, and the two lengths."""
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
    return ids, np.array([*right_NI, *said_NI, length_I, closest_I], dtype=np.float64)


def _clipped(grams: Grams, corpus: Corpus) -> list[float]:
    """For each item, how many of its candidate's n-grams a reference grants."""
    own_M, their_M = shared(grams, corpus)
    granted_P = np.zeros_like(grams.count_P)
    np.maximum.at(granted_P, own_M, grams.count_P[their_M])
    clipped_P = np.minimum(granted_P, grams.count_P)  # a reference's own pairs are granted nothing
    items = int(corpus.item_C[-1]) + 1
    counts: list[float] = np.bincount(corpus.item_C[grams.caption_P], clipped_P, items).tolist()
    return counts


def _scores(counts_KS: Floats) -> Floats:
    """Scores (N, S) of S sets of items from their added-up counts."""
    *counts_MS, length_S, closest_S = counts_KS
    half = len(counts_MS) // 2
    product_S = np.ones_like(length_S)
    scores = []
    for n, (right_S, said_S) in enumerate(zip(counts_MS[:half], counts_MS[half:], strict=True), 1):
        product_S = product_S * ((right_S + _ABOVE) / (said_S + _BELOW))
        scores.append(product_S ** (1 / n))
    ratio_S = (length_S + _ABOVE) / (closest_S + _BELOW)
    short_S = np.where(ratio_S < 1, np.exp(1 - 1 / np.minimum(1.0, ratio_S)), 1.0)
    return np.stack(scores) * short_S
