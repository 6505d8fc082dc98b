"""Nearest known spelling of a mistyped name, for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return ``" Did you mean 'x'?"`` or, with nothing near, the list of what is known.

    Args:
        word: what was typed.
        known: the names that would have been accepted.
        otherwise: said in place of a list that would be too long.
    """
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f" Did you mean {near[0]!r}?"
    return otherwise or (f" Known: {', '.join(names)}." if names else "")
