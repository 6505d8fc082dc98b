"""ROUGE-L of captions, as ``pycocoevalcap`` computes it: longest common word sequence, beta 1.2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onellm.eval.metrics.captions import aligned

BETA = 1.2


def rouge_l(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> tuple[float, dict[str, float]]:
    """Score captions by the longest word sequence they share with a reference.

    The best precision and the best recall may come from different references.

    Args:
        candidates: caption by item id, words divided by single spaces.
        references: true captions by item id, at least one each.

    Returns:
        the mean over items, and the score of each (0 to 1). Two empty captions score 1.

    Raises:
        ValueError: no items, other ids on the two sides, or an item without a reference.
    """
    ids = aligned("ROUGE-L", candidates, references)
    scores = {key: _f_score(candidates[key], references[key]) for key in ids}
    return sum(scores.values()) / len(scores), scores


def _f_score(candidate: str, references: Sequence[str]) -> float:
    said = candidate.split(" ")  # not split(): an empty caption is one empty word to the original
    precision = recall = 0.0
    for reference in references:
        true = reference.split(" ")
        common = common_length(true, said)
        precision = max(precision, common / len(said))
        recall = max(recall, common / len(true))
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, one big-integer step per word of ``second``.

    Hyyrö, "Bit-parallel LCS-length computation revisited", 2004: a zero bit is a matched word.
    """
    places: dict[str, int] = {}
    for index, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << index
    whole = (1 << len(first)) - 1
    row = whole
    for word in second:
        hit = row & places.get(word, 0)
        row = (row + hit) | (row - hit)
    return (~row & whole).bit_count()
