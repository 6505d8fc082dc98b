"""How sure a mean is: Wilson, clustered and bootstrap intervals; paired test of two runs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


def wilson(hits: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a rate.

    Args:
        hits: how many were right.
        n: of how many; with none the interval is (0, 1).
        z: quantile; 95 % by default.
    """
    if n == 0:
        return 0.0, 1.0
    rate, zz = hits / n, z * z
    centre = (rate + zz / (2 * n)) / (1 + zz / n)
    half = z / (1 + zz / n) * math.sqrt(rate * (1 - rate) / n + zz / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


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
    """95 % interval of a mean: normal, with clustered errors if questions share media.

    Rates of independent hits and misses have Wilson's interval instead.
    """
    shared = clusters is not None and len(set(clusters)) < len(values)
    if not shared and all(v in (0, 1) for v in values):
        return wilson(int(sum(values)), len(values))
    mean = sum(values) / len(values)
    error = clustered_error(values, clusters) if clusters and shared else standard_error(values)
    return mean - Z95 * error, mean + Z95 * error


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

    array, drawing = np.asarray(values, dtype=float), np.random.default_rng(seed)
    means = [array[drawing.integers(len(array), size=len(array))].mean() for _ in range(times)]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


@dataclass(frozen=True)
class Paired:
    """Two runs on the same questions, first minus second.

    Args:
        n: questions.
        difference: of the means.
        error: its standard error.
        interval: 95 %, Student's.
        t: difference over error; 0 where both are 0.
        p: two-sided.
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
    free = n - 1
    error = standard_error(gaps)
    if clusters is not None and 1 < len(set(clusters)) < n:
        error, free = clustered_error(gaps, clusters), len(set(clusters)) - 1
    t, p, half = 0.0, 1.0, 0.0
    if error > 0:
        from scipy.special import stdtr, stdtrit

        t = mean / error
        p, half = float(2 * stdtr(free, -abs(t))), float(stdtrit(free, 0.975)) * error
    elif mean:
        t, p = math.copysign(math.inf, mean), 0.0
    better, worse = sum(g > 0 for g in gaps), sum(g < 0 for g in gaps)
    return Paired(n, mean, error, (mean - half, mean + half), t, p, better, worse)
