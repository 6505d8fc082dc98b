"""The scorer of captions: CIDEr, BLEU, ROUGE-L, and METEOR, SPICE and SPIDEr where Java is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from onellm.errors import BadInput, ConfigError
from onellm.eval.metrics import answers, java
from onellm.eval.metrics.intervals import bootstrap_interval
from onellm.eval.metrics.pointllm import sentence_scores
from onellm.eval.metrics.ptb import tokenize
from onellm.eval.metrics.rouge import rouge_l
from onellm.eval.scorers.accuracy import count_empty, percent, target_of
from onellm.eval.scorers.registry import Records, Score, scorer
from onellm.spelling import did_you_mean

Candidates = dict[str, str]
References = dict[str, list[str]]
Values = tuple[dict[str, float], dict[str, dict[str, float]]]
"""Of the corpus by metric, and for metrics that have them the items' by metric."""


@dataclass(frozen=True)
class _Captions:
    """Captions as they were written and as tokens, by item id."""

    raw: tuple[Candidates, References]
    tokens: tuple[Candidates, References]


def _cider(captions: _Captions) -> Values:
    from onellm.eval.metrics.cider import cider

    mean, each = cider(*captions.tokens)
    return {"cider": mean}, {"cider": each}


def _bleu(captions: _Captions) -> Values:
    from onellm.eval.metrics.bleu import bleu

    corpus, _ = bleu(*captions.tokens)
    return {f"bleu_{n}": value for n, value in enumerate(corpus, 1)}, {}


def _rouge(captions: _Captions) -> Values:
    mean, each = rouge_l(*captions.tokens)
    return {"rouge_l": mean}, {"rouge_l": each}


def _meteor(captions: _Captions) -> Values:
    return {"meteor": java.meteor(*captions.tokens)[0]}, {}


def _spice(captions: _Captions) -> Values:
    mean, each = java.spice(*captions.raw)
    return {"spice": mean}, {"spice": each}


def _spider(captions: _Captions) -> Values:
    (_, cider), (_, spice) = _cider(captions), _spice(captions)
    each = {k: (cider["cider"][k] + spice["spice"][k]) / 2 for k in cider["cider"]}
    means = {name: sum(v.values()) / len(v) for name, v in (*cider.items(), *spice.items())}
    spider = {"spider": (means["cider"] + means["spice"]) / 2}
    return spider | {"spice": means["spice"]}, {"spider": each, **spice}


def _sentences(captions: _Captions) -> Values:
    candidates, references = captions.raw
    each = {key: sentence_scores(text, references[key][0]) for key, text in candidates.items()}
    names = next(iter(each.values()))
    by_name = {f"sentence_{n}": {key: s[n] for key, s in each.items()} for n in names}
    return {name: sum(v.values()) / len(v) for name, v in by_name.items()}, by_name


METRICS: dict[str, Callable[[_Captions], Values]] = {
    "cider": _cider,
    "bleu": _bleu,
    "rouge_l": _rouge,
    "meteor": _meteor,
    "spice": _spice,
    "spider": _spider,
    "sentence": _sentences,
}
"""Families of metrics by the name that ``metrics`` asks for them."""
_NEED_JAVA = {"meteor": "meteor", "spice": "spice", "spider": "spice"}


@scorer("captions")
def captions(
    records: Records,
    metrics: Sequence[str] = ("cider", "bleu", "rouge_l"),
    primary: str = "cider",
    tokens: str = "ptb",
    avsd_filter: bool = False,
    subsets: Sequence[str] = ("domain",),
    optional: Sequence[str] = (),
) -> Score:
    """Captions against one or more true ones, as ``pycocoevalcap`` scores them.

    Target: a list of captions (or one string).

    Options: ``metrics``: families among ``cider``, ``bleu`` (1 to 4), ``rouge_l``, ``meteor``,
    ``spice``, ``spider`` (with ``spice``) and ``sentence`` (PointLLM's sentence BLEU and ROUGE
    against the first caption); ``optional``: those that may be left out, with a note, where Java
    or ``pycocoevalcap`` is missing; ``primary``: a metric by its own name; ``tokens``: ``ptb``
    (the official tokenizer's behaviour, native), ``java`` (that tokenizer itself) or ``raw``
    (single spaces; no standard); ``avsd_filter`` drops the answers' tokens of one character;
    ``subsets``: keys of ``meta`` to score parts by, where records have them.

    Metrics, all times 100: ``cider``, ``bleu_1`` to ``bleu_4``, ``rouge_l``, ``meteor``,
    ``spice``, ``spider``, ``sentence_bleu_1`` to ``_4``, ``sentence_rouge_1``, ``_2``, ``_l``. By
    subset: the primary metric on the subset alone (as separate runs of the official scorer), and
    under ``KEY, weights of all`` the mean of the items' scores in the whole set. Intervals are
    1000-fold bootstraps over items, with the n-gram weights of the whole set; METEOR, whose counts
    stay in its Java program, has none.
    """
    _check(metrics, optional, tokens)
    texts = _read(records, tokens, avsd_filter)
    left_out = {
        m: java.missing(_NEED_JAVA[m]) for m in metrics if m in optional and m in _NEED_JAVA
    }
    left_out = {metric: lack for metric, lack in left_out.items() if lack}
    wanted = [metric for metric in metrics if metric not in left_out]
    corpus, each = _values(texts, wanted)
    if primary not in corpus:
        hint = did_you_mean(primary, corpus)
        raise ConfigError(f"captions: no primary metric {primary!r} among the metrics.{hint}")
    ordered = {primary: corpus[primary]} | corpus
    ids = list(texts.tokens[0])
    notes = [_TOKENS[tokens], *(["Tokens of one character dropped."] if avsd_filter else [])]
    notes += [f"{metric} is left out: {lack}." for metric, lack in left_out.items()]
    samples: list[float | None] = [each[primary][key] if primary in each else None for key in ids]
    parsed = [record["answer"].strip() or None for record in records]
    return Score(
        metrics={name: 100 * value for name, value in ordered.items()},
        primary=primary,
        samples=samples,
        parsed=parsed,
        unparsed=sum(text is None for text in parsed),
        groups=_subsets(records, texts, primary, samples, subsets, wanted),
        intervals=_intervals(each) | (_bleu_intervals(texts) if "bleu" in wanted else {}),
        empty=count_empty(records),
        notes=tuple(notes),
    )


_TOKENS = {
    "ptb": "Tokens: native, in the manner of the Penn Treebank tokenizer (CoreNLP 3.4.1).",
    "java": "Tokens: Penn Treebank tokenizer (CoreNLP 3.4.1) through pycocoevalcap.",
    "raw": "Tokens: words between spaces, which no published caption score uses.",
}


def _check(metrics: Sequence[str], optional: Sequence[str], tokens: str) -> None:
    for what, given, known in (
        ("metric", metrics, METRICS),
        ("metric", optional, METRICS),
        ("kind of tokens", [tokens], _TOKENS),
    ):
        for name in given:
            if name not in known:
                raise ConfigError(f"captions: no {what} {name!r}.{did_you_mean(name, known)}")


def _read(records: Records, tokens: str, filtered: bool) -> _Captions:
    candidates: Candidates = {}
    references: References = {}
    for record in records:
        key = str(record.get("id"))
        if key in candidates:
            raise BadInput(f"record {key}", expected="one caption per item", found="two")
        target = target_of(record, (list, str), "true captions")
        candidates[key] = answers.avsd_filter(record["answer"]) if filtered else record["answer"]
        references[key] = [target] if isinstance(target, str) else list(target)
    if tokens == "java":
        own = java.java_tokens({key: [text] for key, text in candidates.items()})
        split = {key: texts[0] for key, texts in own.items()}, java.java_tokens(references)
    else:
        words = tokenize if tokens == "ptb" else _raw
        split = (
            {key: words(text) for key, text in candidates.items()},
            {key: [words(text) for text in texts] for key, texts in references.items()},
        )
    return _Captions((candidates, references), split)


def _raw(text: str) -> str:
    return " ".join(text.split())


def _values(captions: _Captions, metrics: Sequence[str]) -> Values:
    corpus: dict[str, float] = {}
    each: dict[str, dict[str, float]] = {}
    for metric in metrics:
        if metric == "spice" and "spider" in metrics:
            continue  # comes with it, and costs a parse of every caption
        more, items = METRICS[metric](captions)
        corpus, each = corpus | more, each | items
    return corpus, each


def _intervals(each: Mapping[str, Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    intervals = {}
    for name, values in each.items():
        low, high = bootstrap_interval(list(values.values()))
        intervals[name] = (100 * low, 100 * high)
    return intervals


def _bleu_intervals(captions: _Captions) -> dict[str, tuple[float, float]]:
    from onellm.eval.metrics.bleu import bleu_intervals

    found = enumerate(bleu_intervals(*captions.tokens), 1)
    return {f"bleu_{n}": (100 * low, 100 * high) for n, (low, high) in found}


def _subsets(
    records: Records,
    captions: _Captions,
    primary: str,
    samples: Sequence[float | None],
    keys: Sequence[str],
    metrics: Sequence[str],
) -> dict[str, dict[str, float]]:
    """The primary metric by ``meta``, each subset alone and with the whole set's weights."""
    groups: dict[str, dict[str, float]] = {}
    family = [m for m in metrics if primary == m or primary.startswith(f"{m}_")]
    for key in keys:
        parts: dict[str, list[str]] = {}
        for record in records:
            if part := record.get("meta", {}).get(key):
                parts.setdefault(str(part), []).append(str(record.get("id")))
        alone, shared = {}, {}
        by_id = dict(zip(captions.tokens[0], samples, strict=True))
        for part, ids in sorted(parts.items()):
            alone[part] = 100 * _values(_only(captions, ids), family)[0][primary]
            known = [s for s in (by_id[i] for i in ids) if s is not None]
            if known:
                shared[part] = percent(known)
        groups |= {key: alone} if alone else {}
        groups |= {f"{key}, weights of all": shared} if shared else {}
    return groups


def _only(captions: _Captions, ids: Sequence[str]) -> _Captions:
    def cut(pair: tuple[Candidates, References]) -> tuple[Candidates, References]:
        return {i: pair[0][i] for i in ids}, {i: pair[1][i] for i in ids}

    return _Captions(cut(captions.raw), cut(captions.tokens))


@scorer("objects")
def objects(
    records: Records,
    metrics: Sequence[str] = ("bleu", "rouge_l", "meteor", "cider", "sentence"),
    primary: str = "bleu_1",
    optional: Sequence[str] = ("meteor",),
) -> Score:
    """Captions of objects: the corpus scores beside PointLLM's means over sentences.

    The two do not compare, and bear different names; everything else as ``captions``.
    """
    return captions(records, metrics, primary, optional=optional)
