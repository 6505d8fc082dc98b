"""Which option a model's text names, by the conventions in use.

No convention here falls back on chance: what cannot be read is ``None`` and counts as wrong. Two
toolkits draw a random letter instead, which :func:`nextqa_lmms` and the MMBench rules leave out.
Options are numbered A, B, C, … in the order given.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping, Sequence

from onellm.errors import ConfigError
from onellm.spelling import did_you_mean

Parser = Callable[[str, Sequence[str]], str | None]
"""(answer, option texts) → letter, or None where it cannot be read."""


def letters(options: Sequence[str]) -> str:
    """The letters of so many options."""
    return string.ascii_uppercase[: len(options)]


def exact(answer: str, options: Sequence[str]) -> str | None:
    """The text is the letter and nothing else: LLaVA on SEED-Bench."""
    return answer if len(answer) == 1 and answer in letters(options) else None


def first_letter(answer: str, options: Sequence[str]) -> str | None:
    """The first character, in any case: lmms-eval on SEED-Bench."""
    letter = answer[:1].upper()
    return letter if letter and letter in letters(options) else None


_LLAVA_SENTENCE = re.compile(r"The answer is ([A-Z]).")


def llava(answer: str, options: Sequence[str]) -> str | None:
    """LLaVA on ScienceQA: ``B``, ``B. text`` or one ``The answer is B.``, spelt exactly so.

    A letter behind the last option is returned as it is, and is wrong.
    """
    if len(answer) == 1 and answer in "ABCDE":
        return answer
    if re.match(r"[A-Z]\. ", answer):
        return answer[0]
    found = _LLAVA_SENTENCE.findall(answer)
    return found[0] if len(found) == 1 else None


def scienceqa_lmms(answer: str, options: Sequence[str]) -> str | None:
    """lmms-eval on ScienceQA: a letter, or a letter and a full stop in front, in any case."""
    text = answer.strip().upper()
    if len(text) == 1 or text[1:2] == ".":
        return text[0] if text[0] in letters(options) else None
    return None


def nextqa_lmms(answer: str, options: Sequence[str]) -> str | None:
    """lmms-eval on NExT-QA without its random letter: the last one that is named.

    Letters in brackets come before letters in front of a space, those before letters with a full
    stop, and those before option texts inside an answer of more than five words.
    """
    answer = f" {answer.strip(',.!?;: ' + chr(39))} "
    names = letters(options)
    for shape in ("({})", "{} ", "{}."):
        if named := [letter for letter in names if shape.format(letter) in answer]:
            looked_for = "({})" if shape == "({})" else " {} "
            places = [answer.rfind(looked_for.format(letter)) for letter in named]
            return named[places.index(max(places))]
    if len(answer.split()) > 5:
        places = [answer.lower().rfind(option.lower()) for option in options]
        if max(places, default=-1) >= 0:
            return names[places.index(max(places))]
    return None


_ALONE = re.compile(r"""[\s("'\[*]*([A-Za-z])[\s.)\]:,"'*]*""")
_IN_FRONT = re.compile(r"""[\s("'\[*]*(?:([A-Z])["'*]?[.):\]](?!\w)|([B-HJ-Z])\s)""")
_MARKED = re.compile(r"(?<![\w'])[(\[]?([A-Z])[.):\]](?!\w)")
# "The answer is B"; a small letter only at the end, because "the answer is a dog".
_ANNOUNCED = re.compile(
    r"""(?i:answer|option|choice)(?i:\s+is)?\s*:?\s*[(\[*"']*"""
    r"""(?:([A-Z])(?![\w'])|([a-z])[)\]*"'.\s]*$)"""
)


def plain(answer: str, options: Sequence[str]) -> str | None:
    """Our reading: a letter where one is clearly meant, otherwise an option's own words.

    In this order: a letter alone in any case, brackets and marks allowed; a capital with ``.``,
    ``)`` or ``:`` in front and no other marked so; one letter announced as ``answer``, ``option``
    or ``choice``; the text of exactly one option; exactly one option as a phrase of whole words,
    where an option inside a longer one that is also there does not count.
    """
    names = letters(options)
    if (alone := _ALONE.fullmatch(answer)) and alone[1].upper() in names:
        return alone[1].upper()
    front = _IN_FRONT.match(answer)
    if front and not ({*_MARKED.findall(answer)} & {*names}) - {front[1], front[2]}:
        letter = front[1] or front[2]
        if letter in names:
            return letter
    announced = {(one or two).upper() for one, two in _ANNOUNCED.findall(answer)} & {*names}
    if len(announced) == 1:
        return announced.pop()
    wanted = [phrase(option) for option in options]
    said = phrase(answer)
    same = [place for place, words in enumerate(wanted) if words and words == said]
    if not same:
        inside = [p for p, words in enumerate(wanted) if words and f" {words} " in f" {said} "]
        same = [
            p
            for p in inside
            if not any(p != q and f" {wanted[p]} " in f" {wanted[q]} " for q in inside)
        ]
    return names[same[0]] if len(same) == 1 else None


def phrase(text: str) -> str:
    """Lower-case words with single spaces: what whole phrases are compared by.

    Example:
        >>> phrase("A home-office (with desk).")
        'a home office with desk'
    """
    return " ".join(re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower()))


PARSERS: dict[str, Parser] = {
    "plain": plain,
    "exact": exact,
    "first_letter": first_letter,
    "llava": llava,
    "scienceqa_lmms": scienceqa_lmms,
    "nextqa_lmms": nextqa_lmms,
}
"""The conventions by name; :mod:`onellm.eval.metrics.mmbench` adds two."""


def parser_named(name: str, others: Mapping[str, Parser] | None = None) -> Parser:
    """Look a convention up.

    Raises:
        ConfigError: unknown name, with the nearest spelling.
    """
    known = {**PARSERS, **(others or {})}
    if name not in known:
        raise ConfigError(f"unknown way to read an option {name!r}.{did_you_mean(name, known)}")
    return known[name]


def likeliest(log_probabilities: Sequence[Mapping[str, float]], reduction: str = "mean") -> int:
    """The option that a model gives the greatest likelihood: SEED-Bench's official rule.

    Args:
        log_probabilities: for each option the ``sum`` and ``mean`` over its tokens.
        reduction: which of the two; models whose loss is a mean over tokens use ``mean``.

    Returns:
        its place; the first of several equally likely ones.
    """
    values = [option[reduction] for option in log_probabilities]
    return max(range(len(values)), key=values.__getitem__)
