"""MMBench (Liu and others, ECCV 2024): matching an answer to an option, and circular evaluation.

Two matchers without a judge, each as its toolkit has it: they look for a lone letter among the
words, and otherwise for an option's text anywhere in the answer, also inside a word (``catalog``
matches ``cat``; :func:`onellm.eval.metrics.choice.plain` does not).
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence

from onellm.eval.metrics.choice import Parser, letters

_FAILED = "Failed to obtain answer via API"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
REFUSED = "Z"
"""What VLMEvalKit reads where a model declines; wrong, but not unreadable."""
# Read so by the toolkit although the letter is small: "The correct answer is **b**".
_SENTENCE = re.compile(r"answer is:?\s*\**\(?([A-Z])\)?\**\.?\s*$", re.IGNORECASE)


def vlmevalkit(answer: str, options: Sequence[str]) -> str | None:
    """VLMEvalKit's matcher: a letter counts only among the last four words."""
    if _FAILED in answer:
        return None
    if any(text in answer for text in _REFUSALS):
        return REFUSED
    names, words = letters(options), re.sub(r"[.()\[\],:;!*#{}]", " ", answer).split()
    named = [letter for letter in names if letter in words]
    if not named and REFUSED in words:
        return REFUSED
    if len(named) == 1 and words.index(named[0]) > len(words) - 5:
        return named[0]
    if (found := _SENTENCE.search(answer)) and found[1].upper() in names:
        return found[1].upper()
    return _by_text(answer, options)


def lmms_mmbench(answer: str, options: Sequence[str]) -> str | None:
    """lmms-eval's matcher: ``A`` among more than three words is an article, ``E`` is accepted."""
    words = re.sub(r"[.(),:;!]", " ", answer).split()
    named = [letter for letter in "ABCDE" if letter in words]
    if _FAILED not in answer and len(named) == 1 and not (named == ["A"] and len(words) > 3):
        return named[0]
    return _by_text(answer, options)


def _by_text(answer: str, options: Sequence[str]) -> str | None:
    said = answer.lower()
    inside = [
        letter for letter, o in zip(letters(options), options, strict=True) if o.lower() in said
    ]
    return inside[0] if len(inside) == 1 else None


MATCHERS: dict[str, Parser] = {"vlmevalkit": vlmevalkit, "lmms_mmbench": lmms_mmbench}
"""The two by name."""


def circular(passes: Iterable[tuple[Hashable, bool]]) -> Mapping[Hashable, bool]:
    """CircularEval: a question is right if it is right in every pass.

    Args:
        passes: (question, whether this pass was right).
    """
    right: dict[Hashable, bool] = {}
    for question, hit in passes:
        right[question] = right.get(question, True) and hit
    return right
