"""Scorers of what a judge grades, from its recorded grades; and the same without a judge.

The names differ on purpose: a string match is never printed as a judge's score.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, pstdev

from onellm.errors import BadInput
from onellm.eval.metrics.mmvet import by_capability, string_match
from onellm.eval.metrics.objects import head_noun, same_object
from onellm.eval.scorers.accuracy import accuracy, meta_of, target_of
from onellm.eval.scorers.registry import Record, Records, Score, scorer


@scorer("mmvet")
def mmvet(records: Records) -> Score:
    """MM-Vet with a judge's grades.

    ``grades``: per repeat a number from 0 to 1, or None where the judge gave none in all its
    tries, which counts as 0 (see :mod:`onellm.eval.judge`). ``meta.capability``: a list.

    Metrics: ``mmvet``, the mean times 100; ``repeat_std``, the standard deviation of the repeats'
    totals; by capability and by exact combination.
    """
    grades = [_grades(record) for record in records]
    repeats = min(len(each) for each in grades)
    totals = [100 * fmean(each[n] or 0.0 for each in grades) for n in range(repeats)]
    samples = [fmean(grade or 0.0 for grade in each) for each in grades]
    given = [[str(grade) for grade in each if grade is not None] for each in grades]
    parsed = [" ".join(texts) or None for texts in given]
    others = {"repeat_std": pstdev(totals)}
    notes = _judges(records)
    return _with_capabilities(
        records, accuracy(records, samples, parsed, metric="mmvet", others=others, notes=notes)
    )


@scorer("mmvet_string_match")
def mmvet_string_match(records: Records) -> Score:
    """MM-Vet without a judge: the share of the expected phrases that an answer has.

    Does not compare with MM-Vet's score.

    Target: a string with ``<AND>`` and ``<OR>``. ``meta.capability``: a list.

    Metrics: ``mmvet_string_match``; by capability and by exact combination.
    """
    samples = [string_match(r["answer"], target_of(r, str, "the expected text")) for r in records]
    parsed = [record["answer"].strip() or None for record in records]
    return _with_capabilities(
        records, accuracy(records, samples, parsed, metric="mmvet_string_match")
    )


def _with_capabilities(records: Records, result: Score) -> Score:
    pairs = zip(records, result.samples, strict=True)
    single, combined = by_capability((meta_of(r, "capability"), s or 0.0) for r, s in pairs)
    result.groups["capability"], result.groups["combination"] = single, combined
    return result


@scorer("object_judge")
def object_judge(records: Records) -> Score:
    """Whether a judge finds that the answer names the reference's object.

    ``grades``: per repeat 1 or 0, or None where its reply was neither T nor F.

    Metrics: ``judged``, over valid replies as PointLLM has it; ``judged_all``, where an invalid
    reply is a wrong answer.
    """
    grades = [_grades(record) for record in records]
    valid = [[grade for grade in each if grade is not None] for each in grades]
    samples: list[float | None] = [fmean(each) if each else None for each in valid]
    parsed = [" ".join("T" if g else "F" for g in each) or None for each in valid]
    replies = [grade for each in valid for grade in each]
    result = accuracy(records, samples, parsed, metric="judged", notes=_judges(records))
    judged = 100 * fmean(replies) if replies else 0.0
    asked = sum(map(len, grades))
    result.metrics.update(judged=judged, judged_all=100 * sum(replies) / asked)
    return result


@scorer("object_match")
def object_match(records: Records) -> Score:
    """Whether the answer has the reference's noun as a word, singular or plural.

    Does not compare with judged accuracies.

    Target: a sentence, or a list whose first it is.

    Metrics: ``object_match``.
    """
    samples, parsed = [], []
    for record in records:
        target = target_of(record, (list, str), "a sentence that names the object")
        truth = target if isinstance(target, str) else target[0]
        samples.append(float(same_object(record["answer"], truth)))
        parsed.append(head_noun(record["answer"]) or None)
    return accuracy(records, samples, parsed, metric="object_match")


def _judges(records: Records) -> tuple[str, ...]:
    """Who graded, and by which prompt: a number without them compares with nothing."""
    judges = sorted({str(r["graded_by"]) for r in records if r.get("graded_by")})
    return tuple(f"Graded by {judge}." for judge in judges)


def _grades(record: Record) -> Sequence[float | None]:
    grades = record.get("grades")
    if not isinstance(grades, list) or not grades:
        hint = "Run the judge first: onellm eval judge."
        where = f"record {record.get('id')}"
        raise BadInput(where, expected="a judge's grades", found="none", hint=hint)
    return grades
