"""Reading options as the toolkits do, without their random letters."""

from __future__ import annotations

import pytest
from golden_values import golden
from hypothesis import given, settings
from hypothesis import strategies as st

from onellm.errors import ConfigError
from onellm.eval.metrics.choice import (
    PARSERS,
    exact,
    first_letter,
    letters,
    likeliest,
    llava,
    nextqa_lmms,
    parser_named,
    plain,
    scienceqa_lmms,
)
from onellm.eval.metrics.mmbench import MATCHERS, circular, lmms_mmbench, vlmevalkit

ANIMALS = ("teddy bear", "rabbit", "cat", "dog")


def test_scienceqa_letters_are_those_of_both_scripts():
    data, right = golden("multiple_choice")["scienceqa"], 0
    for item in data["items"]:
        options = ["x"] * item["num_choices"]
        truth, said = letters(options)[item["answer_index"]], item["prediction"] or ""
        expected = item["expected"]
        assert (llava(said, options) or "FAILED") == expected["llava_parsed"], said
        assert (llava(said, options) == truth) == expected["llava_correct"], said
        if expected["lmms_eval_exact"] is not None:
            assert (scienceqa_lmms(said, options) == truth) == bool(expected["lmms_eval_exact"])
        right += llava(said, options) == truth
    assert right == data["aggregate"]["correct"]


def test_seed_letters_are_those_of_both_scripts():
    data = golden("multiple_choice")["seedbench"]
    truth = {q["question_id"]: q["answer"] for q in data["questions"]}
    for parse, expected in ((exact, 0.6), (first_letter, data["expected_lmms_eval"]["all"])):
        hits = [parse(text, "abcd") == truth[key] for key, text in data["predictions"].items()]
        assert sum(hits) / len(hits) == pytest.approx(expected)


def test_nextqa_letters_are_those_of_lmms_eval_but_for_the_random_ones():
    data = golden("multiple_choice")["letter_parse_lmms_eval"]
    options, random_ones = list(data["choices"].values()), 0
    for case in data["cases"]:
        expected = None if case["random_fallback"] else case["lmms_eval_parsed"]
        assert nextqa_lmms(case["raw"], options) == expected, case["raw"]
        random_ones += case["random_fallback"]
    assert random_ones == 5


def test_mmbench_matches_are_those_of_both_toolkits():
    data = golden("mmbench")
    options = list(data["options"].values())
    for case in data["matcher"]:
        assert (vlmevalkit(case["raw"], options) or False) == case["vlmevalkit"], case["raw"]
        assert (lmms_mmbench(case["raw"], options) or False) == case["lmms_eval"], case["raw"]


def test_circular_evaluation_wants_every_pass():
    for group in golden("mmbench")["circular"]:
        hits = []
        for one in group["passes"]:
            options = [one[letter] for letter in "ABCD" if one[letter]]
            hits.append(vlmevalkit(one["prediction"], options) == one["answer"])
        expected = group["expected"]
        assert hits == [bool(hit) for hit in expected["per_pass_hit"]], group["name"]
        whole = circular((group["name"], hit) for hit in hits)
        assert whole == {group["name"]: bool(expected["circular_hit_exact_matching"])}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        *((text, "B") for text in ("B", "b", "(B)", "B.", " B) ", "**B**", "'b'", "B: rabbit")),
        *(
            (text, "B")
            for text in ("B rabbit", "The answer is B.", "Option (B), I think", "Answer: B")
        ),
        *((text, "B") for text in ("It is a rabbit.", "Rabbit", "the correct answer is **b**")),
        ("A cat is on the mat", "C"),
        ("the answer is a dog", "D"),
        ("a teddy bear", "A"),
        ("catalog", None),
        ("cat or dog", None),
        ("(A) or (B)", None),
        ("A or B", None),
        ("E", None),
        ("I do not know", None),
        ("", None),
    ],
)
def test_plain_reads_what_is_clear_and_nothing_else(answer, letter):
    assert plain(answer, ANIMALS) == letter


def test_plain_prefers_the_longer_of_two_options_one_inside_the_other():
    assert plain("It's a red car.", ("car", "red car")) == "B"
    assert plain("a car", ("car", "red car")) == "A"


def test_toolkits_match_inside_words_and_plain_does_not():
    assert vlmevalkit("catalog", ANIMALS) == lmms_mmbench("catalog", ANIMALS) == "C"
    assert plain("catalog", ANIMALS) is None


@given(st.text(max_size=40), st.sampled_from([*PARSERS, *MATCHERS]))
@settings(deadline=None)
def test_no_parser_draws_lots(answer, name):
    parse = parser_named(name, MATCHERS)
    found = parse(answer, ANIMALS)
    assert all(parse(answer, ANIMALS) == found for _ in range(3))


def test_an_unknown_convention_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match=r"'llavaa'.*llava"):
        parser_named("llavaa")


def test_likeliest_takes_sum_or_mean_and_the_first_of_equals():
    chances = [
        {"sum": -4.0, "mean": -2.0},
        {"sum": -6.0, "mean": -1.0},
        {"sum": -4.0, "mean": -1.0},
    ]
    assert likeliest(chances, "mean") == 1
    assert likeliest(chances, "sum") == 0
