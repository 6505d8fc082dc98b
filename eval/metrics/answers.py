"""Short answers compared as words: MSVD-QA, Clotho-AQA, MUSIC-AVQA, and the AVSD filter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from onellm.eval.metrics.vqa import NUMBER_WORDS


def msvd_exact(prediction: str, answer: str) -> bool:
    """Equal but for case and outer spaces; an empty prediction never is."""
    said = prediction.lower().strip()
    return bool(said) and said == answer.lower().strip()


def msvd_contains(prediction: str, answer: str) -> bool:
    """The published script's rule: either string inside the other.

    An empty prediction is always right by it, and ``man`` is for ``woman``.
    """
    said, true = prediction.lower().strip(), answer.lower().strip()
    return said in true or true in said


def _plain(text: str) -> str:
    return text.lower().strip().removesuffix(".")


def clotho_aqa(prediction: str, answers: Sequence[str]) -> dict[str, float | None]:
    """Compare with the three annotators' answers; no official scorer exists.

    Args:
        prediction: what the model said.
        answers: the answers to one question.

    Returns:
        ``any``: equal to one of them; ``majority``: equal to what at least two gave, None where
        no two agree; ``unanimous``: the same where all agree, None elsewhere; ``row``: share of
        the answers it is equal to.
    """
    said, true = _plain(prediction), [_plain(answer) for answer in answers]
    commonest, times = Counter(true).most_common(1)[0]
    right = float(bool(said) and said == commonest)
    return {
        "any": float(bool(said) and said in true),
        "majority": right if times >= 2 else None,
        "unanimous": right if times == len(true) else None,
        "row": true.count(said) / len(true) if said else 0.0,
    }


_WORD_OF = {str(number): word for number, word in enumerate(NUMBER_WORDS)}


def music_avqa_word(text: str) -> str:
    """An answer as MUSIC-AVQA's vocabulary spells it.

    Example:
        >>> music_avqa_word("Acoustic guitar."), music_avqa_word("2")
        ('acoustic_guitar', 'two')
    """
    word = "_".join(_plain(text).split())
    return _WORD_OF.get(word, word)


def music_avqa(prediction: str, answer: str) -> bool:
    """Equal once both are spelt as the vocabulary has it."""
    said = music_avqa_word(prediction)
    return bool(said) and said == music_avqa_word(answer)


def avsd_filter(sentence: str) -> str:
    """Drop every token of one character, as the filter of AVSD's example repository does.

    Nothing says that the paper used it; it is off by default.
    """
    return " ".join(token for token in sentence.split() if len(token) > 1)
