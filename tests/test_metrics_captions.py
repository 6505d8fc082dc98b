"""Caption metrics against the official scorer: its recorded values, and itself where it is."""

from __future__ import annotations

import os
import random
import sys
from importlib.util import find_spec

import pytest
from golden_values import golden
from hypothesis import given, settings
from hypothesis import strategies as st

from onellm.errors import BadInput, MissingExtra
from onellm.eval.metrics import java, ngrams
from onellm.eval.metrics.bleu import bleu, bleu_intervals
from onellm.eval.metrics.cider import cider
from onellm.eval.metrics.intervals import resamples
from onellm.eval.metrics.pointllm import sentence_scores
from onellm.eval.metrics.ptb import ptb_tokens, tokenize
from onellm.eval.metrics.rouge import common_length, rouge_l

needs_package = pytest.mark.skipif(
    find_spec("pycocoevalcap") is None, reason="pycocoevalcap is not installed"
)
needs_java = pytest.mark.skipif(bool(java.missing()), reason=java.missing() or "there")


def corpora() -> dict[str, dict]:
    return {**golden("captions_main")["sets"], **golden("captions_edge")["cases"]}


def split(corpus: dict, words=tokenize) -> tuple[dict[str, str], dict[str, list[str]]]:
    return (
        {item["id"]: words(item["candidate"]) for item in corpus["items"]},
        {item["id"]: [words(r) for r in item["references"]] for item in corpus["items"]},
    )


def test_tokens_are_the_official_ones():
    for case in golden("ptb_tokens")["cases"]:
        assert tokenize(case["raw"]) == case["tokens"], case["raw"]
    for name, corpus in corpora().items():
        expected = corpus["expected"].get("tokens", {})
        candidates, references = split(corpus)
        if name != "main_no_ptb":
            for key, tokens in expected.items():
                assert candidates[key] == tokens["candidate"], name
                assert references[key] == tokens["references"], name


def test_bleu_rouge_and_cider_are_the_official_numbers():
    compared = 0
    for name, corpus in corpora().items():
        candidates, references = split(corpus, str if name == "main_no_ptb" else tokenize)
        (bleus, bleu_each) = bleu(candidates, references)
        (cider_mean, cider_each) = cider(candidates, references)
        (rouge_mean, rouge_each) = rouge_l(candidates, references)
        found = {"CIDEr": cider_mean, "ROUGE_L": rouge_mean}
        found |= {f"Bleu_{n}": value for n, value in enumerate(bleus, 1)}
        for metric, value in found.items():
            assert value == pytest.approx(corpus["expected"]["corpus"][metric], abs=1e-9), name
        for key, expected in corpus["expected"]["per_item"].items():
            found = {"CIDEr": cider_each[key], "ROUGE_L": rouge_each[key]}
            found |= {f"Bleu_{n}": value for n, value in enumerate(bleu_each[key], 1)}
            for metric, value in found.items():
                assert value == pytest.approx(expected[metric], abs=1e-9), (name, key, metric)
                compared += 1
    assert compared > 400


def test_cider_of_a_part_is_not_the_part_s_share_of_the_whole():
    corpus = golden("captions_main")["sets"]["main"]
    candidates, references = split(corpus)
    first = list(candidates)[:4]
    part = {key: candidates[key] for key in first}, {key: references[key] for key in first}
    _, each = cider(candidates, references)
    assert cider(*part)[0] == pytest.approx(2.396880, abs=1e-6)
    assert sum(each[key] for key in first) / 4 == pytest.approx(2.360988, abs=1e-6)


def test_pointllm_sentence_scores_are_the_official_numbers():
    data = golden("pointllm_traditional")
    totals: dict[str, float] = {}
    for item in data["items"]:
        scores = sentence_scores(item["model_output"], item["ground_truth"])
        for metric, expected in item["expected_pointllm_traditional"].items():
            value = 100 * scores[metric.replace("-", "_")]
            assert value == pytest.approx(expected, abs=1e-9), (item["model_output"], metric)
            totals[metric] = totals.get(metric, 0.0) + value / len(data["items"])
    assert totals == pytest.approx(data["mean"], abs=1e-9)


def test_the_same_captions_score_otherwise_by_corpus():
    data = golden("pointllm_traditional")
    items = data["items"]
    candidates = {str(n): tokenize(i["model_output"]) for n, i in enumerate(items)}
    references = {str(n): [tokenize(i["ground_truth"])] for n, i in enumerate(items)}
    expected = data["same_items_other_scorers"]["pycocoevalcap"]
    assert bleu(candidates, references)[0][0] == pytest.approx(expected["Bleu_1"], abs=1e-9)
    assert rouge_l(candidates, references)[0] == pytest.approx(expected["ROUGE_L"], abs=1e-9)


PLAIN = "a the red dog cat man runs on in grass street two isn't it's t-shirt 3 5pm"
WORDS = PLAIN.split()
captions = st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join)
items = st.lists(
    st.tuples(captions, st.lists(captions, min_size=1, max_size=4)), min_size=1, max_size=6
)


def as_corpus(pairs) -> tuple[dict[str, str], dict[str, list[str]]]:
    return (
        {str(n): candidate for n, (candidate, _) in enumerate(pairs)},
        {str(n): references for n, (_, references) in enumerate(pairs)},
    )


@given(items)
@settings(max_examples=60, deadline=None)
def test_order_of_items_and_doubled_references_change_nothing(pairs):
    candidates, references = as_corpus(pairs)
    turned = dict(reversed(candidates.items())), dict(reversed(references.items()))
    doubled = candidates, {key: texts * 2 for key, texts in references.items()}
    for metric in (cider, rouge_l, bleu):
        mean, each = metric(candidates, references)
        for other in (turned, doubled):
            other_mean, other_each = metric(*other)
            assert other_mean == pytest.approx(mean, abs=1e-12)
            for key in each:
                assert other_each[key] == pytest.approx(each[key], abs=1e-12)


@given(items, st.integers(2, 3))
@settings(max_examples=40, deadline=None)
def test_copies_of_a_corpus_score_as_it_does(pairs, copies):
    # CIDEr weighs words that no reference has by the number of items; so none of those here.
    known = [(references[0], references) for _, references in pairs]
    for metric, corpus in ((cider, as_corpus(known)), (rouge_l, as_corpus(pairs))):
        more = [{f"{n}/{key}": v for n in range(copies) for key, v in d.items()} for d in corpus]
        assert metric(*more)[0] == pytest.approx(metric(*corpus)[0], abs=1e-9)


@given(items)
@settings(max_examples=60, deadline=None)
def test_scores_stay_in_range_and_repeat_themselves(pairs):
    candidates, references = as_corpus(pairs)
    mean, each = cider(candidates, references)
    assert all(-1e-12 <= value <= 10 + 1e-9 for value in each.values())
    assert cider(candidates, references)[0] == mean
    assert all(0 <= value <= 1 + 1e-9 for value in rouge_l(candidates, references)[1].values())


@given(
    st.lists(st.sampled_from("abcd"), max_size=12), st.lists(st.sampled_from("abcd"), max_size=12)
)
@settings(deadline=None)
def test_common_length_is_the_textbook_table(first, second):
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            longer = max(table[i][j + 1], table[i + 1][j])
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else longer
    assert common_length(first, second) == table[-1][-1]


@pytest.mark.parametrize("metric", [cider, bleu, rouge_l])
def test_bad_corpora_are_named(metric):
    with pytest.raises(ValueError, match="candidate and references"):
        metric({}, {})
    with pytest.raises(ValueError, match="candidate and references"):
        metric({"a": "x"}, {"b": ["x"]})
    with pytest.raises(ValueError, match="no reference for a"):
        metric({"a": "x"}, {"a": []})


def test_a_corpus_without_a_word_scores_nothing():
    empty = {"a": "", "b": ""}, {"a": [""], "b": [""]}
    assert cider(*empty)[0] == 0.0
    assert bleu(*empty)[0] == pytest.approx([0.0] * 4)
    assert rouge_l(*empty)[0] == 1.0


@given(st.text(max_size=60))
@settings(deadline=None)
def test_tokenizing_any_text_ends_and_gives_words(text):
    assert all(token and " " not in token for token in ptb_tokens(text))
    assert tokenize(text) == tokenize(text)


def test_a_junk_answer_of_ten_thousand_signs_takes_no_time():
    for junk in (
        "a" * 10_000,
        "a." * 5_000,
        "a-" * 5_000,
        "1," * 5_000,
        "<a " * 3_000,
        "(" * 9_000,
    ):
        assert isinstance(tokenize(junk), str)


def test_bleus_intervals_are_of_resampled_corpora():
    candidates, references = random_corpus(3, 40)
    corpus, _ = bleu(candidates, references)
    intervals = bleu_intervals(candidates, references)
    assert intervals == bleu_intervals(candidates, references)
    for value, (low, high) in zip(corpus, intervals, strict=True):
        assert low < value < high
    # The score of a resample is that of the corpus it makes, a copy of an item an item of its own.
    drawn = next(resamples(40, 1)).astype(int)
    keys = [key for key, times in zip(candidates, drawn, strict=True) for _ in range(times)]
    copies = {str(n): key for n, key in enumerate(keys)}
    said = {n: candidates[key] for n, key in copies.items()}
    expected, _ = bleu(said, {n: references[key] for n, key in copies.items()})
    once = bleu_intervals(candidates, references, times=1)
    assert [low for low, _ in once] == pytest.approx(expected, abs=1e-12)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A stand-in for ``pycocoevalcap`` without CoreNLP, in front of the real one."""
    spice = tmp_path / "pycocoevalcap" / "spice"
    (spice / "lib").mkdir(parents=True)
    (spice / "spice.py").write_text(
        "import os, subprocess, sys\n"
        "class Spice:\n"
        "    def compute_score(self, references, said):\n"
        "        assert '--add-opens=java.base/java.lang=ALL-UNNAMED' in "
        "os.environ['JDK_JAVA_OPTIONS']\n"
        "        if said['b'] == ['fail']:\n"
        "            subprocess.check_call([sys.executable, '-c', 'raise SystemExit(3)'])\n"
        "        each = [float(key == 'b') for key in sorted(said)]\n"
        "        return sum(each) / len(each), [{'All': {'f': value}} for value in each]\n"
    )
    for folder in (spice, spice.parent):
        (folder / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "pycocoevalcap"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(java.shutil, "which", lambda name: f"/usr/bin/{name}")
    yield spice / "lib"
    for name in [name for name in sys.modules if name.partition(".")[0] == "pycocoevalcap"]:
        del sys.modules[name]


def test_spice_says_which_jars_it_lacks_and_how_to_get_them(package):
    two = {"b": "a dog", "a": "a cat"}, {"b": ["a dog"], "a": ["a dog"]}
    with pytest.raises(BadInput) as caught:
        java.spice(*two)
    said = str(caught.value)
    for part in (
        f"no stanford-corenlp-3.6.0.jar and no stanford-corenlp-3.6.0-models.jar in {package}",
        "python -m pycocoevalcap.spice.get_stanford_models",
        "Or leave SPICE out.",
    ):
        assert part in said
    assert java.missing("meteor") == ""
    (package / "stanford-corenlp-3.6.0.jar").touch()
    assert java.missing("spice") == f"no stanford-corenlp-3.6.0-models.jar in {package}"


def test_spices_scores_go_with_their_items_and_its_failures_are_told(package, monkeypatch):
    for jar in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"):
        (package / jar).touch()
    monkeypatch.setenv("JDK_JAVA_OPTIONS", "-Dmine=1")
    references = {"b": ["a dog"], "a": ["a dog"]}
    assert java.spice({"b": "x", "a": "y"}, references) == (0.5, {"b": 1.0, "a": 0.0})
    assert os.environ["JDK_JAVA_OPTIONS"] == "-Dmine=1"
    with pytest.raises(BadInput, match=r"SPICE: .*exit status 3.*Java 8 and 11"):
        java.spice({"b": "fail", "a": "y"}, references)


def test_java_metrics_say_what_is_missing(monkeypatch):
    one = {"a": "a dog"}, {"a": ["a dog"]}
    monkeypatch.setattr(java.importlib.util, "find_spec", lambda name: None)
    assert "not installed" in java.missing()
    with pytest.raises(MissingExtra, match=r"onellm\[java\]"):
        java.meteor(*one)
    monkeypatch.undo()
    if find_spec("pycocoevalcap") is not None:
        monkeypatch.setattr(java.shutil, "which", lambda name: None)
        with pytest.raises(BadInput, match=r"no program 'java'.*Install a Java runtime"):
            java.meteor(*one)


def random_corpus(seed: int, size: int = 150) -> tuple[dict[str, str], dict[str, list[str]]]:
    draw = random.Random(seed)
    words = [*WORDS, *(f"w{n}" for n in range(60))]

    def text() -> str:
        return " ".join(draw.choice(words) for _ in range(draw.randint(0, 12)))

    keys = [str(n) for n in range(size)]
    return {k: text() for k in keys}, {k: [text() for _ in range(draw.randint(1, 5))] for k in keys}


def test_counting_is_the_same_where_packed_numbers_would_not_fit(monkeypatch):
    corpus = random_corpus(0)
    expected = cider(*corpus), bleu(*corpus)
    monkeypatch.setattr(ngrams, "_BITS", 0)
    assert (cider(*corpus), bleu(*corpus)) == expected


@needs_package
@pytest.mark.parametrize("seed", range(5))
def test_random_corpora_score_as_by_pycocoevalcap_itself(seed):
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    candidates, references = random_corpus(seed)
    said = {key: [text] for key, text in candidates.items()}
    mean, each = Cider().compute_score(references, said)
    ours, own = cider(candidates, references)
    assert ours == pytest.approx(mean, abs=1e-9)
    assert list(own.values()) == pytest.approx(list(each), abs=1e-9)
    mean, each = Rouge().compute_score(references, said)
    assert rouge_l(candidates, references)[0] == pytest.approx(mean, abs=1e-9)
    mean, each = Bleu(4).compute_score(references, said, verbose=0)
    ours, own = bleu(candidates, references)
    assert ours == pytest.approx(mean, abs=1e-9)
    assert [value[3] for value in own.values()] == pytest.approx(each[3], abs=1e-9)


TRICKY = """
cannot gonna don’t Mr. Dr. St. e.g. U.S. a.m. 1,000 3.5 10:30 1990s 2nd 50% $5 C++ AT&T o'clock
rock'n'roll 1/2 café naïve black/white user_name #tag 20-year-old man's dogs' TV
"""
MARKS = ', |. |; |: | - | -- | (|) |! |? |... | "'


@needs_java
def test_tokens_are_those_of_the_java_program_on_random_captions():
    draw = random.Random(0)
    words = f"{PLAIN} {TRICKY}".split()
    ends = [" "] * 10 + MARKS.split("|")
    texts = [
        "".join(draw.choice(words) + draw.choice(ends) for _ in range(draw.randint(1, 12)))
        for _ in range(500)
    ]
    theirs = java.java_tokens({"all": texts})["all"]
    assert [tokenize(text) for text in texts] == theirs


@needs_java
@pytest.mark.slow  # its tables take Java ten seconds to read
def test_meteor_is_the_recorded_one():
    corpus = golden("captions_main")["sets"]["main"]
    mean, each = java.meteor(*split(corpus))
    assert mean == pytest.approx(corpus["expected"]["corpus"]["METEOR"], abs=1e-6)
    for key, expected in corpus["expected"]["per_item"].items():
        assert each[key] == pytest.approx(expected["METEOR"], abs=1e-6)
