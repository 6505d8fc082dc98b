"""Word n-grams of a whole corpus of captions, counted as integers.

Legend: T words of all captions end to end, C captions, A places in T, P pairs (different n-gram,
caption), M matches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
_BLOCK = 20_000  # captions split at a time, so that their words do not all stand in memory
_BITS = 63  # of an integer that is not negative


@dataclass(frozen=True)
class Corpus:
    """Captions item by item, each item's candidate in front of its references.

    Args:
        word_T: numbers of all their words, end to end.
        length_C: how many words each caption has.
        item_C: whose it is.
        candidate_C: whether it is the candidate.
    """

    word_T: Ints
    length_C: Ints
    item_C: Ints
    candidate_C: Flags

    @classmethod
    def of(
        cls,
        ids: Sequence[str],
        candidates: Mapping[str, str],
        references: Mapping[str, Sequence[str]],
    ) -> Corpus:
        """Put captions in order, their words divided by white space."""
        captions = [text for i in ids for text in (candidates[i], *references[i])]
        size_I = np.fromiter((1 + len(references[i]) for i in ids), dtype=np.int64, count=len(ids))
        candidate_C = np.zeros(len(captions), dtype=bool)
        candidate_C[np.cumsum(size_I) - size_I] = True
        return cls(*_words(captions), np.repeat(np.arange(len(ids)), size_I), candidate_C)


@dataclass(frozen=True)
class Grams:
    """The n-grams of one length that occur more than once in the corpus.

    Pairs are sorted by n-gram, then by caption. An n-gram that occurs once matches nothing, and
    neither do the longer ones that begin with it: those are only counted.

    Args:
        gram_P: number of the n-gram, below ``different``.
        caption_P: index of the caption.
        count_P: how often it occurs there.
        different: how many there are.
        single_C: how many n-grams of each caption occur once in the corpus.
    """

    gram_P: Ints
    caption_P: Ints
    count_P: Ints
    different: int
    single_C: Ints


def count_ngrams(corpus: Corpus, longest: int = 4) -> Iterator[Grams]:
    """Count the n-grams of every caption, for n = 1 to ``longest``."""
    word_T, length_C = corpus.word_T, corpus.length_C
    caption_T = np.repeat(np.arange(len(length_C)), length_C)
    end_T = np.repeat(np.cumsum(length_C), length_C)  # where each word's caption ends
    vocabulary = int(word_T.max(initial=0)) + 1
    place_A, gram_A = np.arange(len(word_T)), np.zeros(len(word_T), dtype=np.int64)
    for n in range(1, longest + 1):
        whole = place_A + n <= end_T[place_A]
        place_A, gram_A = place_A[whole], gram_A[whole]
        key_A, place_A = _sorted(gram_A * vocabulary + word_T[place_A + n - 1], place_A)
        starts = _changes(key_A)
        times = np.diff(starts, append=len(key_A))
        again_A = np.repeat(times > 1, times)
        key_A, place_A = key_A[again_A], place_A[again_A]
        gram_A = np.cumsum(_marks(key_A)) - 1
        caption_A = caption_T[place_A]
        pairs = _changes(gram_A, caption_A)
        yield Grams(
            gram_P=gram_A[pairs],
            caption_P=caption_A[pairs],
            count_P=np.diff(pairs, append=len(gram_A)),
            different=int(gram_A[-1]) + 1 if len(gram_A) else 0,
            single_C=np.maximum(0, length_C - n + 1)
            - np.bincount(caption_A, minlength=len(length_C)),
        )


def _sorted(key_A: Ints, place_A: Ints) -> tuple[Ints, Ints]:
    """Keys with their places, by key and then by place."""
    bits = int(place_A.max(initial=0)).bit_length()
    if int(key_A.max(initial=0)).bit_length() + bits > _BITS:
        order = np.lexsort((place_A, key_A))
        return key_A[order], place_A[order]
    both = key_A << bits | place_A  # numbers sort several times as fast as their places
    both.sort()
    return both >> bits, both & ((1 << bits) - 1)


def _marks(*columns: Ints) -> Flags:
    """Whether a row differs from the one before; the first one does."""
    marks = np.ones(len(columns[0]), dtype=bool)
    marks[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return marks


def _changes(*columns: Ints) -> Ints:
    return np.flatnonzero(_marks(*columns))


def shared(grams: Grams, corpus: Corpus) -> tuple[Ints, Ints]:
    """Where references have an n-gram of their item's candidate.

    Returns:
        M matches: the pair of the candidate, and the pair of the reference.
    """
    # Sorted by caption, an item's candidate comes before its references, with none between.
    places = np.arange(len(grams.gram_P))
    own_P = corpus.candidate_C[grams.caption_P]
    last_P = np.maximum.accumulate(np.where(own_P, places, 0))
    item_P = corpus.item_C[grams.caption_P]
    same_P = (grams.gram_P[last_P] == grams.gram_P) & (item_P[last_P] == item_P)
    hit_M = np.flatnonzero(same_P & ~own_P & own_P[last_P])
    return last_P[hit_M], hit_M


def documents(grams: Grams, corpus: Corpus) -> Ints:
    """In how many items' references each n-gram occurs."""
    theirs = np.flatnonzero(~corpus.candidate_C[grams.caption_P])
    gram_P = grams.gram_P[theirs]
    first = _changes(gram_P, corpus.item_C[grams.caption_P[theirs]])
    return np.bincount(gram_P[first], minlength=grams.different)


def _words(captions: Sequence[str]) -> tuple[Ints, Ints]:
    """Numbers of all words, and how many each caption has."""
    number: defaultdict[str, int] = defaultdict(count().__next__)
    blocks, lengths = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for start in range(0, len(captions), _BLOCK):
        split = [caption.split() for caption in captions[start : start + _BLOCK]]
        lengths.append(np.fromiter(map(len, split), dtype=np.int64, count=len(split)))
        total = int(lengths[-1].sum())
        words = map(number.__getitem__, chain.from_iterable(split))
        blocks.append(np.fromiter(words, dtype=np.int64, count=total))
    return np.concatenate(blocks), np.concatenate(lengths)
