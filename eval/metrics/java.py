"""METEOR, SPICE and Java's own tokens, through ``pycocoevalcap`` and a Java program.

They are not rewritten here: METEOR 1.5 and SPICE are defined by their jars. SPICE also needs two
jars of CoreNLP 3.6.0, which no package brings: ``pycocoevalcap`` has a program that fetches them
from Stanford, and nothing here calls it unasked.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onellm.errors import BadInput, MissingExtra
from onellm.eval.metrics.captions import aligned

PACKAGE, EXTRA = "pycocoevalcap", "java"
_SPICE_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
_SPICE_FOLDER = Path("spice", "lib")
_GET_JAVA = "Install a Java runtime, 8 or newer (Debian: apt install default-jre-headless)"
_GET_SPICE = (
    f"python -m {PACKAGE}.spice.get_stanford_models fetches both from Stanford "
    "(stanford-corenlp-full-2015-12-09.zip); or put them there by hand"
)
# SPICE's cache reads private fields of Java's own classes, which newer versions refuse unless told
# otherwise (github.com/tylin/coco-caption/issues/59); Java 8 does not know the variable.
_OPENED = "JDK_JAVA_OPTIONS"
_OPENS = " ".join(
    f"--add-opens=java.base/java.{part}=ALL-UNNAMED"
    for part in ("lang", "math", "util", "util.concurrent", "net", "nio", "text", "io")
)
# Line ends to the Java tokenizer, which keeps lines apart, but not to the package that reads them.
_LINE_ENDS = re.compile("[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+")


def missing(metric: str = "meteor") -> str:
    """What a metric lacks on this machine, in words; empty where all is there.

    Args:
        metric: ``meteor`` or ``spice``.
    """
    return _lack(metric)[0]


def _lack(metric: str) -> tuple[str, str]:
    """What a metric lacks, and what to do about it."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None:
        return f"{PACKAGE} is not installed (pip install 'onellm[{EXTRA}]')", ""
    if shutil.which("java") is None:
        return "no program 'java' on the path", _GET_JAVA
    if metric == "spice":
        folder = Path(next(iter(found.submodule_search_locations or [""]))) / _SPICE_FOLDER
        if gone := [jar for jar in _SPICE_JARS if not (folder / jar).is_file()]:
            return f"no {' and no '.join(gone)} in {folder}", _GET_SPICE
    return "", ""


def _part(module: str, name: str, metric: str = "meteor") -> Any:
    """One of the package's scorers, built.

    Raises:
        MissingExtra: the package is not installed.
        BadInput: there is no Java, or SPICE's parser was not put beside it.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise MissingExtra(PACKAGE, EXTRA)
    lack, hint = _lack(metric)
    if lack:
        expected = "Java and the metric's jars"
        hint = f"{hint}. Or leave {metric.upper()} out."
        raise BadInput(metric.upper(), expected=expected, found=lack, hint=hint)
    return getattr(importlib.import_module(f"{PACKAGE}.{module}"), name)()


@contextmanager
def _java(metric: str) -> Iterator[None]:
    """Run a Java program where newer versions of Java let it, and say so when it fails."""
    before = os.environ.get(_OPENED)
    os.environ[_OPENED] = f"{before} {_OPENS}" if before else _OPENS
    try:
        yield
    except (subprocess.CalledProcessError, OSError, ValueError) as error:
        hint = "What Java said stands above. Java 8 and 11 are known to work."
        where, expected = metric.upper(), "scores of its Java program"
        raise BadInput(where, expected=expected, found=str(error), hint=hint) from error
    finally:
        if before is None:
            del os.environ[_OPENED]
        else:
            os.environ[_OPENED] = before


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
    """SPICE of captions as they were written.

    The program takes 8 GB of memory at most, and keeps parses in a cache in the package's folder,
    which has to be writable.

    Args:
        candidates: caption by item id.
        references: true captions by item id, at least one each.

    Returns:
        the mean over items, and the score of each (0 to 1).

    Raises:
        MissingExtra: ``pycocoevalcap`` is not installed.
        BadInput: there is no Java or no CoreNLP 3.6.0, or the program failed.
    """
    ids = aligned("SPICE", candidates, references)
    scorer = _part("spice.spice", "Spice", "spice")
    with _java("spice"):
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
