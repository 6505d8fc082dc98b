"""Scorers of short free answers: VQA in four ways, GQA, MSVD-QA, Clotho-AQA, MUSIC-AVQA."""

from __future__ import annotations

from collections.abc import Sequence

from onellm.errors import BadInput, ConfigError
from onellm.eval.closed_set import exact_match, normalise
from onellm.eval.metrics import answers, gqa, vqa
from onellm.eval.scorers.accuracy import accuracy, by_group, meta_of, percent, target_of
from onellm.eval.scorers.registry import Records, Score, scorer
from onellm.spelling import did_you_mean


@scorer(*vqa.RULES)
def vqa_accuracy(records: Records, name: str) -> Score:
    """VQA accuracy, by the rule that the scorer is named after.

    See :mod:`onellm.eval.metrics.vqa` for how ``vqa``, ``vqa_always``, ``textvqa`` and ``vizwiz``
    differ.

    Target: the annotators' answers, a list of strings (or of the data set's objects; or an object
    with either under ``answers``).

    Metrics: ``accuracy``; by ``meta.answer_type`` and ``meta.question_type`` where there are such.
    """
    samples, parsed = [], []
    for record in records:
        target = target_of(record, (list, dict), "the annotators' answers")
        true = target["answers"] if isinstance(target, dict) else target
        try:
            samples.append(vqa.vqa_accuracy(record["answer"], true, name))
        except ValueError as error:
            where = f"record {record.get('id')}"
            raise BadInput(where, expected=f"answers for {name}", found=str(error)) from error
        parsed.append(vqa.NORMALISERS[name](record["answer"]))
    return accuracy(records, samples, parsed, groups=("answer_type", "question_type"))


@scorer("gqa")
def gqa_accuracy(records: Records, clean_up: str = "llava") -> Score:
    """GQA: equality with the one true answer.

    Target: a string.

    Options: ``clean_up``: ``llava`` (lower case, no final full stops), ``lmms`` (lower case, no
    punctuation) or ``official`` (none).

    Metrics: ``accuracy``; ``binary`` and ``open`` by ``meta.structural``; by structural and
    semantic type.

    Raises:
        ConfigError: unknown clean-up.
    """
    if clean_up not in gqa.CLEAN_UPS:
        hint = did_you_mean(clean_up, gqa.CLEAN_UPS)
        raise ConfigError(f"GQA has no clean-up {clean_up!r}.{hint}")
    said = gqa.CLEAN_UPS[clean_up][0]
    samples = [
        float(gqa.gqa_equal(r["answer"], target_of(r, str, "an answer"), clean_up)) for r in records
    ]
    parsed = [said(record["answer"]) for record in records]
    kinds = [record.get("meta", {}).get("structural") for record in records]
    others = {}
    for metric, is_open in (("binary", False), ("open", True)):
        part = [
            s
            for s, kind in zip(samples, kinds, strict=True)
            if kind and (kind == "query") == is_open
        ]
        if part:
            others[metric] = percent(part)
    return accuracy(records, samples, parsed, others=others, groups=("structural", "semantic"))


@scorer("exact")
def exact(records: Records, groups: Sequence[str] = ()) -> Score:
    """Equal but for case, spaces and final punctuation; an empty answer never is.

    Target: a string.

    Options: ``groups``: keys of ``meta`` to break down by.

    Metrics: ``accuracy``.
    """
    samples = [float(exact_match(r["answer"], target_of(r, str, "an answer"))) for r in records]
    parsed = [normalise(record["answer"]) or None for record in records]
    return accuracy(records, samples, parsed, groups=groups)


@scorer("msvd")
def msvd(records: Records) -> Score:
    """MSVD-QA: equality, beside the published script's containment.

    Target: a string.

    Metrics: ``exact``; ``onellm_contains``, which counts every empty answer as right; by
    ``meta.type``.
    """
    truth = [target_of(record, str, "an answer") for record in records]
    pairs = [(r["answer"], true) for r, true in zip(records, truth, strict=True)]
    samples = [float(answers.msvd_exact(*pair)) for pair in pairs]
    contained = [float(answers.msvd_contains(*pair)) for pair in pairs]
    parsed = [record["answer"].lower().strip() or None for record in records]
    others = {"onellm_contains": percent(contained)}
    return accuracy(records, samples, parsed, metric="exact", others=others, groups=("type",))


@scorer("clotho_aqa")
def clotho_aqa(records: Records) -> Score:
    """Clotho-AQA: the three annotators' answers, in four ways.

    Target: a list of their answers.

    Metrics: ``majority`` over questions where at least two agree, ``any``, ``unanimous`` over
    questions where all agree, ``row``; each also by ``meta.kind``. The group ``questions`` has the
    number of questions behind the first and the third.
    """
    kinds = ("majority", "any", "unanimous", "row")
    found = [
        answers.clotho_aqa(r["answer"], target_of(r, list, "the annotators' answers"))
        for r in records
    ]
    by_kind = {kind: [each[kind] for each in found] for kind in kinds}
    means = {kind: percent([v for v in by_kind[kind] if v is not None]) for kind in kinds}
    parsed = [record["answer"].lower().strip() or None for record in records]
    result = accuracy(records, by_kind["majority"], parsed, metric="majority", others=means)
    for kind in kinds:
        name = "kind" if kind == "majority" else f"kind, {kind}"
        if groups := by_group(records, by_kind[kind], "kind"):
            result.groups[name] = groups
    result.groups["questions"] = {
        kind: float(sum(v is not None for v in by_kind[kind])) for kind in ("majority", "unanimous")
    }
    return result


@scorer("music_avqa")
def music_avqa(records: Records) -> Score:
    """MUSIC-AVQA: equality once both sides are spelt as the vocabulary has it.

    Target: a string. ``meta.type``: a list of two, what is asked about and the kind of question.

    Metrics: ``accuracy``; the nine types, and what is asked about.
    """
    samples = [
        float(answers.music_avqa(r["answer"], target_of(r, str, "an answer"))) for r in records
    ]
    parsed = [answers.music_avqa_word(record["answer"]) or None for record in records]
    cells = [
        {"meta": {"type": " ".join(meta_of(r, "type")), "about": meta_of(r, "type")[0]}}
        for r in records
    ]
    result = accuracy(records, samples, parsed)
    result.groups["type"] = by_group(cells, samples, "type")
    result.groups["about"] = by_group(cells, samples, "about")
    return result
