"""What all caption metrics ask of their input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def aligned(
    metric: str, candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> list[str]:
    """The item ids in the candidates' order, after a check that both sides have them.

    Raises:
        ValueError: no items, other ids on the two sides, or an item without a reference.
    """
    if not candidates or candidates.keys() != references.keys():
        raise ValueError(f"{metric} needs items, and a candidate and references for each")
    if empty := [key for key, texts in references.items() if not texts]:
        raise ValueError(f"no reference for {', '.join(empty)}")
    return list(candidates)
