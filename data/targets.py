"""What text a sample is trained on: caption, label or one of its questions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

from onellm.data.sample import Sample
from onellm.errors import BadInput, ConfigError

Target = Literal["caption", "label", "answer", "describe", "closed", "yes_no", "qa"]
"""``caption``: the text (``text`` or ``caption``) alone, to align with. ``label``: the class alone.
``answer``: the answer to the first question, alone. ``describe``: the modality's caption prompt,
answered by the text.
``closed``: the first question. ``yes_no``: the second question. ``qa``: every question, each an
example of its own, so that no answer can be read off another one."""

Turns = tuple[tuple[str, str], ...]


def turns_for(sample: Sample, target: str, caption_prompt: str = "") -> list[Turns]:
    """The turns that a sample has for a target: none, or one for each of its examples.

    Args:
        sample: its ``meta`` is read.
        target: a name of :data:`Target`.
        caption_prompt: the question that ``describe`` asks.

    Raises:
        ConfigError: unknown target.
        BadInput: the sample's ``text``, ``label`` or ``qa`` has the wrong type.
    """
    if target not in get_args(Target):
        raise ConfigError(f"unknown target {target!r}: expected one of {', '.join(_TURNS)}")
    return _TURNS[target](sample, caption_prompt)


def examples(samples: Iterable[Sample], target: str, caption_prompt: str = "") -> list[Sample]:
    """Samples with their turns set for a target; those that lack it are left out.

    Args:
        samples: what :func:`onellm.data.shards.read_shard` returned.
        target: a name of :data:`Target`.
        caption_prompt: the question that ``describe`` asks.

    Raises:
        ConfigError: unknown target.
        BadInput: a sample whose ``text``, ``label`` or ``qa`` has the wrong type.
    """
    return [
        retold(sample, target, turns)
        for sample in samples
        for turns in turns_for(sample, target, caption_prompt)
    ]


def retold(sample: Sample, target: str, turns: Turns) -> Sample:
    """A sample with the turns of a target; other captions stand in for captions alone."""
    captions = sample.captions if target in ("caption", "describe") else ()
    return dataclasses.replace(sample, turns=turns, captions=captions)


def _alone(*keys: str) -> Callable[[Sample, str], list[Turns]]:
    def turns(sample: Sample, prompt: str) -> list[Turns]:
        text = _text(sample, *keys)
        return [(("assistant", text),)] if text else []

    return turns


def _describe(sample: Sample, prompt: str) -> list[Turns]:
    text = _text(sample, "text", "caption")
    return [(("user", prompt), ("assistant", text))] if text else []


def _question(which: slice) -> Callable[[Sample, str], list[Turns]]:
    def turns(sample: Sample, prompt: str) -> list[Turns]:
        pairs = sample.meta.get("qa") or []
        if not isinstance(pairs, list):
            raise BadInput(sample.id, expected="a list under 'qa'", found=type(pairs).__name__)
        return [_pair(sample, pair) for pair in pairs[which]]

    return turns


def _pair(sample: Sample, pair: Any) -> Turns:
    question = pair.get("question") if isinstance(pair, dict) else None
    answer = pair.get("answer") if isinstance(pair, dict) else None
    if not (isinstance(question, str) and isinstance(answer, str)):
        raise BadInput(sample.id, expected="'question' and 'answer' as text", found=repr(pair))
    return (("user", question), ("assistant", answer))


def _text(sample: Sample, *keys: str) -> str:
    key = next((key for key in keys if sample.meta.get(key)), keys[0])
    text = sample.meta.get(key) or ""
    if isinstance(text, list):  # of captions, of which the others are the sample's
        text = text[0]
    if not isinstance(text, str):
        raise BadInput(sample.id, expected=f"text under {key!r}", found=type(text).__name__)
    return text


_TURNS: dict[str, Callable[[Sample, str], list[Turns]]] = {
    "caption": _alone("text", "caption"),
    "label": _alone("label"),
    "answer": lambda sample, prompt: [
        turns[1:] for turns in _question(slice(0, 1))(sample, prompt)
    ],
    "describe": _describe,
    "closed": _question(slice(0, 1)),
    "yes_no": _question(slice(1, 2)),
    "qa": _question(slice(None)),
}
