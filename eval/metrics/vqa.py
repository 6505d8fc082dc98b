"""VQA accuracy (Antol and others, ICCV 2015) by the four rules that are called so.

They agree on the formula, for each of the ten answers ``min(1, matches among the other nine / 3)``
and the mean of that, and on little else:

========== ================================ ================ ============================
rule       prediction                       references       used by
========== ================================ ================ ============================
vqa        normalised unless all references as prediction    the official VQA scorer
           are the same string
vqa_always normalised                       normalised       VLMEvalKit
textvqa    normalised, other marks          normalised       MMF, LLaVA, lmms-eval
vizwiz     normalised, other apostrophes    as they are      the VizWiz scorer
========== ================================ ================ ============================
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, cast

Normaliser = Callable[[str], str]

NUMBER_WORDS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
)
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(NUMBER_WORDS)}
_ARTICLES = frozenset(("a", "an", "the"))
# Marks that are deleted or become a space; see _punctuation.
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_ANY_MARK = re.compile(f"[{re.escape(_MARKS)}]")
_DIGIT_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_PERIOD_NOT_IN_NUMBER = re.compile(r"(?<!\d)\.(?!\d)")
_MOST_PERIODS = 32  # re.UNICODE, given to the official code's re.sub where the count belongs
_CACHED = 1 << 18

# Words that are written with apostrophes; the table maps each spelling that lacks exactly one.
_APOSTROPHES = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_STRAIGHT_IN_VIZWIZ = "ain't aren't can't could've couldn't we've where's who've"


def _contractions(words: str) -> dict[str, str]:
    table = {
        word[:place] + word[place + 1 :]: word
        for word in words.split()
        for place, sign in enumerate(word)
        if sign in "'’"
    }
    return table | {"somebody'd": "somebodyd"}  # the wrong way round in every scorer


def _vizwiz_contractions() -> dict[str, str]:
    """The same words with typographic apostrophes, but for some."""
    straight = _STRAIGHT_IN_VIZWIZ.split()
    curly = (w if w in straight else w.replace("'", "’") for w in _APOSTROPHES.split())
    table = _contractions(" ".join(curly))
    del table["somebody'd"], table["couldn’tve"], table["hadn’tve"]
    odd = {"couldn'tve": "couldn’t’ve", "hadn'tve": "hadn’t’ve", "somebody’d": "somebodyd"}
    return table | odd


CONTRACTIONS = _contractions(_APOSTROPHES)
"""What each spelling without one of its apostrophes becomes."""
_VIZWIZ_CONTRACTIONS = _vizwiz_contractions()


def _punctuation(text: str, period: re.Pattern[str]) -> str:
    """Marks out, as the official code does it: what it asks of ``text`` it does to a copy.

    A mark is deleted where it touches a space anywhere, or where the text has a comma between
    digits; otherwise it becomes a space.
    """
    if _ANY_MARK.search(text):
        delete = _DIGIT_COMMA.search(text) is not None
        edited = text
        for mark in _MARKS:
            if mark in text:
                touches = delete or mark + " " in text or " " + mark in text
                edited = edited.replace(mark, "" if touches else " ")
        text = edited
    return period.sub("", text, count=_MOST_PERIODS) if "." in text else text


def _words(text: str, contractions: Mapping[str, str]) -> str:
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join([contractions.get(word, word) for word in words if word not in _ARTICLES])


def _clean(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _normalise(text: str, period: re.Pattern[str], contractions: Mapping[str, str]) -> str:
    if text.isalnum():  # most answers: a word without marks or spaces
        return _words(text, contractions)
    return _words(_punctuation(_clean(text), period), contractions)


def _normalise_textvqa(text: str) -> str:
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _normalise(text, _PERIOD, CONTRACTIONS)


def _cached(normalise: Normaliser) -> Normaliser:
    return lru_cache(maxsize=_CACHED)(normalise)  # answers repeat, and few are longer than a word


NORMALISERS: dict[str, Normaliser] = {
    "vqa": _cached(partial(_normalise, period=_PERIOD, contractions=CONTRACTIONS)),
    "vqa_always": _cached(
        partial(_normalise, period=_PERIOD_NOT_IN_NUMBER, contractions=CONTRACTIONS)
    ),
    "textvqa": _cached(_normalise_textvqa),
    "vizwiz": _cached(partial(_normalise, period=_PERIOD, contractions=_VIZWIZ_CONTRACTIONS)),
}
"""What each rule makes of an answer before it compares; also what its submissions expect."""

RULES = tuple(NORMALISERS)


def vqa_accuracy(
    prediction: str, answers: Sequence[str] | Sequence[Mapping[str, Any]], rule: str = "vqa"
) -> float:
    """Score one answer against its references.

    Args:
        prediction: what the model said.
        answers: the annotators' answers, as strings; or as the data set's objects with ``answer``.
            Objects without an ``answer_id`` are told apart by the official code by their content
            alone, so that six agreeing ones of ten score 0.4: give strings unless you want that.
        rule: one of :data:`RULES`.

    Returns:
        0 to 1.

    Raises:
        ValueError: unknown rule, no answers, or not ten of them for ``textvqa``.
    """
    if rule not in NORMALISERS:
        raise ValueError(f"VQA accuracy knows the rules {', '.join(RULES)}; not {rule!r}")
    if not answers:
        raise ValueError("VQA accuracy needs the annotators' answers")
    if rule == "textvqa" and len(answers) != 10:
        raise ValueError(f"TextVQA accuracy needs ten answers, not {len(answers)}")
    if isinstance(answers[0], str):
        said, true = _compared(prediction, cast("list[str]", answers), rule)
        return _left_one_out(true.count(said), len(true))
    objects = cast("list[Mapping[str, Any]]", answers)
    said, true = _compared(prediction, [str(a["answer"]) for a in objects], rule)
    if rule == "vqa":
        return _official_objects(said, true, objects)
    return _left_one_out(true.count(said), len(true))


def _compared(prediction: str, answers: list[str], rule: str) -> tuple[str, list[str]]:
    """Prediction and references as a rule compares them."""
    normalise = NORMALISERS[rule]
    if rule == "vizwiz":
        return normalise(prediction), [_clean(a) for a in answers]
    if rule == "vqa" and answers.count(answers[0]) == len(answers):
        return _clean(prediction), [_clean(answers[0])] * len(answers)
    true = [normalise(a) for a in answers]
    if rule == "vqa" and true.count(true[0]) == len(true):
        cleaned = [_clean(a) for a in answers]  # they may differ in no more than outer spaces
        if cleaned.count(cleaned[0]) == len(cleaned):
            return _clean(prediction), cleaned
    return normalise(prediction), true


def _left_one_out(matches: int, answers: int) -> float:
    if matches > 3:
        return 1.0
    return (matches * (matches - 1) + (answers - matches) * matches) / (3 * answers)


def _official_objects(said: str, true: list[str], objects: Sequence[Mapping[str, Any]]) -> float:
    """Leaves out, for each object, all that are equal to it; see :func:`vqa_accuracy`."""
    seen = [
        tuple(sorted((key, repr(value)) for key, value in {**o, "answer": a}.items()))
        for o, a in zip(objects, true, strict=True)
    ]
    times, matches = Counter(seen), true.count(said)
    left = (matches - times[s] if a == said else matches for s, a in zip(seen, true, strict=True))
    return sum(min(1.0, others / 3) for others in left) / len(true)
