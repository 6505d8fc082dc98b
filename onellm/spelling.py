"""Nearest known spelling of a mistyped name, for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Two letters swapped or one wrong in a word of five are above it (0.8); "nosuch" beside "nocaps",
# half of whose letters agree, is below.
LIKENESS = 0.65


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name that a word is most like, None if it is like none of them.

    Args:
        word: what was typed; capitals do not count.
        known: the names that would have been accepted.

    Example:
        >>> nearest("modle", ["model", "beams"])
        'model'
    """
    names = {name.lower(): name for name in sorted(known)}
    near = difflib.get_close_matches(word.lower(), names, n=1, cutoff=LIKENESS)
    return names[near[0]] if near else None


def did_you_mean(word: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """Return ``" Did you mean 'x'?"`` or, with nothing near, the list of what is known.

    Args:
        word: what was typed.
        known: the names that would have been accepted.
        otherwise: a sentence in place of the list, where that would be long.
    """
    names = sorted(known)
    near = nearest(word, names)
    if near is not None:
        return f" Did you mean {near!r}?"
    if otherwise is not None:
        return f" {otherwise.strip()}"
    return f" Known: {', '.join(names)}." if names else ""
