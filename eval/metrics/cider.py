"""CIDEr of captions, as ``pycocoevalcap`` computes it (there ``Cider``, in truth CIDEr-D).

Vedantam, Zitnick, Parikh, "CIDEr: consensus-based image description evaluation", CVPR 2015:
n-grams up to 4, weighted by how rare they are among the references, compared by a clipped cosine
with a Gaussian penalty on length (sigma 6), times 10. All captions are counted at once, as arrays.

Legend: I items, C captions, R references, P pairs (n-gram, caption), M matches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from onellm.eval.metrics.captions import aligned
from onellm.eval.metrics.ngrams import Corpus, Grams, count_ngrams, documents, shared

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
    corpus = Corpus.of(ids, candidates, references)
    reference_R = np.flatnonzero(~corpus.candidate_C)
    own_R = np.flatnonzero(corpus.candidate_C)[corpus.item_C[reference_R]]
    # The reference scorer takes the number of word pairs for the length.
    length_C = np.maximum(0, corpus.length_C - 1)
    penalty_R = np.exp(-((length_C[own_R] - length_C[reference_R]) ** 2) / (2 * SIGMA**2))
    total_R = np.zeros(len(reference_R))
    for grams in count_ngrams(corpus, LONGEST):
        product_C, norm_C = _products(grams, corpus, len(ids))
        norm_R = norm_C[own_R] * norm_C[reference_R]
        zero_R = np.zeros_like(norm_R)
        cosine_R = np.divide(product_C[reference_R], norm_R, out=zero_R, where=norm_R != 0)
        total_R += cosine_R * penalty_R
    item_R = corpus.item_C[reference_R]
    score_I = np.bincount(item_R, total_R) / LONGEST / np.bincount(item_R) * SCALE
    return float(score_I.mean()), dict(zip(ids, score_I.tolist(), strict=True))


def _products(grams: Grams, corpus: Corpus, items: int) -> tuple[Floats, Floats]:
    """Clipped TF-IDF products of references with their candidates, and all captions' norms."""
    captions, most = len(corpus.item_C), np.log(float(items))
    rarity = most - np.log(np.maximum(1.0, documents(grams, corpus)))
    weight_P = grams.count_P * rarity[grams.gram_P]
    # What occurs once in the corpus is as rare as can be, and matches nothing.
    square_C = np.bincount(grams.caption_P, weight_P**2, captions) + grams.single_C * most**2
    own_M, their_M = shared(grams, corpus)
    product_M = np.minimum(weight_P[own_M], weight_P[their_M]) * weight_P[their_M]
    product_C = np.bincount(grams.caption_P[their_M], product_M, captions)
    return product_C.astype(float), np.sqrt(square_C)
