"""Which class of a closed list a free answer names: scenes, and objects of ModelNet40.

There is no official rule for text; ours is written in the scorer's documentation.
"""

from __future__ import annotations

from collections.abc import Sequence

from onellm.eval.metrics.choice import phrase


def named_class(answer: str, classes: Sequence[str]) -> str | None:
    """The class that an answer names.

    Case, underscores and hyphens do not matter. A class that is the whole answer wins; otherwise
    the longest class name that is in it as whole words.

    Args:
        answer: what the model said.
        classes: all names.

    Returns:
        a name as spelt in ``classes``; None where none is there, or two equally long ones.
    """
    said = phrase(answer)
    known = {phrase(name): name for name in classes}
    if said in known:
        return known[said]
    inside = [words for words in known if words and f" {words} " in f" {said} "]
    longest = max((len(words) for words in inside), default=0)
    best = [words for words in inside if len(words) == longest]
    return known[best[0]] if len(best) == 1 else None
