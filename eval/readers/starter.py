"""Shards in the starter pack's format, ``<modality>-test.tar``, read by their modalities."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from onellm.eval.annotations import Entry


def read(
    files: Mapping[str, Path],
    task: str,
    split: str = "test",
    modalities: Sequence[str] = (),
    seed: int = 0,
    control_items: int = 100,
) -> Iterator[Entry]:
    """Yield one kind of question about every sample; see :mod:`onellm.eval.starter`.

    Modalities take turns, so that the first questions are about all of them.

    Args:
        files: ``folder`` of shards.
        task: which questions.
        split: ``train`` or ``test``.
        modalities: those to ask about; all that the folder has if left out.
        seed: of the shuffled-media control.
        control_items: about how many a modality's control has.
    """
    from onellm.data.shards import read_folder, shards_of
    from onellm.eval.starter import starter_entries
    from onellm.registry import get_modality

    names = list(modalities) or list(shards_of(files["folder"], split))
    known = {name: get_modality(name) for name in names}
    samples = read_folder(files["folder"], split, known, names)
    prompts = {name: modality.caption_prompt for name, modality in known.items()}
    found = starter_entries(samples, task, prompts, seed=seed, control_items=control_items)
    by_modality: dict[str, list[Entry]] = {}
    for entry in found:
        by_modality.setdefault(entry.meta["modality"], []).append(entry)
    for round_ in zip_longest(*by_modality.values()):
        yield from (entry for entry in round_ if entry is not None)
