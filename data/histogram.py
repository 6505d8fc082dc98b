"""How long samples are: numbers, bars of text, a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

QUANTILES = (0, 0.5, 0.9, 0.99, 1)
_BAR = 40


def length_rows(tokens: Mapping[str, Sequence[int]]) -> list[list[str]]:
    """Modalities, samples, positions in all, and :data:`QUANTILES` of a sample's positions."""
    rows = []
    for group, lengths in tokens.items():
        cuts = np.quantile(lengths, QUANTILES, method="nearest")
        rows.append([group, f"{len(lengths):,}", f"{sum(lengths):,}", *(f"{c:,}" for c in cuts)])
    return rows


def edges_of(lengths: Sequence[int], bins: int = 12) -> list[int]:
    """Borders of bins of equal ratio, since lengths spread over powers of two."""
    low, high = max(1, min(lengths)), max(lengths) + 1
    return sorted({round(edge) for edge in np.geomspace(low, high, bins + 1)})


def bars(lengths: Sequence[int], bins: int = 12) -> list[str]:
    """A histogram in lines of text.

    Example:
        >>> for line in bars([1, 1, 2, 9], bins=2): print(line)
            1-2         3  ########################################
            3-9         1  #############
    """
    edges = edges_of(lengths, bins)
    counts, _ = np.histogram(lengths, edges)
    return [
        f"{low:>5}-{high - 1:<5} {count:>7,}  {'#' * round(_BAR * count / max(counts))}"
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
    ]


def draw(tokens: Mapping[str, Sequence[int]], path: Path) -> None:
    """Write the histogram of all groups as a PNG.

    Args:
        tokens: positions of each sample, by modalities.
        path: the file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    edges = edges_of([n for lengths in tokens.values() for n in lengths], 40)
    axes.hist(list(tokens.values()), edges, stacked=True, label=list(tokens))
    axes.set(xscale="log", xlabel="positions in the LLM", ylabel="samples")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
