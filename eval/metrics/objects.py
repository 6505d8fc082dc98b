"""Whether two sentences name the same object: reading a judge, and a rule without one."""

from __future__ import annotations

from onellm.eval.metrics.choice import phrase

_AFTER_HEAD = """
of with in on at by for from to and or that which who wearing holding having has is are featuring
made inside under over near
"""


def read_verdict(reply: str) -> bool | None:
    """A judge's T or F, the first letter of its reply; None for anything else."""
    letter = reply.strip()[:1].upper()
    return {"T": True, "F": False}.get(letter)


def head_noun(sentence: str) -> str:
    """The last word of the first noun phrase, by a list of words that end one.

    Example:
        >>> head_noun("A small wooden chair with four legs.")
        'chair'
    """
    words, ends = phrase(sentence).split(), _AFTER_HEAD.split()
    for place, word in enumerate(words):
        if place and word in ends:
            return words[place - 1]
    return words[-1] if words else ""


def same_object(answer: str, truth: str) -> bool:
    """Whether the truth's head noun is among the answer's words, singular or plural.

    Not the judged accuracy of the literature: never write it under that name.
    """
    noun = _singular(head_noun(truth))
    return bool(noun) and noun in {_singular(word) for word in phrase(answer).split()}


def _singular(word: str) -> str:
    for plural, single in (("ies", "y"), ("sses", "ss"), ("xes", "x"), ("ches", "ch"), ("s", "")):
        if word.endswith(plural) and len(word) > len(plural) + 1 and not word.endswith("ss"):
            return word.removesuffix(plural) + single
    return word
