"""What a run that goes on takes over beside its tensors: counts of broken samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from onellm.data.faults import Faults


def fault_facts(faults: Faults) -> dict[str, Any]:
    """A process's counts of broken samples, as plain data."""
    return {
        "reads": faults.reads,
        "by_modality": dict(faults.by_modality),
        "by_file": dict(faults.by_file),
        "set_aside": faults.set_aside,
    }


def restore_faults(faults: Faults, told: Iterable[Mapping[str, Any]], rank: int) -> None:
    """Go on with the counts of all earlier processes, on the first one.

    The share of broken samples is judged by each process for itself, so the counts may be with
    any of them, but not with several.

    Args:
        faults: counts of this process.
        told: what :func:`fault_facts` gave on each.
        rank: of this process.
    """
    if rank:
        return
    for facts in told:
        faults.reads += int(facts["reads"])
        faults.by_modality += Counter(facts["by_modality"])
        faults.by_file += Counter(facts["by_file"])
        faults.set_aside += int(facts.get("set_aside", 0))
