"""CIDEr of captions, as ``pycocoevalcap`` computes it (there ``Cider``, in truth CIDEr-D).

Vedantam, Zitnick, Parikh, "CIDEr: consensus-based image description evaluation", CVPR 2015:
n-grams up to 4, weighted by how rare they are among the references, compared by a clipped cosine
with a Gaussian penalty on length (sigma 6), times 10. All captions are counted at once, as arrays.

Legend: I items, C captions (the candidates first, then all references), R references,
P pairs (caption, n-gram).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from onellm.eval.metrics.captions import aligned
from onellm.eval.metrics.ngrams import Grams, Ints, count_ngrams, shared

LONGEST, SIGMA, SCALE = 4, 6.0, 10.0
Floats = NDArray[np.float64]


def cider(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> tuple[float, dict[str, float]]:
    """Score captions by the words they are made of.

    Args:
        candidates: caption by item id, words divided by spaces; see
            :func:`onellm.eval.metrics.ptb.tokenize`.
        references: true captions by item id, at least one each.

    Returns:
        the mean over items, and the score of each (0 to 10). With a single item every n-gram is
        in every document, so that the score is 0.

    Raises:
        ValueError: no items, other ids on the two sides, or an item without a reference.
    """
    ids = aligned("CIDEr", candidates, references)
    captions = [candidates[i] for i in ids]
    captions += [text for i in ids for text in references[i]]
    of_each = np.fromiter((len(references[i]) for i in ids), dtype=np.int64, count=len(ids))
    item_C = np.concatenate([np.arange(len(ids)), np.repeat(np.arange(len(ids)), of_each)])

    total_R = np.zeros(len(captions) - len(ids))
    length_C = np.zeros(len(captions))
    by_length = []
    for n, grams in enumerate(count_ngrams(captions, LONGEST), 1):
        by_length.append(_similarity(grams, item_C, len(ids)))
        if n == 2:  # the reference scorer takes the number of word pairs for the length
            length_C = np.bincount(grams.caption_P, grams.count_P, len(captions)).astype(float)
    difference_R = length_C[item_C[len(ids) :]] - length_C[len(ids) :]
    penalty_R = np.exp(-(difference_R**2) / (2 * SIGMA**2))
    for similarity_R in by_length:
        total_R += similarity_R * penalty_R
    score_I = np.bincount(item_C[len(ids) :], total_R, len(ids)) / LONGEST / of_each * SCALE
    return float(score_I.mean()), dict(zip(ids, score_I.tolist(), strict=True))


def _similarity(grams: Grams, item_C: Ints, items: int) -> Floats:
    """Clipped TF-IDF cosine of each reference with its item's candidate, for one n."""
    captions = len(item_C)
    weight_P = grams.count_P * _rarity(grams, item_C, items)[grams.gram_P]
    norm_C = np.sqrt(np.bincount(grams.caption_P, weight_P**2, captions))
    own_M, their_M = shared(grams, item_C, items)
    product_M = np.minimum(weight_P[own_M], weight_P[their_M]) * weight_P[their_M]
    found_C = np.bincount(grams.caption_P[their_M], product_M, captions)
    norm_R = norm_C[item_C[items:]] * norm_C[items:]
    return np.divide(found_C[items:], norm_R, out=np.zeros_like(norm_R), where=norm_R != 0)


def _rarity(grams: Grams, item_C: Ints, items: int) -> Floats:
    """Log of how many times more items there are than items with the n-gram, by n-gram."""
    first, size = int(np.searchsorted(grams.caption_P, items)), max(1, grams.different)
    key = np.unique(item_C[grams.caption_P[first:]] * size + grams.gram_P[first:])
    documents = np.bincount(key % size, minlength=size)
    return np.log(float(items)) - np.log(np.maximum(1.0, documents))
