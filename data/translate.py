"""From records to samples: which fields hold media, which the conversation.

Nothing here names a modality. A modality says which fields of a record are its own
(:meth:`onellm.Modality.claims`), and a data set's configuration may declare and rename.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onellm.data.locate import check_listed, is_numbers, locate, nested
from onellm.data.records import SUFFIXES, Record
from onellm.data.sample import Sample
from onellm.data.turns import (
    CAPTIONS,
    CONVERSATIONS,
    TEXTS,
    Marks,
    Turns,
    captions,
    conversation,
    parts,
    question,
    text_fields,
)
from onellm.errors import BadInput, ConfigError
from onellm.modality import Modality, is_there
from onellm.source import Source

LABELS = ("label", "qa")  # of which targets may make texts
DATA_TYPE = "data_type"
"""Field of the published JSONL files that names the modality, as the published code calls it."""

FILES = ("url", "path", "file", "file_name", "media_path")
TEXT = "text"
"""Declared of a data set, it says that there are no media."""

_PLACES = {"type", "index", "text"}  # of a part of a message that names no file
_LONGEST_PATH = 1000


class Translator:
    """Turns the records of one data set into samples.

    Args:
        name: of the data set; begins the samples' ids.
        modalities: known modalities by name.
        folder: what relative paths begin from.
        modality: of the media, where the field does not tell; "" leaves it to the fields, and
            ``"text"`` says that there are no media.
        fields: our field → theirs, such as ``{"caption": "TEXT"}``.
        derive: field → (field, what to replace in its text, by what).
        describe: ask the modality's caption prompt in front of a caption.
        only: the one modality of the run; captioned files of which no field tells are of it. ""
            where there are several.

    Raises:
        ConfigError: an unknown modality.
    """

    def __init__(
        self,
        name: str,
        modalities: Mapping[str, Modality],
        folder: Path,
        *,
        modality: str = "",
        fields: Mapping[str, str] | None = None,
        derive: Mapping[str, tuple[str, str, str]] | None = None,
        describe: bool = False,
        only: str = "",
    ) -> None:
        self.name, self.modalities, self.folder = name, modalities, folder
        self.plain = modality == TEXT
        self.declared = modalities[modality] if modality and not self.plain else None
        self.only = modalities.get(only)
        self.fields, self.derive, self.describe = fields or {}, derive or {}, describe
        names = {n for m in modalities.values() for n in (m.name, m.published_name, "media") if n}
        self._marks = Marks(names)
        named = ((n, m) for m in modalities.values() for n in (m.published_name, m.name))
        self._by_name = {name: modality for name, modality in named if name}
        self._suffixes = {s for m in modalities.values() for s in m.suffixes} - set(SUFFIXES)

    def sample(self, record: Record, index: int) -> Sample:
        """The sample of a record.

        Args:
            record: as the table has it.
            index: its place; stands in the id.

        Raises:
            BadInput: media without a text or the other way round, in a form nobody knows.
        """
        said = str(record.get(self.fields.get("id", "id"), ""))
        name = f"{self.name}/{said}#{index}" if said else f"{self.name}/#{index}"
        record = self._named(record, name)
        media, used = self._media(record, name)
        if not media:
            self._check_text_alone(record, name)
        return self._told(record, name, tuple(media), used)

    def told(self, record: Record, name: str, media: Sequence[tuple[str, Source]]) -> Sample:
        """The sample of a record whose media lie elsewhere, in the members of a tar say.

        Args:
            record: its texts and facts.
            name: the sample's id.
            media: pairs of modality and source.

        Raises:
            BadInput: texts in a form nobody knows.
        """
        return self._told(self._named(record, name), name, tuple(media), set())

    def _told(
        self, record: Record, name: str, media: tuple[tuple[str, Source], ...], used: set[str]
    ) -> Sample:
        texts = captions(record, name)
        turns = (("assistant", texts[0]),) if texts else conversation(record, name)
        others = texts[1:]
        if not turns and not any(is_there(record, field) for field in CONVERSATIONS):
            turns, others = question(record, name)
        if media:
            turns = tuple((role, self._marks.without(text)) for role, text in turns)
        else:
            self._check_marks(turns, record, name)
            turns = tuple((role, text.strip()) for role, text in turns)
        if self.describe and texts and media:
            turns = (("user", self.modalities[media[-1][0]].caption_prompt), *turns)
        meta = {k: v for k, v in record.items() if k not in {*used, *CONVERSATIONS, "media"}}
        return Sample(name, media, turns, meta, tuple(others))

    def group(self, record: Record) -> str:
        """Modalities of a record joined by ``+``, or ``"text"``; cheaper than the sample.

        Raises:
            BadInput: media in a form nobody knows.
        """
        record = self._named(record, "a record")
        if "media" in record and not self.plain:
            listed = check_listed(record["media"], "a record", self.modalities)
            names = [kind for kind, _ in listed]
        else:
            every = [*self._claims(record), *(c for _, own in self._inside(record) for c in own)]
            names = [modality.name for modality, _ in every]
        if not names:
            self._check_text_alone(record, "a record")
        return "+".join(dict.fromkeys(names)) or "text"

    def account(self, record: Record) -> str:
        """Which fields of a record are read as what, for the user.

        Example:
            >>> Translator("d", {"audio": ...}, Path()).account({"audio": "a.wav", "caption": "x"})
            "audio from 'audio', text from 'caption'"
        """
        named = self._named(record, "a record")
        listed = "media" in named and not self.plain
        claims = [] if listed else [(m.name, fields) for m, fields in self._claims(named)]
        claims = [("media", ("media",))] if listed else claims
        said = text_fields(named)
        read = [(what, fields) for what, fields in (*claims, ("text", said)) if fields]
        theirs = {ours: name for ours, name in self.fields.items() if name in record}
        told = ", ".join(
            f"{what} from {' and '.join(repr(theirs.get(f, f)) for f in fields)}"
            for what, fields in read
        )
        used = {f for _, fields in read for f in fields} | {"id", *self.derive}
        idle = ", ".join(repr(f) for f in named if f not in used)
        return (told or "nothing") + (f"; not read: {idle}" if idle else "")

    def _named(self, record: Record, name: str) -> Record:
        """The record under our field names, with what is derived from other fields."""
        named = dict(record)
        for ours, theirs in self.fields.items():
            if theirs in record:
                named[ours] = record[theirs]
                if theirs not in self.fields:
                    named.pop(theirs, None)
        for field, (base, old, new) in self.derive.items():
            value = named.get(base, record.get(base))
            if not isinstance(value, str) or not value:
                continue
            if old not in value:  # the field would be the other one's file
                expected = f"{old!r} in {base!r}, of which {field!r} is derived"
                raise BadInput(name, expected=expected, found=repr(value)[:100])
            named[field] = value.replace(old, new)
        return named

    # -- records without media --------------------------------------------------------------

    def _check_text_alone(self, record: Record, name: str) -> None:
        """Refuse a record that is no text alone, but one whose medium would be lost.

        Raises:
            BadInput: it holds a file of which nobody tells the modality, or a caption of nothing.
        """
        if self.plain:
            return
        for field in _captioned(record):
            raise BadInput(
                name,
                expected=f"the modality of the file under {field!r}",
                found="none",
                hint="Set 'modality' of the data set (--modality).",
            )
        unread = next((f for f, v in record.items() if f not in TEXTS and self._is_file(v)), None)
        if unread is not None:
            raise BadInput(
                name,
                expected="a field that tells the modality of its file",
                found=f"{_shown(record[unread])} under {unread!r}",
                hint=f"Name it: 'fields: {{MODALITY: {unread}}}'; or, if it is no medium, "
                "'modality: text'.",
            )
        if captions(record, name):
            self._check_caption_alone(record, name)
        elif not any(is_there(record, field) for field in (*TEXTS, *LABELS)):
            fields = ", ".join(map(repr, record)) or "(none)"
            raise BadInput(name, expected="a medium or a text", found=f"neither in {fields}")

    def _check_caption_alone(self, record: Record, name: str) -> None:
        filled = {f: v if is_there(record, f) else "-" for f, v in record.items()}
        wanted = [f for _, fields in self._claims(filled) for f in fields]
        empty = [f for f in (*wanted, *FILES) if f in record and not is_there(record, f)]
        if empty:
            expected, found = (
                f"a file under {empty[0]!r}, of which the text is a caption",
                "nothing",
            )
        elif (declared := self._declared(record)) is not None:
            expected = f"a file of {declared.name}, of which the text is a caption"
            found = f"the fields {', '.join(map(repr, record))}"
        else:
            return
        hint = "Texts of nothing are learned with 'modality: text'."
        raise BadInput(name, expected=expected, found=found, hint=hint)

    def _check_marks(self, turns: Turns, record: Record, name: str) -> None:
        """Refuse a question about a medium that is not there."""
        mark = "" if self.plain else self._marks.alone(turns)
        if mark:
            fields = ", ".join(repr(f) for f in record if f not in TEXTS)
            raise BadInput(
                name,
                expected=f"a medium for {mark} of its question",
                found=f"none in the fields {fields or '(none)'}",
                hint="Name its field: 'fields: {MODALITY: FIELD}'; or set 'modality: text'.",
            )

    def _is_file(self, value: Any) -> bool:
        """Whether a value looks like a file that a modality would read."""
        if isinstance(value, list | tuple) and value:
            value = value[0]
        if isinstance(value, Mapping):
            return any(value.get(key) is not None for key in ("bytes", "path", "array"))
        if isinstance(value, str):
            short = len(value) < _LONGEST_PATH and "\n" not in value
            return short and Path(value).suffix.lower() in self._suffixes
        return isinstance(value, bytes)

    # -- media ----------------------------------------------------------------------------

    def _claims(self, record: Record) -> list[tuple[Modality, tuple[str, ...]]]:
        """Which modality takes which fields, in the order of the record."""
        if self.plain:
            return []
        declared = self._declared(record)
        if declared is not None and not declared.claims(record):
            fields = self._any_file(record)
            return [(declared, fields)] if fields else []
        found = [(m, fields) for m in self.modalities.values() if (fields := m.claims(record))]
        if not found and self.only is not None:
            found = [(self.only, (field,)) for field in _captioned(record)]
        # A picture that belongs to a pair is not there for itself.
        whole = [(m, f) for m, f in found if not any(set(f) < set(other) for _, other in found)]
        place = {field: i for i, field in enumerate(record)}
        return sorted(whole, key=lambda entry: min(place[field] for field in entry[1]))

    def _declared(self, record: Record) -> Modality | None:
        """The modality that the data set declares, or else the record."""
        if self.declared is not None:
            return self.declared
        said = record.get(DATA_TYPE)
        return self._by_name.get(said) if isinstance(said, str) else None

    def _any_file(self, record: Record) -> tuple[str, ...]:
        """Where a declared modality's file stands: a neutral name, or another one's field.

        The published instruction data have ``image`` for files of every modality.
        """
        for field in FILES:
            if is_there(record, field):
                return (field,)
        return next((f[:1] for m in self.modalities.values() if (f := m.claims(record))), ())

    def _media(self, record: Record, name: str) -> tuple[list[tuple[str, Source]], set[str]]:
        if "media" in record and not self.plain:
            return self._listed(record["media"], name), {"media"}
        media: list[tuple[str, Source]] = []
        used: set[str] = set()
        for modality, fields in self._claims(record):
            used |= set(fields)
            for one in _each(record, fields, name):
                media.append((modality.name, self._source(modality, one, fields, name)))
        for part, claims in self._inside(record):
            media += [(m.name, self._source(m, part, fields, name)) for m, fields in claims]
            if not claims:
                hint = "Files beside 'type' are named as fields of a record are."
                found = f"the field(s) {', '.join(map(repr, part))}"
                raise BadInput(name, expected="media in messages", found=found, hint=hint)
        return media, used

    def _inside(
        self, record: Record
    ) -> list[tuple[Record, list[tuple[Modality, tuple[str, ...]]]]]:
        """Media that stand inside messages, as ``{"type": "image", "image": FILE}``.

        Those of which only the type is told stand in the record's own fields.
        """
        if self.plain:
            return []
        own = [dict(part) for part in parts(record) if set(part) - _PLACES]
        if not own:
            return []
        every = [(m, part) for part in own for m in self.modalities.values()]
        found = [(part, m, fields) for m, part in every if (fields := m.claims(part))]
        return [(part, [(m, f) for p, m, f in found if p is part]) for part in own]

    def _source(
        self, modality: Modality, record: Record, fields: tuple[str, ...], name: str
    ) -> Source:
        def locate(value: Any) -> Source:
            return self.locate(value, f"{name}{modality.suffixes[0]}")

        return modality.from_record(record, fields, locate)

    def _listed(self, entries: Any, name: str) -> list[tuple[str, Source]]:
        """Media in our own form: ``[["audio", "a.wav"], ["imu", {"data": "b.npy", …}]]``."""
        return [
            (kind, nested(value, f"{name}{self.modalities[kind].suffixes[0]}", self.folder))
            for kind, value in check_listed(entries, name, self.modalities)
        ]

    def locate(self, value: Any, name: str) -> Source:
        """A field's value as a source: see :func:`onellm.data.locate.locate`."""
        return locate(value, name, self.folder)


def _shown(value: Any) -> str:
    """A file's name, or what kind of value it is."""
    return repr(value)[:80] if isinstance(value, str) else f"a {type(value).__name__}"


def _captioned(record: Record) -> tuple[str, ...]:
    """The field of a file under a neutral name that has a caption; () without a file or caption."""
    fields = (field for field in FILES if is_there(record, field))
    return tuple(fields)[:1] if is_there(record, CAPTIONS[0]) else ()


def _each(record: Record, fields: tuple[str, ...], name: str) -> list[Record]:
    """A record for each medium where fields hold lists of files."""
    several = [
        f for f in fields if isinstance(record[f], list | tuple) and not is_numbers(record[f])
    ]
    if not several:
        return [record]
    counts = [len(record[f]) for f in several]
    if len(set(counts)) > 1:
        expected = f"as many files under each of {', '.join(map(repr, several))}"
        raise BadInput(name, expected=expected, found=" and ".join(map(str, counts)))
    return [record | {f: record[f][i] for f in several} for i in range(counts[0])]


def check_declared(name: str, modalities: Mapping[str, Modality]) -> None:
    """Refuse a data set of a modality that the model does not have.

    Raises:
        ConfigError: with the nearest spelling.
    """
    from onellm.spelling import did_you_mean

    if name and name != TEXT and name not in modalities:
        raise ConfigError(f"data: unknown modality {name!r}.{did_you_mean(name, modalities)}")
