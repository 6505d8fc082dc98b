"""From files of answers to the report's numbers; needs neither the model nor torch."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onellm.config import StrictModel, load_config
from onellm.eval.answers import Record, read_answers
from onellm.eval.closed_set import exact_match, normalise, score
from onellm.eval.machine import environment
from onellm.eval.metrics.cider import cider
from onellm.eval.metrics.ptb import tokenize
from onellm.eval.starter import CAPTION, CLOSED, SECOND, SHUFFLED

MARGIN, NEAR = 0.20, 0.06
"""Goals: this much above the majority rate, and the control no further from it than that."""

TINY = 1e-9
"""Whole points of a rate are not exact in binary: 0.7 - 0.5 is a little less than 0.2."""


class Reference(StrictModel):
    """What a classical model reaches on a modality's first questions.

    Attributes:
        accuracy: share of right answers.
        n: test items it was measured on.
        model: what it was.
    """

    accuracy: float
    n: int
    model: str


class References(StrictModel):
    """Schema of ``references.yaml``.

    Attributes:
        source: where the numbers come from.
        modalities: by modality name.
    """

    source: str
    modalities: dict[str, Reference]


def starter_references() -> dict[str, Reference]:
    """Classical accuracies on the packaged starter data; they mean nothing for other data."""
    return load_config(References, Path(__file__).parent / "references.yaml").modalities


def summarize(
    answers: str | Path | Iterable[str | Path],
    *,
    seconds: Mapping[str, float],
    seed: int,
    preset: str,
    references: Mapping[str, Reference] | None = None,
    samples: int = 10,
) -> dict[str, Any]:
    """Build the report's numbers from files of answers.

    Args:
        answers: one or more files of answers.
        seconds: wall time by phase, in order.
        seed: of the run; also picks the sample answers, at random and not by how good they are.
        preset: name of the run's sizes.
        references: classical accuracies by modality; those of the packaged starter data if left
            out, so pass ``{}`` for other data.
        samples: sample answers per modality.

    Returns:
        plain data: ``modalities.<name>.{n, exact_match, interval, majority, reference, shuffled,
        cider, …}`` (None for what was not measured), ``goals``, ``seconds``, ``total_seconds``,
        ``seed``, ``preset``, ``commit``, ``versions``, ``machine``.

    Raises:
        BadInput: a file of answers that cannot be read or has two answers to one question.
    """
    paths = [answers] if isinstance(answers, str | Path) else list(answers)
    records = [record for path in paths for record in read_answers(path)]
    known = starter_references() if references is None else references
    modalities = {
        name: _modality(
            [r for r in records if r["meta"]["modality"] == name],
            known.get(name),
            f"{seed}/{name}",
            samples,
        )
        for name in dict.fromkeys(r["meta"]["modality"] for r in records)
    }
    return {
        "modalities": modalities,
        "goals": goals(modalities),
        "seconds": {phase: round(value, 1) for phase, value in seconds.items()},
        "total_seconds": round(sum(seconds.values()), 1),
        "seed": seed,
        "preset": preset,
        **environment(),
    }


def _modality(
    records: Sequence[Record], reference: Reference | None, seed: str, samples: int
) -> dict[str, Any]:
    by_task: dict[str, list[Record]] = {}
    for record in records:
        by_task.setdefault(record["task"], []).append(record)
    closed, captions = by_task.get(CLOSED, []), by_task.get(CAPTION, [])
    result: dict[str, Any] = dict.fromkeys(_CLOSED_KEYS) | {"n": 0, "per_class": []}
    if closed:
        result |= score(_pairs(closed))
    return result | {
        "reference": reference.accuracy if reference else None,
        "shuffled": _accuracy(by_task.get(SHUFFLED, [])),
        "shuffled_n": len(by_task.get(SHUFFLED, [])),
        "cider": caption_score(captions),
        "captions": len(captions),
        **_second(by_task.get(SECOND, [])),
        "seconds_per_answer": sum(r.get("seconds", 0.0) for r in records) / max(1, len(records)),
        "samples": _samples(closed or captions, captions, seed, samples),
    }


_CLOSED_KEYS = ("exact_match", "interval", "majority", "majority_answer", "off_list")


def _pairs(records: Iterable[Record]) -> list[tuple[str, str]]:
    return [(r["answer"], r["target"]) for r in records]


def _accuracy(records: Sequence[Record]) -> float | None:
    if not records:
        return None
    return sum(exact_match(a, r) for a, r in _pairs(records)) / len(records)


def _second(records: Sequence[Record]) -> dict[str, Any]:
    """Second questions: those to be answered yes or no, and open ones."""
    polar = [r for r in records if normalise(r["target"]) in ("yes", "no")]
    rest = [r for r in records if r not in polar]
    return {
        "yes_no": _accuracy(polar),
        "yes_no_n": len(polar),
        "yes_no_majority": score(_pairs(polar))["majority"] if polar else None,
        "second": _accuracy(rest),
        "second_n": len(rest),
        "second_majority": score(_pairs(rest))["majority"] if rest else None,
    }


def caption_score(records: Sequence[Record]) -> float | None:
    """Mean CIDEr (0 to 10) of caption records, None without any.

    Records of the same medium are references of one another's candidate.
    """
    if not records:
        return None
    candidates: dict[str, str] = {}
    references: dict[str, list[str]] = {}
    for record in records:
        key = str(record["media"])
        candidates[key] = tokenize(record["answer"])
        references.setdefault(key, []).append(tokenize(record["target"]))
    return cider(candidates, references)[0]


def _samples(
    shown: Sequence[Record], captions: Sequence[Record], seed: str, count: int
) -> list[dict[str, Any]]:
    """Sample answers: the question, and the caption of the same medium if there is one."""
    captioned = {r["meta"]["sample"]: r for r in captions}
    order = sorted(shown, key=lambda r: str(r["meta"]["sample"]))
    picked = random.Random(f"samples/{seed}").sample(order, min(count, len(order)))
    rows = []
    for record in picked:
        sample = record["meta"]["sample"]
        caption = captioned.get(sample, {})
        rows.append(
            {
                "id": sample,
                "question": record["prompt"],
                "answer": record["answer"],
                "reference": record["target"],
                "right": exact_match(record["answer"], record["target"]),
                "caption": caption.get("answer"),
                "caption_reference": caption.get("target"),
            }
        )
    return rows


def goals(modalities: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """How many modalities reach what a working model should.

    Args:
        modalities: numbers by modality.

    Returns:
        ``of`` modalities with closed questions: ``above_majority`` (by 20 points or more),
        ``control_near_majority`` (shuffled control within 6 points of it), ``at_reference``
        (at or above the classical reference), the last two among ``with_control`` and
        ``with_reference``.
    """
    rows = [m for m in modalities.values() if m["exact_match"] is not None]
    excess = control_excess(modalities)
    compared = [m for m in rows if m["reference"] is not None]
    return {
        "of": len(rows),
        "above_majority": sum(m["exact_match"] - m["majority"] >= MARGIN - TINY for m in rows),
        "with_control": len(excess),
        "control_near_majority": sum(abs(e) <= NEAR + TINY for e in excess),
        "with_reference": len(compared),
        "at_reference": sum(m["exact_match"] >= m["reference"] - TINY for m in compared),
    }


def control_excess(modalities: Mapping[str, Mapping[str, Any]]) -> list[float]:
    """How far each modality's shuffled control is above its majority rate.

    A rate far above would mean that questions give answers away. Below it, which a negative number
    tells, nothing is wrong: a model that looks at its medium names what the other sample is.

    Args:
        modalities: numbers by modality; those without a control are left out.
    """
    return [
        m["shuffled"] - m["majority"]
        for m in modalities.values()
        if m["shuffled"] is not None and m["majority"] is not None
    ]
