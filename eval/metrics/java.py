"""METEOR, SPICE and Java's own tokens, through ``pycocoevalcap`` and a Java program.

They are not rewritten here: METEOR 1.5 and SPICE are defined by their jars. SPICE also needs two
jars of CoreNLP 3.6, which the package would fetch from the network; nothing here lets it.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onellm.errors import BadInput, MissingExtra
from onellm.eval.metrics.captions import aligned

PACKAGE, EXTRA = "pycocoevalcap", "java"
_SPICE_JAR = Path("spice", "lib", "stanford-corenlp-3.6.0.jar")
# Line ends to the Java tokenizer, which keeps lines apart, but not to the package that reads them.
_LINE_ENDS = re.compile("[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+")


def missing(metric: str = "meteor") -> str:
    """What a metric lacks on this machine, in words; empty where all is there.

    Args:
        metric: ``meteor`` or ``spice``.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None:
        return f"{PACKAGE} is not installed (pip install 'onellm[{EXTRA}]')"
    if shutil.which("java") is None:
        return "no program 'java' on the path"
    folders = found.submodule_search_locations or []
    if metric == "spice" and not any((Path(f) / _SPICE_JAR).is_file() for f in folders):
        return f"no {_SPICE_JAR.name} and its models in {PACKAGE}/{_SPICE_JAR.parent}"
    return ""


def _part(module: str, name: str, metric: str = "meteor") -> Any:
    """One of the package's scorers, built.

    Raises:
        MissingExtra: the package is not installed.
        BadInput: there is no Java, or SPICE's parser was not put beside it.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise MissingExtra(PACKAGE, EXTRA)
    if lack := missing(metric):
        hint = "Install Java 8 to 17; SPICE also needs CoreNLP 3.6.0. Or leave these metrics out."
        raise BadInput(metric, expected="Java and the metric's jars", found=lack, hint=hint)
    return getattr(importlib.import_module(f"{PACKAGE}.{module}"), name)()


def _listed(
    ids: Sequence[str], candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """References and candidates in the package's form, in one order."""
    return {i: list(references[i]) for i in ids}, {i: [candidates[i]] for i in ids}


def meteor(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> tuple[float, dict[str, float]]:
    """METEOR 1.5 of tokenised captions.

    Args:
        candidates: caption by item id, words divided by spaces.
        references: true captions by item id, at least one each.

    Returns:
        the corpus score (0 to 1), from added-up counts and so not the mean of the second, which
        are the items'.

    Raises:
        MissingExtra: ``pycocoevalcap`` is not installed.
        BadInput: there is no Java.
    """
    ids = aligned("METEOR", candidates, references)
    scorer = _part("meteor.meteor", "Meteor")
    try:
        corpus, each = scorer.compute_score(*_listed(ids, candidates, references))
    finally:
        scorer.meteor_p.kill()  # the wrapper leaves its Java process to the garbage collector
        scorer.meteor_p.wait()
    return float(corpus), dict(zip(ids, map(float, each), strict=True))


def spice(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> tuple[float, dict[str, float]]:
    """SPICE of captions as they were written; see :func:`meteor`."""
    ids = aligned("SPICE", candidates, references)
    scorer = _part("spice.spice", "Spice", "spice")
    corpus, each = scorer.compute_score(*_listed(ids, candidates, references))
    # The package goes through the items in alphabetical order.
    found = dict(zip(sorted(ids), (float(item["All"]["f"]) for item in each), strict=True))
    return float(corpus), {key: found[key] for key in ids}


def java_tokens(captions: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Tokens of the original tokenizer, with single spaces, for captions by item id.

    Raises:
        MissingExtra: ``pycocoevalcap`` is not installed.
        BadInput: there is no Java.
    """
    tokenizer = _part("tokenizer.ptbtokenizer", "PTBTokenizer")
    asked = {
        key: [{"caption": _LINE_ENDS.sub(" ", text)} for text in texts]
        for key, texts in captions.items()
    }
    return {key: list(texts) for key, texts in tokenizer.tokenize(asked).items()}
