"""Scorers against the official ones and against what they promise."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onellm.eval.cider import cider, tokenize
from onellm.eval.closed_set import (
    exact_match,
    majority,
    normalise,
    per_class,
    score,
    wilson,
)

GOLDEN = Path(os.environ.get("ONELLM_GOLDEN", Path(__file__).parents[1] / "../shared/golden"))


def golden(name: str):
    path = GOLDEN / name
    if not path.is_file():
        pytest.skip(f"no golden values at {path}; set ONELLM_GOLDEN")
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "words"), [("main_no_ptb", str), ("main", tokenize)])
def test_cider_is_the_official_number(name, words):
    corpus = golden("captions_main.json")["sets"][name]
    candidates = {i["id"]: words(i["candidate"]) for i in corpus["items"]}
    references = {i["id"]: [words(r) for r in i["references"]] for i in corpus["items"]}
    mean, each = cider(candidates, references)
    assert mean == pytest.approx(corpus["expected"]["corpus"]["CIDEr"], abs=1e-9)
    for key, expected in corpus["expected"]["per_item"].items():
        assert each[key] == pytest.approx(expected["CIDEr"], abs=1e-9)


def test_tokens_are_the_official_ones_on_plain_captions():
    corpus = golden("captions_main.json")["sets"]["main"]
    for item in corpus["items"]:
        assert tokenize(item["candidate"]) == corpus["expected"]["tokens"][item["id"]]["candidate"]


def test_cider_of_perfect_captions_is_ten_and_of_strangers_zero():
    truth = {"a": ["a red chair by the door"], "b": ["two dogs play in snow"]}
    assert cider({k: v[0] for k, v in truth.items()}, truth)[0] == pytest.approx(10.0)
    assert cider({"a": "one two three four", "b": ""}, truth)[0] == 0.0


def test_cider_of_a_single_item_is_zero_and_bad_input_an_error():
    assert cider({"a": "a dog"}, {"a": ["a dog"]})[0] == 0.0
    with pytest.raises(ValueError, match="candidate and references"):
        cider({}, {})
    with pytest.raises(ValueError, match="candidate and references"):
        cider({"a": "x"}, {"b": ["x"]})
    with pytest.raises(ValueError, match="no reference for a"):
        cider({"a": "x"}, {"a": []})


def test_wilson_is_the_closed_form():
    stats = golden("stats.json")
    low, high = wilson(sum(stats["scores"]), len(stats["scores"]))
    assert [low, high] == pytest.approx(stats["expected"]["wilson95"], abs=1e-12)


@given(st.integers(0, 500), st.integers(0, 500))
def test_wilson_holds_the_rate_and_stays_in_bounds(hits, misses):
    n = hits + misses
    low, high = wilson(hits, n)
    assert 0 <= low <= high <= 1
    if n:
        assert low - 1e-12 <= hits / n <= high + 1e-12


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("chair", True),
        ("  Chair. ", True),
        ("CHAIR!", True),
        ("a chair", False),
        ("chair or table", False),
        ("chairs", False),
        ("", False),
        (".", False),
    ],
)
def test_exact_match_is_strict_but_for_case_space_and_final_punctuation(answer, right):
    assert exact_match(answer, "chair") is right


def test_an_empty_answer_is_wrong_even_to_an_empty_reference():
    assert not exact_match("", "")


@given(st.text())
def test_normalise_is_idempotent(text):
    assert normalise(normalise(text)) == normalise(text)


def test_majority_breaks_ties_by_the_alphabet():
    assert majority(["b", "a", "B", "A", "c"]) == ("a", 0.4)
    with pytest.raises(ValueError, match="no majority"):
        majority([])


def test_per_class_counts_and_names_the_commonest_mistake():
    pairs = [("cat", "cat"), ("dog", "cat"), ("dog", "cat"), ("dog", "dog"), ("cow", "dog")]
    cat, dog = per_class(pairs)
    assert (cat.answer, cat.n, cat.right, cat.said, cat.mistaken_for) == ("cat", 3, 1, 1, "dog")
    assert (dog.answer, dog.n, dog.right, dog.said, dog.mistaken_for) == ("dog", 2, 1, 3, "cow")


def test_score_adds_up():
    got = score([("cat", "cat"), ("dog", "cat"), ("unicorn", "dog"), ("", "dog")])
    assert got["n"] == 4
    assert got["exact_match"] == 0.25
    assert got["majority"] == 0.5
    assert got["off_list"] == 0.5  # the unicorn and the empty answer
    assert sum(c["n"] for c in got["per_class"]) == 4
    assert got["interval"][0] < 0.25 < got["interval"][1]
