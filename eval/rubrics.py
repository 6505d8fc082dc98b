"""How a judge is asked, and how its reply is read: MM-Vet's grades, Objaverse's T or F.

The words of the prompts are ours, in the form that the benchmarks describe. Grades depend on the
words as on the judge: for numbers that compare with published ones give the official prompt as a
file (:func:`load_rubric`), and name judge and prompt hash with every number.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onellm.errors import BadInput, ConfigError
from onellm.eval.metrics.mmvet import read_grade
from onellm.eval.metrics.objects import read_verdict
from onellm.spelling import did_you_mean


@dataclass(frozen=True)
class Rubric:
    """A way to have answers graded.

    Args:
        name: of the rubric.
        template: the prompt, with ``{question}``, ``{truth}`` and ``{answer}``.
        read: a reply's grade from 0 to 1, None where it has none.
        temperature: of the first try.
        warmer: added with every further try.
        tries: prompts per grade at most; without a grade from any, the answer is ungraded.
        insist: put behind the prompt from the second try on.
        max_tokens: of a reply.
    """

    name: str
    template: str
    read: Callable[[str], float | None]
    temperature: float = 0.0
    warmer: float = 0.5
    tries: int = 5
    insist: str = ""
    max_tokens: int = 3

    @property
    def hash(self) -> str:
        """Of everything a grade depends on but the judge: 16 hexadecimal digits."""
        settings = [self.template, self.insist, self.temperature, self.warmer]
        text = json.dumps([*settings, self.tries, self.max_tokens], ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def fill(self, record: Mapping[str, Any]) -> str:
        """The prompt about a record."""
        target = record.get("target")
        truth = target[0] if isinstance(target, list) and target else str(target)
        values = {
            "question": str(record.get("meta", {}).get("question", record.get("prompt", ""))),
            "truth": str(truth).replace("<AND>", " <AND> ").replace("<OR>", " <OR> "),
            "answer": record["answer"],
        }
        # Not str.format: an official prompt may hold braces of its own. One pass, so that an
        # answer that says "{truth}" is not filled in.
        return _SLOT.sub(lambda slot: values[slot[1]], self.template)


_SLOT = re.compile(r"\{(question|truth|answer)\}")

_MMVET = """\
Grade a model's answer to a question about a picture by the expected answer. Where parts of the
expected answer are joined by <AND>, the grade is the share of them that the model's answer has;
where they are joined by <OR>, one of them is enough. The grade is a number from 0.0 (wholly wrong)
to 1.0 (wholly right), in steps of 0.1. Complete the last line of the table, with the grade alone.

question | expected answer | model's answer | grade
--- | --- | --- | ---
How many birds are on the fence? | 3 | There are three birds on it. | 1.0
How many birds are on the fence? | 3 | Two birds sit there. | 0.0
What do the signs say? | stop <AND> no parking | One of them says "stop". | 0.5
What do the signs say? | stop <AND> no parking | "Stop" and "no parking". | 1.0
What is this animal? | otter <OR> sea otter | It looks like an otter. | 1.0
Why are they laughing? | A man slipped on the wet floor and dropped his cake. | A man fell. | 0.4
{question} | {truth} | {answer} |"""

_OBJECTS = """\
Do these two sentences name the same kind of object? What counts is the object, not its colour,
material or details. Reply with T if they do and with F if they do not, and then say why in a few
words.

First: a small wooden chair with a red cushion
Second: This is a 3D model of an armchair.
T: both are chairs

First: a wheel of a car
Second: a silver sports car
F: one is a part of the other

First: {truth}
Second: {answer}
"""


def _verdict(reply: str) -> float | None:
    verdict = read_verdict(reply)
    return None if verdict is None else float(verdict)


RUBRICS = {
    "mmvet": Rubric(
        "mmvet",
        _MMVET,
        read_grade,
        insist="\nReply with a number from 0.0 to 1.0 and nothing else.\n",
    ),
    "objects": Rubric(
        "objects", _OBJECTS, _verdict, temperature=1.0, warmer=0.0, tries=1, max_tokens=20
    ),
}
"""The rubrics by name."""


def load_rubric(name: str, prompt: str | Path | None = None) -> Rubric:
    """A rubric, with another prompt if one is given.

    Args:
        name: one of :data:`RUBRICS`.
        prompt: a text file with ``{truth}`` and ``{answer}``, and ``{question}`` where it matters.

    Raises:
        ConfigError: unknown name.
        BadInput: no such file, or one without ``{truth}`` or ``{answer}``.
    """
    if name not in RUBRICS:
        raise ConfigError(f"unknown rubric {name!r}.{did_you_mean(name, RUBRICS)}")
    if prompt is None:
        return RUBRICS[name]
    file = Path(prompt)
    if not file.is_file():
        raise BadInput(file, expected="a judge's prompt", found="no such file")
    template = file.read_text(encoding="utf-8")
    for slot in ("{truth}", "{answer}"):
        if slot not in template:
            raise BadInput(file, expected=f"a prompt with {slot}", found="none")
    return replace(RUBRICS[name], template=template)
