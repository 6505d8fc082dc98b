"""The report's sentences, shared by the page and the Markdown file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onellm.eval.metrics.intervals import wilson
from onellm.eval.plots import percent
from onellm.eval.summary import NEAR, TINY, control_excess

_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def count(number: int) -> str:
    """A small number in words."""
    return _WORDS[number] if number < len(_WORDS) else str(number)


def title(report: Mapping[str, Any]) -> str:
    """The headline."""
    number = len(report["modalities"])
    if number == 1:
        return "One kind of signal, answered in words"
    return f"{count(number).capitalize()} kinds of signal, one language model"


def verdict(report: Mapping[str, Any]) -> str:
    """What the numbers say, in one to three sentences."""
    goals = report["goals"]
    if not goals["of"]:
        return "No closed-set question was asked."
    above = goals["above_majority"]
    text = (
        f"{_part(above, goals['of'])} modalities {_verb('answer', above)} their questions at "
        "least 20 points better than always naming the commonest answer would (the majority rate)"
    )
    if goals["with_reference"]:
        reached = goals["at_reference"]
        part = _part(reached, goals["with_reference"]).lower()
        text += f"; {part} {_verb('reach', reached)} the classical reference"
    sentences = [f"{text}.", _of_control(report), _of_second(report["modalities"])]
    return " ".join(sentence for sentence in sentences if sentence)


def _of_control(report: Mapping[str, Any]) -> str:
    """Above the majority rate would be a fault, below it is none: both are told."""
    excess = control_excess(report["modalities"])
    if not excess:
        return ""
    at_most = sum(e <= NEAR + TINY for e in excess)
    near = _part(report["goals"]["control_near_majority"], len(excess)).lower()
    return (
        "Shown another sample's medium instead, the model is right at most 6 points more often "
        f"than that rate for {_part(at_most, len(excess)).lower()}, and within 6 points of it on "
        f"either side for {near}."
    )


def better_seconds(modalities: Mapping[str, Mapping[str, Any]]) -> tuple[int, int]:
    """Modalities whose second questions are answered better than the majority rate, beyond chance.

    Args:
        modalities: numbers by modality.

    Returns:
        how many have the lower end of the 95 % Wilson interval above the rate, and of how many.
    """
    better, asked = 0, 0
    for m in modalities.values():
        for kind in ("yes_no", "second"):
            rate, n = m[kind], m[f"{kind}_n"]
            if rate is not None:
                asked += 1
                better += wilson(round(rate * n), n)[0] > m[f"{kind}_majority"]
    return better, asked


def _of_second(modalities: Mapping[str, Mapping[str, Any]]) -> str:
    better, asked = better_seconds(modalities)
    if not asked:
        return ""
    part = _part(better, asked).lower()
    return (
        "Second questions about the same media, mostly yes or no, are answered better than their "
        f"own majority rate, beyond chance, for {part}."
    )


def _part(number: int, of: int) -> str:
    """``All eight``, ``Seven of eight``, ``None of eight``."""
    if number == of:
        return f"All {count(of)}" if of > 1 else "All"
    return f"{count(number).capitalize() if number else 'None'} of {count(of)}"


def _verb(plural: str, number: int) -> str:
    """``One of eight reaches``, ``two of eight reach``."""
    if number != 1:
        return plural
    return plural + ("es" if plural.endswith("ch") else "s")


def second_scores(m: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Accuracies on a modality's second questions: the rate, and of which, with majority rate."""
    return [
        (percent(m[kind]), f"{name} (maj. {percent(m[f'{kind}_majority'])})")
        for kind, name in (("yes_no", "yes/no"), ("second", "open"))
        if m[kind] is not None
    ]


READING = (
    (
        "exact match",
        "share of test questions whose answer is the true one, letter for letter but for case, "
        "spaces and final punctuation; with its 95 % Wilson interval",
    ),
    ("majority", "what always naming the commonest test answer would score"),
    (
        "shuffled media",
        "the same questions, each with the medium of another sample. Much above the majority rate "
        "would mean that questions give their answers away. Below it nothing is wrong: a model "
        "that looks at what it is shown names that, and is right by chance only, when both samples "
        "have the same answer",
    ),
    (
        "classical reference",
        "a small classical model on hand-made features, trained on the same samples",
    ),
    (
        "2nd question",
        "another question about each sample that has one, to be answered yes or no (is this a "
        "chair?) or freely (open); maj. is what always giving the commonest of their answers "
        "would score",
    ),
    (
        "CIDEr",
        "agreement of the caption with the true one in rare words and phrases, 0 to 10; it "
        "depends on the captions of the other samples and does not compare across modalities",
    ),
)
"""Terms and what they mean."""


def samples_note(report: Mapping[str, Any]) -> str:
    """How the sample answers were chosen."""
    return f"Drawn at random with seed {report['seed']}, not chosen."


def made_with(report: Mapping[str, Any]) -> str:
    """Machine and versions."""
    machine = report["machine"]
    memory = f", {machine['memory_gb']} GB memory" if machine["memory_gb"] else ""
    versions = " · ".join(f"{name} {version}" for name, version in report["versions"].items())
    cores = f"{machine['cores']} cores{memory}"
    return f"{machine['processor']}, {cores}, {machine['system']} · {versions}"
