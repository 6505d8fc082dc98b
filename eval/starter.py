"""What is asked about shards in the starter pack's format: labels, a control, captions."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence

from onellm.data.sample import Sample
from onellm.data.targets import examples
from onellm.errors import BadInput, ConfigError
from onellm.eval.annotations import Entry
from onellm.eval.items import Item, item_of
from onellm.eval.task import AnswerSettings, load_task
from onellm.spelling import did_you_mean

CLOSED, SHUFFLED, SECOND, CAPTION = (
    *("starter_closed", "starter_shuffled", "starter_second", "starter_caption"),
)

STARTER_TASKS = (CLOSED, SHUFFLED, SECOND, CAPTION)
"""``closed``: a sample's first question. ``shuffled``: the same with another sample's medium, the
control. ``second``: its second question. ``caption``: the modality's caption prompt."""

_TARGETS = {CLOSED: "closed", SHUFFLED: "closed", SECOND: "yes_no", CAPTION: "describe"}


def starter_items(
    samples: Mapping[str, Sequence[Sample]],
    caption_prompts: Mapping[str, str],
    *,
    seed: int = 0,
    tasks: Iterable[str] = STARTER_TASKS,
    control_items: int = 100,
    answer_tokens: int = 12,
    caption_tokens: int = 24,
) -> list[Item]:
    """Everything that the quick start asks.

    Args:
        samples: test samples by modality, one medium each.
        caption_prompts: the question that asks for a caption, by modality.
        seed: of the shuffled-media control.
        tasks: names of :data:`STARTER_TASKS`.
        control_items: a modality with few samples is shuffled in several ways, so that its
            control has about this many items and is not a matter of luck.
        answer_tokens: answers to questions are cut behind this many tokens.
        caption_tokens: captions are cut behind this many tokens.

    Returns:
        items by task, then by modality; a sample without a second question or a caption has no
        such item, and the only sample of a modality has no control.

    Raises:
        ConfigError: unknown task.
        BadInput: two samples of a modality with the same id.
    """
    items: list[Item] = []
    for name in tasks:
        if name not in STARTER_TASKS:
            raise ConfigError(f"unknown task {name!r}.{did_you_mean(name, STARTER_TASKS)}")
        limit = caption_tokens if name == CAPTION else answer_tokens
        task, settings = load_task(name), AnswerSettings(max_new_tokens=limit)
        found = starter_entries(
            samples, name, caption_prompts, seed=seed, control_items=control_items
        )
        items += [item_of(task, entry, settings=settings) for entry in found]
    return items


def starter_entries(
    samples: Mapping[str, Sequence[Sample]],
    task: str,
    caption_prompts: Mapping[str, str],
    *,
    seed: int = 0,
    control_items: int = 100,
) -> Iterator[Entry]:
    """The questions of one task; see :func:`starter_items`.

    Args:
        samples: test samples by modality, one medium each.
        task: a name of :data:`STARTER_TASKS`.
        caption_prompts: the question that asks for a caption, by modality.
        seed: of the shuffled-media control.
        control_items: about how many a modality's control has.

    Raises:
        BadInput: two samples of a modality with the same id.
    """
    for modality, found in samples.items():
        _check_ids(modality, found)
        asked = examples(found, _TARGETS[task], caption_prompts[modality])
        orders = [asked]
        if task == SHUFFLED:
            rounds = range(_rounds(len(asked), control_items))
            orders = [shuffled(asked, f"{seed}/{modality}", n) for n in rounds]
        for shown in orders:
            for mine, other in zip(asked, shown, strict=True):
                yield _entry(modality, mine, other)


def _entry(modality: str, asked: Sample, shown: Sample) -> Entry:
    (_, question), (_, answer) = asked.turns
    key = f"{modality}/{asked.id}"
    return Entry(
        id=key if shown is asked else f"{key}/{shown.id}",
        target=answer,
        values={"question": question},
        meta={"modality": modality, "sample": asked.id},
        media=tuple((name, shown.id, source) for name, source in shown.media),
    )


def shuffled(samples: Sequence[Sample], seed: str, number: int = 0) -> list[Sample]:
    """Samples in another order in which none is in its own place: a seeded derangement.

    What a perfect model scores against such a control is the chance that two different samples
    have the same answer, about the sum over classes of p_c squared. That is the majority rate
    where all classes are equally common, and somewhat below it elsewhere. A model that ignores
    its medium and always says the commonest answer scores the majority rate exactly. A control
    far *above* it would mean that questions give answers away.

    Args:
        samples: at least two.
        seed: picks a random cycle through all samples.
        number: how many further steps along the cycle a sample's medium comes from; orders with
            different numbers (below ``len(samples) - 1``) agree nowhere.
    """
    order = list(range(len(samples)))
    random.Random(f"derangement/{seed}").shuffle(order)
    steps = 1 + number
    shown = list(samples)
    for place, index in enumerate(order):
        shown[index] = samples[order[(place + steps) % len(order)]]
    return shown


def _rounds(count: int, control_items: int) -> int:
    """How many derangements: none of one sample, at most all of them."""
    return min(count - 1, max(1, round(control_items / count))) if count > 1 else 0


def _check_ids(modality: str, samples: Sequence[Sample]) -> None:
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen:
            raise BadInput(f"{modality} sample {sample.id}", expected="unique ids", found="two")
        seen.add(sample.id)
