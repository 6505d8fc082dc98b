"""Word n-grams of a whole corpus of captions, counted as integers.

Legend: T words of all captions end to end, C captions, P pairs (caption, different n-gram).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
_BLOCK = 20_000  # captions split at a time, so that their words do not all stand in memory


@dataclass(frozen=True)
class Grams:
    """The n-grams of one length, once per caption they occur in, sorted by (caption, n-gram).

    Args:
        caption_P: index of the caption.
        gram_P: number of the n-gram, below ``different``.
        count_P: how often it occurs there.
        different: how many different n-grams there are.
    """

    caption_P: Ints
    gram_P: Ints
    count_P: Ints
    different: int


def count_ngrams(captions: Sequence[str], longest: int = 4) -> Iterator[Grams]:
    """Count the n-grams of every caption, for n = 1 to ``longest``.

    Args:
        captions: words divided by white space.
        longest: greatest n.
    """
    word_T, caption_T = _words(captions)
    vocabulary = int(word_T.max(initial=-1)) + 1
    gram_T, different = word_T, vocabulary
    for n in range(1, longest + 1):
        if n > 1:
            # Positions whose caption still has n words; the n-gram is its first n - 1 and a word.
            whole_T = caption_T[: max(0, len(gram_T) - 1)] == caption_T[n - 1 :]
            pair_T = gram_T[:-1] * vocabulary + word_T[n - 1 :]
            kept = np.flatnonzero(whole_T)
            seen, number_K = np.unique(pair_T[kept], return_inverse=True)
            gram_T = np.full(len(pair_T), -1, dtype=np.int64)
            gram_T[kept], different = number_K.reshape(-1), len(seen)
        here = gram_T >= 0
        key_P, count_P = np.unique(
            caption_T[: len(gram_T)][here] * max(1, different) + gram_T[here], return_counts=True
        )
        caption_P, gram_P = np.divmod(key_P, max(1, different))
        yield Grams(caption_P, gram_P, count_P, different)


def _words(captions: Sequence[str]) -> tuple[Ints, Ints]:
    """Numbers of all words, and the caption of each."""
    number: defaultdict[str, int] = defaultdict(count().__next__)
    blocks, lengths = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for start in range(0, len(captions), _BLOCK):
        split = [caption.split() for caption in captions[start : start + _BLOCK]]
        lengths.append(np.fromiter(map(len, split), dtype=np.int64, count=len(split)))
        total = int(lengths[-1].sum())
        words = map(number.__getitem__, chain.from_iterable(split))
        blocks.append(np.fromiter(words, dtype=np.int64, count=total))
    length_C = np.concatenate(lengths)
    return np.concatenate(blocks), np.repeat(np.arange(len(length_C)), length_C)


def shared(grams: Grams, item_C: Ints, items: int) -> tuple[Ints, Ints]:
    """Where references have an n-gram of their item's candidate.

    Args:
        grams: of captions of which the first ``items`` are the candidates, one per item.
        item_C: item of each caption.
        items: how many.

    Returns:
        M matches: the pair of the candidate, and the pair of the reference.
    """
    first = int(np.searchsorted(grams.caption_P, items))  # where the references' pairs begin
    key_P = item_C[grams.caption_P] * max(1, grams.different) + grams.gram_P
    if not first or first == len(key_P):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    # The candidates' keys are sorted, each there once: look the references' up among them.
    place = np.minimum(np.searchsorted(key_P[:first], key_P[first:]), first - 1)
    hit = np.flatnonzero(key_P[place] == key_P[first:])
    return place[hit], hit + first
