"""Steps between the text a model writes and the scorer that judges it, by name.

The file of answers keeps the text as it came; steps are taken when it is scored. Whatever an
official scorer does itself (lower case, articles, punctuation) is the scorer's and not here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


def cut_at_turn(text: str) -> str:
    """What stands in front of the first ``###``, as the published scripts cut (spec §1.4)."""
    return text.partition("###")[0]


def strip(text: str) -> str:
    """Without white space at both ends, as published."""
    return text.strip()


def first_line(text: str) -> str:
    """The first line that is not empty."""
    return next((line for line in text.splitlines() if line.strip()), "")


STEPS: dict[str, Callable[[str], str]] = {
    step.__name__: step for step in (cut_at_turn, strip, first_line)
}


def postprocess(text: str, steps: Sequence[str]) -> str:
    r"""Take a task's steps.

    Args:
        text: a model's text.
        steps: names of :data:`STEPS`, in order.

    Example:
        >>> postprocess(" a dog\n### Human: and", ["cut_at_turn", "strip"])
        'a dog'
    """
    for step in steps:
        text = STEPS[step](text)
    return text
