"""Intervals against closed forms and the recorded values of a toolkit."""

from __future__ import annotations

import random

import pytest
from golden_values import golden
from hypothesis import given, settings
from hypothesis import strategies as st

from onellm.eval.metrics.intervals import (
    bootstrap_interval,
    clustered_error,
    mean_interval,
    paired_test,
    share_interval,
    standard_error,
    wilson,
)


def test_errors_and_tests_are_the_recorded_ones():
    data = golden("stats")
    scores, expected = data["scores"], data["expected"]
    assert standard_error(scores) == pytest.approx(expected["stderr_sample"], abs=1e-12)
    error = clustered_error(scores, data["clusters"])
    assert error == pytest.approx(expected["stderr_clustered"], abs=1e-12)
    assert wilson(sum(scores), len(scores)) == pytest.approx(expected["wilson95"], abs=1e-12)
    found, paired = paired_test(scores, data["baseline"]), expected["paired_ttest"]
    assert found.difference == pytest.approx(paired["mean_diff"], abs=1e-12)
    assert found.error == pytest.approx(paired["se_diff"], abs=1e-12)
    assert found.interval == pytest.approx((paired["ci_lower"], paired["ci_upper"]), abs=1e-9)
    assert found.t == pytest.approx(paired["t_stat"], abs=1e-12)
    assert found.p == pytest.approx(paired["p_value"], abs=1e-9)
    assert (found.n, found.better, found.worse) == (paired["n"], 2, 1)


@given(st.integers(0, 500), st.integers(0, 500))
@settings(deadline=None)
def test_wilson_holds_the_rate_and_stays_in_bounds(hits, misses):
    n = hits + misses
    low, high = wilson(hits, n)
    assert 0 <= low <= high <= 1
    if n:
        assert low - 1e-12 <= hits / n <= high + 1e-12


def test_clusters_of_one_leave_the_error_as_it_is_and_of_copies_widen_it():
    values = [1.0, 0.0, 1.0, 1.0, 0.0]
    assert clustered_error(values, range(5)) == pytest.approx(standard_error(values), abs=1e-12)
    doubled, clusters = values * 2, [*range(5), *range(5)]
    assert clustered_error(doubled, clusters) > 1.2 * standard_error(doubled)


def test_mean_interval_is_wilson_for_hits_and_clustered_where_media_are_shared():
    hits = [1.0, 0.0, 1.0, 1.0]
    assert mean_interval(hits) == wilson(3, 4)
    assert mean_interval(hits, ["a", "b", "c", "d"]) == wilson(3, 4)
    hits, pictures = [1.0, 1.0, 0.0, 0.0, 1.0, 1.0], list("aabbcc")
    low, high = mean_interval(hits, pictures)
    assert (low, high) == share_interval(4 / 6, clustered_error(hits, pictures), 3)
    alone = wilson(4, 6)
    assert low < alone[0] < alone[1] < high, "three pictures say less than six"


def test_intervals_of_a_few_clusters_stay_on_the_scale_and_have_a_width():
    # A normal interval would end at 1.1 in the first case and have no width in the next two.
    for values, clusters in (
        ([1.0, 0.9, 0.9, 0.2], "aabb"),
        ([1.0] * 4, "aabb"),
        ([0.0] * 4, "aabb"),
        ([1.0, 0.0] * 2, "aabb"),
    ):
        low, high = mean_interval(values, list(clusters))
        assert 0 <= low <= sum(values) / 4 <= high <= 1
        assert high - low > 0.3
    assert mean_interval([1.0] * 4, list("aabb")) == wilson(2, 2)
    assert mean_interval([0.6] * 9)[0] > 0.2, "shares that are all the same"


def test_with_many_clusters_the_interval_is_the_normal_one():
    draw = random.Random(1)
    pictures = [draw.random() for _ in range(4000)]
    values = [float(draw.random() < rate) for rate in pictures for _ in range(3)]
    clusters = [n // 3 for n in range(len(values))]
    error, mean = clustered_error(values, clusters), sum(values) / len(values)
    expected = (mean - 1.96 * error, mean + 1.96 * error)
    assert mean_interval(values, clusters) == pytest.approx(expected, abs=2e-4)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 4)), min_size=1, max_size=12),
)
@settings(deadline=None)
def test_any_interval_holds_the_mean_within_the_scale(pairs):
    values, clusters = [value for value, _ in pairs], [cluster for _, cluster in pairs]
    low, high = mean_interval(values, clusters)
    mean = sum(values) / len(values)
    assert 0 <= low <= mean + 1e-9 and mean - 1e-9 <= high <= 1


def test_bootstrap_repeats_itself_and_agrees_with_the_normal_interval():
    draw = random.Random(0)
    values = [draw.gauss(5, 2) for _ in range(400)]
    low, high = bootstrap_interval(values)
    assert (low, high) == bootstrap_interval(values)
    mean, half = sum(values) / len(values), 1.96 * standard_error(values)
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.05)


def test_a_run_against_itself_and_a_run_that_is_always_better():
    scores = [0.0, 1.0, 1.0, 0.0]
    same = paired_test(scores, scores)
    assert (same.difference, same.p, same.better, same.worse) == (0.0, 1.0, 0, 0)
    better = paired_test([s + 1 for s in scores], scores)
    assert (better.p, better.interval) == (0.125, (1.0, 1.0)), "four heads in a row, or four tails"
    assert paired_test([1.0], [0.0]).p == 1.0, "one question proves nothing"
    assert paired_test([0.3] * 6, [0.1] * 6).p == pytest.approx(2 * 0.5**6)
    assert paired_test([1.0] * 6, [0.0] * 6, list("aabbcc")).p == 0.25, "three pictures"
    with pytest.raises(ValueError, match="not 3 and 4"):
        paired_test(scores[:3], scores)
