"""Scorers against the official ones on made-up answers of VQAv2's number.

VQA accuracy: the rival is the official algorithm, written here from its description: every mark of
every answer in turn, and a comparison with nine others for each of ten. It is given answers that
repeat as people's do, and answers that are all different. CIDEr: the rival is ``pycocoevalcap``'s
own code where it is installed, otherwise the same algorithm on dictionaries of word tuples. The
rivals must give our numbers. The last line is JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import random
import re
import resource
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, TypeVar

from onellm.eval.metrics import java
from onellm.eval.metrics.cider import cider
from onellm.eval.metrics.ptb import tokenize
from onellm.eval.metrics.vqa import CONTRACTIONS
from onellm.eval.scorers import score

EXAMPLES = """examples:
  python benchmarks/scoring.py --predictions 2000
  python benchmarks/scoring.py
"""
T = TypeVar("T")
Answers = list[dict[str, Any]]


def work_s() -> float:
    """Processor seconds so far, of this process and those it started."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def timed(run: Callable[[], T]) -> tuple[T, dict[str, float]]:
    """Run once; seconds of work and of the clock."""
    gc.collect()
    began, clock = work_s(), time.perf_counter()
    result = run()
    taken = {"cpu_s": work_s() - began, "wall_s": time.perf_counter() - clock}
    return result, {name: round(value, 3) for name, value in taken.items()}


MARKS = tuple(';/[]"{}()=+\\_-><@`,?!')
PERIOD, COMMA = re.compile(r"(?!<=\d)(\.)(?!\d)"), re.compile(r"(\d)(\,)(\d)")
DIGITS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4"}
DIGITS |= {"five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}


class OfficialVqa:
    """VQA accuracy as its official code goes about it."""

    def normalise(self, text: str) -> str:
        """Marks, digits, articles and contractions, one after the other."""
        edited = text
        for mark in MARKS:
            touches = mark + " " in text or " " + mark in text
            if touches or re.search(COMMA, text) is not None:
                edited = edited.replace(mark, "")
            else:
                edited = edited.replace(mark, " ")
        edited = PERIOD.sub("", edited, 32)
        words = [DIGITS.get(word, word) for word in edited.lower().split()]
        words = [word for word in words if word not in ("a", "an", "the")]
        return " ".join(CONTRACTIONS.get(word, word) for word in words)

    def accuracy(self, said: str, answers: Answers) -> float:
        """Of one answer; the references are changed in place."""
        for answer in answers:
            answer["answer"] = answer["answer"].replace("\n", " ").replace("\t", " ").strip()
        said = said.replace("\n", " ").replace("\t", " ").strip()
        if len({answer["answer"] for answer in answers}) > 1:
            for answer in answers:
                answer["answer"] = self.normalise(answer["answer"])
            said = self.normalise(said)
        each = []
        for answer in answers:
            others = [other for other in answers if other != answer]
            matching = [other for other in others if other["answer"] == said]
            each.append(min(1, len(matching) / 3))
        return sum(each) / len(each)


def cider_of_dictionaries(candidates: dict[str, str], references: dict[str, list[str]]) -> float:
    """CIDEr-D with a dictionary of word tuples per caption."""

    def grams(text: str) -> Counter[tuple[str, ...]]:
        words = text.split()
        return Counter(
            tuple(words[i : i + n]) for n in range(1, 5) for i in range(len(words) - n + 1)
        )

    counted = {key: [grams(text) for text in texts] for key, texts in references.items()}
    documents = Counter(
        gram for texts in counted.values() for gram in {g for t in texts for g in t}
    )
    log_items = math.log(len(counted))

    def weigh(caption: Counter[tuple[str, ...]]) -> tuple[list[dict[Any, float]], list[float], int]:
        vectors: list[dict[Any, float]] = [{} for _ in range(4)]
        for gram, count in caption.items():
            rarity = log_items - math.log(max(1.0, documents.get(gram, 0)))
            vectors[len(gram) - 1][gram] = count * rarity
        norms = [math.sqrt(sum(w * w for w in vector.values())) for vector in vectors]
        return vectors, norms, sum(n for gram, n in caption.items() if len(gram) == 2)

    total = 0.0
    for key, text in candidates.items():
        own, own_norms, length = weigh(grams(text))
        for reference in counted[key]:
            other, norms, other_length = weigh(reference)
            penalty = math.exp(-((length - other_length) ** 2) / 72)
            for n in range(4):
                dot = sum(
                    min(w, other[n].get(gram, 0.0)) * other[n].get(gram, 0.0)
                    for gram, w in own[n].items()
                )
                if own_norms[n] and norms[n]:
                    dot /= own_norms[n] * norms[n]
                total += dot * penalty / 4 / len(counted[key]) * 10
    return total / len(candidates)


def zipf(draw: random.Random, words: Sequence[str], count: int) -> list[str]:
    """Words as common as one over their rank."""
    return draw.choices(words, weights=[1 / rank for rank in range(1, len(words) + 1)], k=count)


def vqa_questions(count: int, repeating: bool) -> list[tuple[str, list[str]]]:
    """Predictions with ten answers, of which several agree."""
    draw = random.Random(0)
    odd = "yes|no|2|two|white|the dog|t-shirt|don't know|1,000|St. Bernard."
    nouns = odd.split("|")
    nouns += [f"word{n}" if n % 3 else f"two word{n}" for n in range(8_000)]
    common = zipf(draw, nouns, 4 * count)
    questions = []
    for number in range(count):
        four = common[4 * number : 4 * number + 4]
        if not repeating:
            four = [f"{text} {number}" for text in four]
        agreed = draw.choice((10, 8, 6, 3))
        answers = [four[0]] * agreed + draw.choices(four[1:], k=10 - agreed)
        draw.shuffle(answers)
        questions.append((draw.choice(four), answers))
    return questions


def vqa_row(count: int, repeating: bool) -> dict[str, Any]:
    questions = vqa_questions(count, repeating)
    records = [
        {"id": str(n), "answer": said, "target": answers, "meta": {}, "media": [["x", str(n)]]}
        for n, (said, answers) in enumerate(questions)
    ]
    # The official code works on the data set's objects, and changes them.
    objects = [
        [
            {"answer": text, "answer_confidence": "yes", "answer_id": n}
            for n, text in enumerate(each)
        ]
        for _, each in questions
    ]
    result, ours = timed(lambda: score("vqa", records))
    official = OfficialVqa()
    values, theirs = timed(
        lambda: [official.accuracy(q[0], each) for q, each in zip(questions, objects, strict=True)]
    )
    gap = max(abs(a - b) for a, b in zip(result.samples, values, strict=True) if a is not None)
    name = "vqa, answers repeat" if repeating else "vqa, answers all different"
    return row(name, count, ours, theirs, "the official algorithm", gap)


def captions(count: int, each: int) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Candidates and references that share words and some phrases."""
    draw = random.Random(0)
    words = ["a", "the", "of", "on", "in", "and", "with", *(f"word{n}" for n in range(10_000))]
    stream = iter(zipf(draw, words, 14 * count * (each + 1)))

    def text() -> list[str]:
        return [next(stream) for _ in range(draw.randint(6, 14))]

    candidates, references = {}, {}
    for n in range(count):
        truth = [text() for _ in range(each)]
        said = [w if draw.random() < 0.7 else next(stream) for w in truth[0]]
        candidates[str(n)] = " ".join(said)
        references[str(n)] = [" ".join(t) for t in truth]
    return candidates, references


def cider_row(candidates: dict[str, str], references: dict[str, list[str]]) -> dict[str, Any]:
    (mean, _), ours = timed(lambda: cider(candidates, references))
    if find_spec("pycocoevalcap") is not None:
        from pycocoevalcap.cider.cider import Cider

        said = {key: [text] for key, text in candidates.items()}
        (other, _), theirs = timed(lambda: Cider().compute_score(references, said))
        rival = "pycocoevalcap"
    else:
        other, theirs = timed(lambda: cider_of_dictionaries(candidates, references))
        rival = "dictionaries of word tuples"
    return row("cider", len(candidates), ours, theirs, rival, abs(mean - float(other)))


def token_row(candidates: dict[str, str], references: dict[str, list[str]]) -> dict[str, Any]:
    """Splitting captions: the native tokenizer against the Java program, its start included."""
    texts = defaultdict(list, {key: [*each, candidates[key]] for key, each in references.items()})
    own, ours = timed(lambda: {key: [tokenize(t) for t in each] for key, each in texts.items()})
    other, theirs = timed(lambda: java.java_tokens(texts))
    differing = sum(own[key] != other[key] for key in own)
    number = sum(map(len, texts.values()))
    return row("tokens", number, ours, theirs, "CoreNLP 3.4.1", differing)


def row(
    what: str,
    items: int,
    ours: dict[str, float],
    theirs: dict[str, float],
    rival: str,
    gap: float,
) -> dict[str, Any]:
    ours_s, theirs_s = ours["cpu_s"], theirs["cpu_s"]
    ratio = round(theirs_s / ours_s, 2)
    found = {"what": what, "items": items, "rival": rival, "ours": ours, "theirs": theirs}
    print(f"{what}: {items} items, {ours_s:.2f} s against {theirs_s:.2f} s of {rival}: × {ratio}")
    return {**found, "ratio": ratio, "largest_difference": gap}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--predictions", type=int, default=200_000, help="how many of each")
    parser.add_argument("--references", type=int, default=1, help="true captions per item")
    words = parser.parse_args()
    rows = [vqa_row(words.predictions, repeating) for repeating in (True, False)]
    made = captions(words.predictions, words.references)
    rows.append(cider_row(*made))
    if not java.missing():
        rows.append(token_row(*made))
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    settings = {"predictions": words.predictions, "references": words.references}
    print(
        json.dumps(
            {"machine": machine, "python": platform.python_version(), **settings, "rows": rows}
        )
    )


if __name__ == "__main__":
    main()
