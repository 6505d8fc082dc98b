"""Scoring of short answers to closed questions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onellm.eval.closed_set import (
    exact_match,
    majority,
    normalise,
    per_class,
    score,
)


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
