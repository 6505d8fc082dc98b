"""The report's sentences, shared by the page and the Markdown file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    """What the numbers say, in one or two sentences."""
    goals = report["goals"]
    if not goals["of"]:
        return "No closed-set question was asked."
    parts = [
        f"{_part(goals['above_majority'], goals['of'])} modalities answer their questions at "
        "least 20 points better than always naming the commonest answer"
    ]
    if goals["with_reference"]:
        reached = _part(goals["at_reference"], goals["with_reference"]).lower()
        parts.append(f"{reached} reach the classical reference")
    text = "; ".join(parts) + "."
    if goals["with_control"]:
        near = _part(goals["control_near_majority"], goals["with_control"]).lower()
        text += (
            " Shown another sample's medium instead, the model comes within 6 points of that "
            f"majority rate for {near}."
        )
    return text


def _part(number: int, of: int) -> str:
    """``All eight``, ``Seven of eight``, ``None of eight``."""
    if number == of:
        return f"All {count(of)}" if of > 1 else "All"
    return f"{count(number).capitalize() if number else 'None'} of {count(of)}"


READING = (
    (
        "exact match",
        "share of test questions whose answer is the true one, letter for letter but for case, "
        "spaces and final punctuation; with its 95 % Wilson interval",
    ),
    ("majority", "what always naming the commonest test answer would score"),
    (
        "shuffled media",
        "the same questions, each with the medium of another sample: what is left when the model "
        "cannot use what it is shown. Even a perfect model keeps the chance that two samples "
        "share an answer, which is at most about the majority rate",
    ),
    (
        "classical reference",
        "a small classical model on hand-made features, trained on the same samples",
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
