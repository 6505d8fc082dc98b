"""From labelled samples to questions: what is asked, about which medium, with which true answer."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from onellm.data.sample import Sample
from onellm.data.targets import examples
from onellm.errors import BadInput, ConfigError
from onellm.source import Source
from onellm.spelling import did_you_mean

CLOSED, SHUFFLED, SECOND, CAPTION = "closed", "shuffled", "second", "caption"

TASKS = (CLOSED, SHUFFLED, SECOND, CAPTION)
"""``closed``: a sample's first question. ``shuffled``: the same with another sample's medium, the
control. ``second``: its second question. ``caption``: the modality's caption prompt."""

_TARGETS = {CLOSED: "closed", SHUFFLED: "closed", SECOND: "yes_no", CAPTION: "describe"}


@dataclass(frozen=True)
class Medium:
    """A medium to be shown.

    Args:
        modality: its modality's name.
        id: of the sample it comes from.
        source: see :mod:`onellm.source`.
    """

    modality: str
    id: str
    source: Source = field(compare=False, repr=False)


@dataclass(frozen=True)
class Item:
    """One question about some media.

    Args:
        task: a name of :data:`TASKS`, or another evaluation's.
        modality: what the score counts for.
        id: of the sample whose question and answer these are.
        media: what is shown, in order.
        question: the user's turn.
        reference: the true answer.
        max_new_tokens: answers are cut behind this many tokens.
    """

    task: str
    modality: str
    id: str
    media: tuple[Medium, ...]
    question: str
    reference: str
    max_new_tokens: int = 12

    @property
    def key(self) -> str:
        """A name of everything the answer depends on but the model: 16 hexadecimal digits."""
        media = [f"{m.modality}:{m.id}" for m in self.media]
        parts = [self.task, self.modality, self.id, *media, self.question, self.reference]
        text = "\x1f".join([*parts, str(self.max_new_tokens)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def starter_items(
    samples: Mapping[str, Sequence[Sample]],
    caption_prompts: Mapping[str, str],
    *,
    seed: int = 0,
    tasks: Iterable[str] = TASKS,
    control_items: int = 100,
    answer_tokens: int = 12,
    caption_tokens: int = 24,
) -> list[Item]:
    """Everything that is asked about shards in the starter pack's format.

    Args:
        samples: test samples by modality, one medium each.
        caption_prompts: the question that asks for a caption, by modality.
        seed: of the shuffled-media control.
        tasks: names of :data:`TASKS`.
        control_items: a modality with few samples is shuffled in several ways, so that its
            control has about this many items and is not a matter of luck.
        answer_tokens: answers to questions are cut behind this many tokens.
        caption_tokens: captions are cut behind this many tokens.

    Returns:
        items by modality, then by task; a sample without a second question or a caption has no
        such item, and the only sample of a modality has no control.

    Raises:
        ConfigError: unknown task.
        BadInput: two samples of a modality with the same id.
    """
    wanted = list(tasks)
    for task in wanted:
        if task not in TASKS:
            raise ConfigError(f"unknown task {task!r}.{did_you_mean(task, TASKS)}")
    items: list[Item] = []
    for modality, found in samples.items():
        _check_ids(modality, found)
        for task in wanted:
            limit = caption_tokens if task == CAPTION else answer_tokens
            asked = examples(found, _TARGETS[task], caption_prompts[modality])
            orders = [asked]
            if task == SHUFFLED:
                rounds = range(_rounds(len(asked), control_items))
                orders = [shuffled(asked, f"{seed}/{modality}", n) for n in rounds]
            for shown in orders:
                pairs = zip(asked, shown, strict=True)
                items += [_item(task, modality, a, b, limit) for a, b in pairs]
    return items


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


def _item(task: str, modality: str, asked: Sample, shown: Sample, limit: int) -> Item:
    (_, question), (_, reference) = asked.turns
    media = tuple(Medium(name, shown.id, source) for name, source in shown.media)
    return Item(task, modality, asked.id, media, question, reference, limit)


def _check_ids(modality: str, samples: Sequence[Sample]) -> None:
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen:
            raise BadInput(f"{modality} sample {sample.id}", expected="unique ids", found="two")
        seen.add(sample.id)
