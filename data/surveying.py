"""Going through all data of a run before it is booked: what is broken, how long samples are.

Nothing here needs weights; of a model only its options and its text tokenizer are read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

from onellm.data.lists import name_of, outline
from onellm.data.loader import Encode, medium_key
from onellm.data.sample import Sample
from onellm.data.workers import in_processes
from onellm.errors import BadInput
from onellm.modality import Modality
from onellm.prompts import encode_example
from onellm.registry import get_modality, modality_classes
from onellm.splice import IGNORED
from onellm.text import Span, TextTokenizer

JOB = 16
KINDS = ("missing", "broken", "unsupervised", "too long")
"""What may be wrong with a sample. A long text is cut off; with the others it cannot be used."""

LEFT_OUT = "(left out)"
"""Stands for the list of a sample that is in none."""


@dataclass(frozen=True)
class Reading:
    """What of a model the data depend on.

    Args:
        modalities: with the model's options, by name.
        encode: turns → ids and labels; where no text tokenizer is known, of words.
        medium_tokens: positions that a medium takes in the LLM.
        note: what could not be had, for the user.
    """

    modalities: Mapping[str, Modality]
    encode: Encode
    medium_tokens: int
    note: str = ""


def reading_of(model: str = "", tokenizer: str = "") -> Reading:
    """Read a saved model's options and tokenizer; the published options without a model.

    Args:
        model: folder of a saved model, or a hub id.
        tokenizer: a folder or hub id of a text tokenizer, in place of the model's.

    Raises:
        CheckpointError: there is no such model or tokenizer.
    """
    from onellm.checkpoint import TEXT, read_description
    from onellm.model_folder import CONFIG, folder_of
    from onellm.text import load_text_tokenizer

    names: dict[str, dict[str, Any]] = {name: {} for name in modality_classes()}
    queries, prompts, text = 30, "plain", None
    if model:
        folder = folder_of(model)
        described = read_description(folder / CONFIG).model
        names, prompts = described.modalities, described.prompt_format
        queries = described.projector.queries
        if (folder / TEXT).is_dir():
            text = load_text_tokenizer(folder / TEXT)
    if tokenizer:
        text = _tokenizer(tokenizer)
    modalities = {name: get_modality(name, **options) for name, options in names.items()}
    words = cast(TextTokenizer, _Words())
    encode = partial(encode_example, text or words, prompts if text else "plain")
    note = "" if text else "no text tokenizer: name one with --model or --tokenizer"
    return Reading({m.name: m for m in modalities.values()}, encode, queries + 2, note)


def _tokenizer(place: str) -> Any:
    from onellm.errors import CheckpointError
    from onellm.text import HFText, load_text_tokenizer

    if Path(place).is_dir():
        return load_text_tokenizer(place)
    from transformers import AutoTokenizer

    try:
        return HFText(AutoTokenizer.from_pretrained(place))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{place}: no text tokenizer ({error})") from error


class _Words:
    """As much of a text tokenizer as counting takes, of words."""

    bos_id, eos_id = 0, 1

    def encode(self, text: str) -> tuple[list[int], list[Span]]:
        spans = [match.span() for match in re.finditer(r"\S+", text)]
        return [2] * len(spans), spans


@dataclass(frozen=True)
class Fault:
    """What is wrong with a sample.

    Args:
        kind: one of :data:`KINDS`.
        sample: its id.
        message: file, expected and found.
    """

    kind: str
    sample: str
    message: str


@dataclass(frozen=True)
class Look:
    """What was seen of one sample.

    Args:
        part: index of its list.
        modalities: of its media; None where it cannot be read.
        tokens: positions it takes in the LLM, media included; 0 where it has no text.
        learned: supervised tokens.
        faults: what is wrong with it.
    """

    part: int
    modalities: tuple[str, ...] | None
    tokens: int = 0
    learned: int = 0
    faults: tuple[Fault, ...] = ()


class Surveyor:
    """Looks at samples.

    Args:
        parts: lists of samples.
        reading: modalities and text tokenizer.
        max_tokens: longest text; 0 for no limit.
        media: whether media are read.
    """

    def __init__(
        self,
        parts: Sequence[Sequence[Sample]],
        reading: Reading,
        *,
        max_tokens: int = 0,
        media: bool = True,
    ) -> None:
        self.parts, self.reading = parts, reading
        self.max_tokens, self.media = max_tokens, media
        self._seen: dict[str, str] = {}  # files that many samples ask about

    def look(self, place: tuple[int, int]) -> Look:
        """Look at one sample: (part, index)."""
        part, index = place
        try:
            sample = self.parts[part][index] if self.media else outline(self.parts[part], index)
        except BadInput as error:
            fault = Fault("broken", f"#{index}", str(error))
            return Look(part, None, faults=(fault,))
        faults = list(self._media(sample)) if self.media else []
        tokens = learned = 0
        try:
            tokens, learned, said = self._text(sample)
            faults += [Fault(kind, sample.id, why) for kind, why in said]
        except BadInput as error:
            faults.append(Fault("broken", sample.id, str(error)))
        names = tuple(name for name, _ in sample.media)
        return Look(part, names, tokens, learned, tuple(faults))

    def _media(self, sample: Sample) -> Iterator[Fault]:
        for position, (name, source) in enumerate(sample.media):
            key = medium_key(sample, position)
            if key not in self._seen:
                self._seen[key] = ""
                try:
                    self.reading.modalities[name].load(source)
                except BadInput as error:
                    self._seen[key] = f"{_kind_of(error)}|{error}"
            kind, _, message = self._seen[key].partition("|")
            if kind:
                yield Fault(kind, sample.id, message)

    def _text(self, sample: Sample) -> tuple[int, int, list[tuple[str, str]]]:
        """Positions, supervised tokens within the limit, and what is wrong."""
        if not sample.turns:
            return 0, 0, [("unsupervised", f"{sample.id}: expected a text; found none")]
        ids, labels = self.reading.encode(sample.turns)
        limit = self.max_tokens or len(ids)
        learned = int((labels[1:limit] != IGNORED).sum())
        tokens = len(ids) + self.reading.medium_tokens * len(sample.media)
        wrong = []
        if not learned:
            found = f"{len(ids)} tokens, none learned within {limit}"
            wrong.append(("unsupervised", f"{sample.id}: expected an answer; found {found}"))
        elif len(ids) > limit:
            found = f"{len(ids)} tokens"
            wrong.append(("too long", f"{sample.id}: expected at most {limit}; found {found}"))
        return tokens, learned, wrong

    def looks(self, workers: int = 0) -> Iterator[Look]:
        """Look at every sample once, in order.

        Args:
            workers: processes that share the work; 0 does it here.
        """
        places = ((part, index) for part, own in enumerate(self.parts) for index in range(len(own)))
        if not workers:
            yield from map(self.look, places)
            return

        def name(place: tuple[int, int]) -> str:
            return name_of(self.parts[place[0]], place[1])

        for looks in in_processes(self.look, _batches(places), workers, name=name):
            yield from looks


def _kind_of(error: BadInput) -> str:
    return "missing" if error.found == "no such file" else "broken"


def _batches(places: Iterator[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    batch: list[tuple[int, int]] = []
    for place in places:
        batch.append(place)
        if len(batch) == JOB:
            yield batch
            batch = []
    if batch:
        yield batch


@dataclass
class Survey:
    """What was seen of a run's data.

    Args:
        names: of its lists.
        groups: the modalities of each list, for samples that cannot be read.
        samples: how many there are, by list and modalities.
        faulty: samples with each kind of fault, by list and modalities.
        tokens: positions of each sample, by modalities.
        learned: supervised tokens of each sample, by modalities.
        faults: all of them, in order.
        unopened: files that could not be opened.
    """

    names: Sequence[str]
    groups: Sequence[str]
    samples: Counter[tuple[str, str]] = field(default_factory=Counter)
    faulty: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    tokens: dict[str, list[int]] = field(default_factory=dict)
    learned: dict[str, list[int]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    unopened: list[Fault] = field(default_factory=list)

    def add(self, look: Look) -> None:
        """Count one look."""
        group = self.groups[look.part]
        if look.modalities is not None:
            group = "+".join(dict.fromkeys(look.modalities)) or "text"
        name = self.names[look.part]
        self.samples[name, group] += 1
        for kind in {fault.kind for fault in look.faults}:
            self.faulty[name, group, kind] += 1
        self.faults += look.faults
        if look.tokens:
            self.tokens.setdefault(group, []).append(look.tokens)
            self.learned.setdefault(group, []).append(look.learned)

    def add_left_out(self, group: str, file: str, message: str) -> None:
        """Count a sample that was left out when the data were opened.

        Args:
            group: its modalities.
            file: what was at fault.
            message: what was wrong.
        """
        self.samples[LEFT_OUT, group] += 1
        self.faulty[LEFT_OUT, group, "broken"] += 1
        self.faults.append(Fault("broken", file, message))

    def add_unopened(self, error: BadInput) -> None:
        """Count a file that could not be opened, of which nobody knows how many samples it has.

        Args:
            error: what was wrong with it.
        """
        self.unopened.append(Fault(_kind_of(error), error.source, f"{error}"))

    @property
    def usable(self) -> bool:
        """Whether every sample can be trained on."""
        return not self.unopened and all(fault.kind == "too long" for fault in self.faults)

    def rows(self) -> list[list[str]]:
        """List, modalities, samples, and how many have each kind of fault."""
        return [
            [name, group, f"{count:,}"] + [f"{self.faulty[name, group, kind]:,}" for kind in KINDS]
            for (name, group), count in self.samples.items()
        ]


def survey(
    names: Sequence[str],
    groups: Sequence[str],
    surveyor: Surveyor,
    workers: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> Survey:
    """Look at every sample.

    Args:
        names: of the surveyor's lists.
        groups: their modalities.
        surveyor: looks.
        workers: processes that share the work.
        advance: called after each sample.
    """
    found = Survey(names, groups)
    for look in surveyor.looks(workers):
        found.add(look)
        advance()
    return found
