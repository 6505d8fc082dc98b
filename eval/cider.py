"""CIDEr of captions, as ``pycocoevalcap`` computes it (there ``Cider``, in truth CIDEr-D).

Vedantam, Zitnick, Parikh, "CIDEr: consensus-based image description evaluation", CVPR 2015:
n-grams up to 4, weighted by how rare they are among the references, compared by a clipped cosine
with a Gaussian penalty on length (sigma 6), times 10.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

_N, _SIGMA, _SCALE = 4, 6.0, 10.0
Gram = tuple[str, ...]

_SPLIT = (
    (re.compile(r"[‘’`]"), "'"),
    (re.compile(r"(\w)(n't)\b"), r"\1 \2"),
    (re.compile(r"(\w)('(?:s|m|d|re|ve|ll))\b"), r"\1 \2"),
)
# A word with what may stand inside it: hyphen, apostrophe, stroke, the comma and point of numbers.
_WORD = re.compile(r"n't\b|'(?:s|m|d|re|ve|ll)\b|\w+(?:[-'/&]\w+|[.,]\d+)*|[%$#@*=<>^~©°]")


def tokenize(caption: str) -> str:
    """Lower-case words with single spaces, punctuation dropped, clitics apart.

    Enough for short captions: it does what the Stanford (PTB) tokenizer and ``pycocoevalcap``'s
    list of punctuation do to plain English, and knows none of its abbreviations, dates or
    brackets.

    Example:
        >>> tokenize("A woman's holding an umbrella, in the rain!")
        "a woman 's holding an umbrella in the rain"
    """
    text = caption.lower()
    for pattern, to in _SPLIT:
        text = pattern.sub(to, text)
    return " ".join(_WORD.findall(text))


def cider(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> tuple[float, dict[str, float]]:
    """Score captions by the words they are made of.

    Args:
        candidates: caption by item id, words divided by spaces; see :func:`tokenize`.
        references: true captions by item id, at least one each.

    Returns:
        the mean over items, and the score of each (0 to 10). With a single item every n-gram is
        in every document, so that the score is 0.

    Raises:
        ValueError: no items, other ids on the two sides, or an item without a reference.
    """
    if not candidates or candidates.keys() != references.keys():
        raise ValueError("CIDEr needs items, and a candidate and references for each")
    if empty := [key for key, texts in references.items() if not texts]:
        raise ValueError(f"no reference for {', '.join(empty)}")
    counted = {key: [_grams(text) for text in texts] for key, texts in references.items()}
    documents: Counter[Gram] = Counter()
    for texts in counted.values():
        documents.update({gram for grams in texts for gram in grams})
    weigh = _Weigher(documents, math.log(float(len(counted))))
    scores = {key: _score(weigh, _grams(text), counted[key]) for key, text in candidates.items()}
    return sum(scores.values()) / len(scores), scores


def _grams(text: str) -> Counter[Gram]:
    words = text.split()
    grams: Counter[Gram] = Counter()
    for n in range(1, _N + 1):
        for start in range(len(words) - n + 1):
            grams[tuple(words[start : start + n])] += 1
    return grams


class _Vector:
    """TF-IDF weights of one caption by n-gram length, their norms, and its length."""

    def __init__(self) -> None:
        self.weights: list[dict[Gram, float]] = [{} for _ in range(_N)]
        self.norms = [0.0] * _N
        self.length = 0


class _Weigher:
    """Turns counts into TF-IDF vectors.

    Args:
        documents: in how many items' references an n-gram occurs.
        log_items: logarithm of the number of items.
    """

    def __init__(self, documents: Counter[Gram], log_items: float) -> None:
        self.documents, self.log_items = documents, log_items

    def __call__(self, grams: Counter[Gram]) -> _Vector:
        vector = _Vector()
        for gram, count in grams.items():
            rarity = self.log_items - math.log(max(1.0, self.documents.get(gram, 0)))
            n = len(gram) - 1
            vector.weights[n][gram] = float(count) * rarity
            vector.norms[n] += vector.weights[n][gram] ** 2
            if n == 1:  # the reference scorer takes the number of word pairs for the length
                vector.length += count
        vector.norms = [math.sqrt(norm) for norm in vector.norms]
        return vector


def _score(weigh: _Weigher, candidate: Counter[Gram], texts: Sequence[Counter[Gram]]) -> float:
    own = weigh(candidate)
    by_n = [0.0] * _N
    for text in texts:
        for n, similarity in enumerate(_similarity(own, weigh(text))):
            by_n[n] += similarity
    return sum(by_n) / _N / len(texts) * _SCALE


def _similarity(own: _Vector, other: _Vector) -> list[float]:
    penalty = math.exp(-(float(own.length - other.length) ** 2) / (2 * _SIGMA**2))
    values = []
    for n in range(_N):
        theirs, value = other.weights[n], 0.0
        for gram, weight in own.weights[n].items():
            match = theirs.get(gram, 0.0)
            value += min(weight, match) * match
        if own.norms[n] and other.norms[n]:
            value /= own.norms[n] * other.norms[n]
        values.append(value * penalty)
    return values
