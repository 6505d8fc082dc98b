"""How sure a mean is: Wilson, clustered and bootstrap intervals; paired test of two runs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


def wilson(hits: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a rate.

    Args:
        hits: how many were right.
        n: of how many; with none the interval is (0, 1).
        z: quantile; 95 % by default.
    """
    return _score_interval(hits / n, n, z) if n else (0.0, 1.0)


def _score_interval(rate: float, n: float, z: float = Z95) -> tuple[float, float]:
    zz = z * z
    centre = (rate + zz / (2 * n)) / (1 + zz / n)
    half = z / (1 + zz / n) * math.sqrt(rate * (1 - rate) / n + zz / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def share_interval(mean: float, error: float, clusters: int) -> tuple[float, float]:
    """95 % interval of a mean of shares, from its standard error; it stays between 0 and 1.

    Wilson's, for as many independent questions as would have that error (Franco and others,
    "Comparative study of confidence intervals for proportions in complex sample surveys", 2019).
    With many questions it is the normal interval; with few, or near 0 and 1, that one would leave
    the scale, or have no width at all.

    Args:
        mean: 0 to 1.
        error: its standard error. Where it is 0, because all say the same, the number of
            clusters stands for the number of questions.
        clusters: how many independent groups of questions there are.
    """
    rate = min(1.0, max(0.0, mean))  # a sum of floats may be a hair outside
    variance, square = rate * (1 - rate), error * error
    worth = variance / square if square > 0 and variance > 0 else float(clusters)
    return _score_interval(rate, worth)


def standard_error(values: Sequence[float]) -> float:
    """Of a mean of independent values, from their sample variance; 0 for fewer than two."""
    n = len(values)
    if n < 2:
        return 0.0
    mean = sum(values) / n
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)


def clustered_error(values: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """Standard error of a mean whose values hang together within clusters.

    Questions about one picture are a cluster. The independent error, and to it what different
    questions of a cluster have in common (Miller, "Adding error bars to evals", 2024).
    """
    mean, n = sum(values) / len(values), len(values)
    together: dict[Hashable, float] = defaultdict(float)
    alone = 0.0
    for value, cluster in zip(values, clusters, strict=True):
        together[cluster] += value - mean
        alone += (value - mean) ** 2
    shared = (sum(r * r for r in together.values()) - alone) / n**2
    return math.sqrt(max(0.0, standard_error(values) ** 2 + shared))


def mean_interval(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None
) -> tuple[float, float]:
    """95 % interval of a mean of shares (0 to 1), within that scale.

    Independent hits and misses have Wilson's. Shares, and questions that show the same media,
    have it for the number of questions that their error is worth: see :func:`share_interval`.

    Args:
        values: 0 to 1 each, at least one.
        clusters: what each question's media are.
    """
    groups = len(set(clusters)) if clusters is not None else len(values)
    shared = clusters is not None and groups < len(values)
    if not shared and all(v in (0, 1) for v in values):
        return wilson(int(sum(values)), len(values))
    error = clustered_error(values, clusters) if clusters and shared else standard_error(values)
    return share_interval(sum(values) / len(values), error, groups)


def bootstrap_interval(
    values: Sequence[float], times: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of a mean, items drawn with replacement.

    For CIDEr and the like: each item keeps the score it has in the whole set, so that the
    weights of n-grams are those of the full corpus.

    Args:
        values: one per item.
        times: how many resamples.
        seed: of the drawing.
    """
    import numpy as np

    array = np.asarray(values, dtype=float)
    means = [float(drawn @ array) / len(array) for drawn in resamples(len(array), times, seed)]
    return percentiles(means)


def resamples(items: int, times: int = 1000, seed: int = 0) -> Iterator[Any]:
    """How often each item is drawn, with replacement, in each of some resamples.

    Args:
        items: how many there are.
        times: how many resamples.
        seed: of the drawing.

    Yields:
        counts (items,), as float64.
    """
    import numpy as np

    drawing = np.random.default_rng(seed)
    for _ in range(times):
        drawn = drawing.integers(items, size=items)
        yield np.bincount(drawn, minlength=items).astype(np.float64)


def percentiles(values: Sequence[float]) -> tuple[float, float]:
    """Where the middle 95 % of resampled values lie."""
    import numpy as np

    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


@dataclass(frozen=True)
class Paired:
    """Two runs on the same questions, first minus second.

    Args:
        n: questions.
        difference: of the means.
        error: its standard error.
        interval: 95 %, Student's; of no width where all questions differ alike.
        t: difference over error; 0 where both are 0.
        p: two-sided. Where all questions differ alike, which leaves no error to measure by, it is
            the sign test's.
        better: on how many questions the first scores more.
        worse: less.
    """

    n: int
    difference: float
    error: float
    interval: tuple[float, float]
    t: float
    p: float
    better: int
    worse: int


def paired_test(
    first: Sequence[float], second: Sequence[float], clusters: Sequence[Hashable] | None = None
) -> Paired:
    """Student's paired test, with clustered errors if questions share media.

    Args:
        first: scores of one run.
        second: scores of the other, question by question.
        clusters: what each question's media are.

    Raises:
        ValueError: other lengths, or no questions.
    """
    if len(first) != len(second) or not first:
        raise ValueError(
            f"a paired test needs two runs of one length, not {len(first)} and {len(second)}"
        )
    gaps = [a - b for a, b in zip(first, second, strict=True)]
    n, mean = len(gaps), sum(gaps) / len(gaps)
    groups = n if clusters is None else len(set(clusters))
    free = n - 1
    error = standard_error(gaps)
    if clusters is not None and 1 < groups < n:
        error, free = clustered_error(gaps, clusters), groups - 1
    t, p, half = 0.0, 1.0, 0.0
    if error > 1e-12 * abs(mean):  # sums of floats leave a hair where there is none
        from scipy.special import stdtr, stdtrit

        t = mean / error
        p, half = float(2 * stdtr(free, -abs(t))), float(stdtrit(free, 0.975)) * error
    elif mean:
        t, p = math.copysign(math.inf, mean), 0.5 ** (groups - 1)
    better, worse = sum(g > 0 for g in gaps), sum(g < 0 for g in gaps)
    return Paired(n, mean, error, (mean - half, mean + half), t, p, better, worse)
