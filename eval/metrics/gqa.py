"""GQA (Hudson and Manning, CVPR 2019): equal strings, after one of three clean-ups."""

from __future__ import annotations

import string
from collections.abc import Callable

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _raw(text: str) -> str:
    return text


def _llava(text: str) -> str:
    return text.rstrip(".").lower()


def _lmms(text: str) -> str:
    return text.lower().translate(_NO_PUNCTUATION)


CLEAN_UPS: dict[str, tuple[Callable[[str], str], Callable[[str], str]]] = {
    "official": (_raw, _raw),
    "llava": (_llava, _raw),
    "lmms": (_lmms, _lmms),
}
"""What is done to prediction and truth; the official evaluator does nothing, and all who use it
do something first."""


def gqa_equal(prediction: str, answer: str, clean_up: str = "llava") -> bool:
    """Whether an answer is the true one; spaces around it are not forgiven by any clean-up."""
    said, true = CLEAN_UPS[clean_up]
    return said(prediction) == true(answer)
