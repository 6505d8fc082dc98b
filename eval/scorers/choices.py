"""Scorers of multiple choice, by letter or likelihood: ScienceQA, NExT-QA, SEED, MMBench."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from onellm.errors import BadInput
from onellm.eval.metrics.choice import Parser, letters, likeliest, parser_named
from onellm.eval.metrics.intervals import mean_interval
from onellm.eval.metrics.mmbench import MATCHERS, circular
from onellm.eval.scorers.accuracy import accuracy, by_group, meta_of, percent, target_of
from onellm.eval.scorers.registry import Record, Records, Score, scorer


def _read(records: Records, parser: str, reduction: str) -> tuple[list[float], list[str | None]]:
    """Hits and letters: from likelihoods where a record has them, otherwise from its text."""
    parse = parser_named(parser, MATCHERS)
    parsed = [_letter(record, parse, reduction) for record in records]
    truth = [target_of(record, str, "the right option's letter") for record in records]
    return [float(p == t) for p, t in zip(parsed, truth, strict=True)], parsed


def _letter(record: Record, parse: Parser, reduction: str) -> str | None:
    options = record.get("options")
    if not options:
        where = f"record {record.get('id')}"
        raise BadInput(where, expected="the texts of its options", found="none")
    if chances := record.get("choice_logprobs"):
        if len(chances) != len(options):
            where, found = f"record {record.get('id')}", f"{len(chances)} of them"
            raise BadInput(where, expected=f"likelihoods of {len(options)} options", found=found)
        if any(math.isnan(chance[reduction]) for chance in chances):
            where = f"record {record.get('id')}"
            raise BadInput(where, expected="likelihoods", found="one that is no number")
        return letters(options)[likeliest(chances, reduction)]
    return parse(record["answer"], options)


def _how(records: Records, parser: str, reduction: str) -> tuple[str, ...]:
    asked = sum(bool(record.get("choice_logprobs")) for record in records)
    if asked == len(records):
        return (f"Options ranked by likelihood, {reduction} over tokens.",)
    mixed = (f"{asked} of {len(records)} by likelihood.",) if asked else ()
    return (f"Letters read by the rule '{parser}'.", *mixed)


@scorer("multiple_choice")
def multiple_choice(
    records: Records,
    parser: str = "plain",
    groups: Sequence[str] = (),
    reduction: str = "mean",
) -> Score:
    """Multiple choice.

    Target: the right option's letter. ``options``: the texts, in order.

    Options: ``parser``: how a letter is read (``plain``, ``exact``, ``first_letter``, ``llava``,
    ``scienceqa_lmms``, ``nextqa_lmms``, ``vlmevalkit``, ``lmms_mmbench``; none of them draws a
    random letter); ``groups``: keys of ``meta`` to break down by; ``reduction``: ``mean`` or
    ``sum`` over an option's tokens, where a record has likelihoods, which go before its text.

    Metrics: ``accuracy``.
    """
    hits, parsed = _read(records, parser, reduction)
    return accuracy(records, hits, parsed, groups=groups, notes=_how(records, parser, reduction))


@scorer("scienceqa")
def scienceqa(records: Records, parser: str = "llava", reduction: str = "mean") -> Score:
    """ScienceQA, read as LLaVA reads it unless told otherwise.

    Target: the right option's letter. ``options``: the texts. ``meta.has_image``.

    Options: as ``multiple_choice``.

    Metrics: ``accuracy``; ``image_accuracy`` over problems with a picture, which is what most
    tables print; by ``meta.subject`` and ``meta.grade``.
    """
    hits, parsed = _read(records, parser, reduction)
    pictured = [h for r, h in zip(records, hits, strict=True) if meta_of(r, "has_image")]
    others = {"image_accuracy": percent(pictured)} if pictured else {}
    result = accuracy(
        records,
        hits,
        parsed,
        others=others,
        groups=("subject", "grade"),
        notes=_how(records, parser, reduction),
    )
    if pictured:
        low, high = mean_interval(pictured)
        result.intervals["image_accuracy"] = (100 * low, 100 * high)
    return result


_NEXTQA = {"C": "causal", "T": "temporal", "D": "descriptive"}


@scorer("nextqa")
def nextqa(records: Records, parser: str = "plain", reduction: str = "mean") -> Score:
    """NExT-QA, multiple choice.

    Target: the right option's letter. ``options``: five texts. ``meta.type``: CW, CH, TN, TC, TP,
    DC, DL or DO; TP is counted with TN, as the official script does.

    Options: as ``multiple_choice``.

    Metrics: ``accuracy``; ``causal``, ``temporal``, ``descriptive`` over their questions; by type.
    """
    hits, parsed = _read(records, parser, reduction)
    types = [str(meta_of(record, "type")).replace("TP", "TN") for record in records]
    typed = [{"meta": {"type": t, "part": _NEXTQA.get(t[:1])}} for t in types]
    parts = by_group(typed, hits, "part")
    others = {name: parts[name] for name in _NEXTQA.values() if name in parts}
    result = accuracy(records, hits, parsed, others=others, notes=_how(records, parser, reduction))
    result.groups["type"] = by_group(typed, hits, "type")
    return result


@scorer("seed")
def seed(records: Records, parser: str = "exact", reduction: str = "mean") -> Score:
    """SEED-Bench: by likelihood where the records have it (the official rule), otherwise by letter.

    Target: the right option's letter. ``options``: four texts. ``meta.dimension``,
    ``meta.data_type``.

    Options: as ``multiple_choice``; ``exact`` is LLaVA's reading, ``first_letter`` lmms-eval's.

    Metrics: ``accuracy`` over questions; ``dimension_mean`` over dimensions; by dimension and by
    kind of data.
    """
    hits, parsed = _read(records, parser, reduction)
    dimensions = by_group(records, hits, "dimension")
    others = {"dimension_mean": sum(dimensions.values()) / len(dimensions)} if dimensions else {}
    return accuracy(
        records,
        hits,
        parsed,
        others=others,
        groups=("data_type", "dimension"),
        notes=_how(records, parser, reduction),
    )


@scorer("mmbench")
def mmbench(records: Records, parser: str = "vlmevalkit", reduction: str = "mean") -> Score:
    """MMBench with circular evaluation.

    Target: the right option's letter. ``options``: the texts in this pass's order. ``meta.group``:
    the question; ``meta.pass``: 0, 1, …

    Options: as ``multiple_choice``.

    Metrics: ``circular`` (right in every pass), which is left out where there is one pass only;
    ``vanilla`` (first pass); by ``meta.category`` and ``meta.ability``.

    Raises:
        BadInput: a question that lacks a pass.
    """
    hits, parsed = _read(records, parser, reduction)
    passes = _passes(records)
    firsts = [places[0] for places in passes.values()]

    def over_questions(metric: str, right: Sequence[float]) -> Score:
        questions = [records[place] for place in firsts]
        letter = [parsed[place] for place in firsts]
        return accuracy(questions, right, letter, metric=metric, groups=("category", "ability"))

    first = over_questions("vanilla", [hits[place] for place in firsts])
    metrics, groups, intervals = first.metrics, first.groups, first.intervals
    if len(passes) < len(records):
        each = ((str(meta_of(r, "group")), bool(h)) for r, h in zip(records, hits, strict=True))
        whole = circular(each)
        every = over_questions("circular", [float(whole[question]) for question in passes])
        metrics, intervals = every.metrics | metrics, every.intervals | intervals
        groups = every.groups | {f"{key}, vanilla": value for key, value in groups.items()}
    base = accuracy(records, hits, parsed, notes=_how(records, parser, reduction))
    primary = next(iter(metrics))
    return replace(base, metrics=metrics, primary=primary, groups=groups, intervals=intervals)


def _passes(records: Records) -> dict[str, dict[int, int]]:
    """Place of each pass's record, by question: as many as options, or the first of each only."""
    passes: dict[str, dict[int, int]] = defaultdict(dict)
    for place, record in enumerate(records):
        passes[str(meta_of(record, "group"))][int(meta_of(record, "pass"))] = place
    several = max(len(places) for places in passes.values()) > 1
    for question, places in passes.items():
        options = records[next(iter(places.values()))]["options"]
        wanted = len(options) if several else 1
        if sorted(places) != list(range(wanted)):
            found = f"passes {', '.join(map(str, sorted(places)))}"
            raise BadInput(f"MMBench question {question}", expected=f"{wanted} passes", found=found)
    return passes
