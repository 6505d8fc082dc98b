"""From records to samples: which fields hold media, which the conversation.

Nothing here names a modality. A modality says which fields of a record are its own
(:meth:`onellm.Modality.claims`), and a data set's configuration may declare and rename.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onellm.data.records import Record
from onellm.data.sample import Sample
from onellm.errors import BadInput, ConfigError
from onellm.modality import Modality, is_there
from onellm.source import Blob, Source

Turns = tuple[tuple[str, str], ...]

ROLES = {
    **{role: "user" for role in ("human", "user")},
    **{role: "assistant" for role in ("gpt", "assistant", "chatgpt", "model", "bing", "bard")},
}
CONVERSATIONS = ("conversations", "messages", "turns")
CAPTIONS = ("caption", "text")
FILES = ("url", "path", "file", "file_name", "media_path")


class Translator:
    """Turns the records of one data set into samples.

    Args:
        name: of the data set; begins the samples' ids.
        modalities: known modalities by name.
        folder: what relative paths begin from.
        modality: of the media, where the field does not tell; "" leaves it to the fields.
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
        self.declared = modalities[modality] if modality else None
        self.only = modalities.get(only)
        self.fields, self.derive, self.describe = fields or {}, derive or {}, describe
        names = {n for m in modalities.values() for n in (m.name, m.published_name, "media") if n}
        marker = "|".join(sorted(map(re.escape, names)))
        self._marker = re.compile(rf"\n?<(?:{marker})>\n?")

    def sample(self, record: Record, index: int) -> Sample:
        """The sample of a record.

        Args:
            record: as the table has it.
            index: its place; stands in the id.

        Raises:
            BadInput: media without a text or the other way round, in a form nobody knows.
        """
        record = self._named(record)
        said = str(record.get("id", ""))
        name = f"{self.name}/{said}#{index}" if said else f"{self.name}/#{index}"
        media, used = self._media(record, name)
        texts = self._texts(record, name)
        if not media:
            self._check_file(record, name)
        turns = (("assistant", texts[0]),) if texts else self._turns(record, name)
        if self.describe and texts and media:
            turns = (("user", self.modalities[media[-1][0]].caption_prompt), *turns)
        meta = {k: v for k, v in record.items() if k not in {*used, *CONVERSATIONS, "media"}}
        return Sample(name, tuple(media), turns, meta, tuple(texts[1:]))

    def group(self, record: Record) -> str:
        """Modalities of a record joined by ``+``, or ``"text"``; cheaper than the sample.

        Raises:
            BadInput: media in a form nobody knows.
        """
        record = self._named(record)
        if "media" in record:
            listed = check_listed(record["media"], "a record", self.modalities)
            names = [kind for kind, _ in listed]
        else:
            names = [modality.name for modality, _ in self._claims(record)]
        if not names:
            self._check_file(record, "a record")
        return "+".join(dict.fromkeys(names)) or "text"

    def _check_file(self, record: Record, name: str) -> None:
        """Refuse a caption of a file when nobody says of which modality the file is."""
        for field in _captioned(record):
            raise BadInput(
                name,
                expected=f"the modality of the file under {field!r}",
                found="none",
                hint="Set 'modality' of the data set (--modality).",
            )

    def _named(self, record: Record) -> Record:
        """The record under our field names, with what is derived from other fields."""
        named = dict(record)
        for ours, theirs in self.fields.items():
            if theirs in record:
                named[ours] = record[theirs]
                if theirs not in self.fields:
                    named.pop(theirs, None)
        for field, (base, old, new) in self.derive.items():
            value = named.get(base, record.get(base))
            if isinstance(value, str):
                named[field] = value.replace(old, new)
        return named

    # -- media ----------------------------------------------------------------------------

    def _claims(self, record: Record) -> list[tuple[Modality, tuple[str, ...]]]:
        """Which modality takes which fields, in the order of the record."""
        if self.declared is not None:
            fields = self.declared.claims(record) or self._any_file(record)
            return [(self.declared, fields)] if fields else []
        found = [(m, fields) for m in self.modalities.values() if (fields := m.claims(record))]
        if not found and self.only is not None:
            found = [(self.only, (field,)) for field in _captioned(record)]
        # A picture that belongs to a pair is not there for itself.
        whole = [(m, f) for m, f in found if not any(set(f) < set(other) for _, other in found)]
        place = {field: i for i, field in enumerate(record)}
        return sorted(whole, key=lambda entry: min(place[field] for field in entry[1]))

    def _any_file(self, record: Record) -> tuple[str, ...]:
        """Where a declared modality's file stands: a neutral name, or another one's field.

        The published instruction data have ``image`` for files of every modality.
        """
        for field in FILES:
            if is_there(record, field):
                return (field,)
        return next((f[:1] for m in self.modalities.values() if (f := m.claims(record))), ())

    def _media(self, record: Record, name: str) -> tuple[list[tuple[str, Source]], set[str]]:
        if "media" in record:
            return self._listed(record["media"], name), {"media"}
        media: list[tuple[str, Source]] = []
        used: set[str] = set()
        for modality, fields in self._claims(record):
            used |= set(fields)
            for one in _each(record, fields):
                media.append((modality.name, self._source(modality, one, fields, name)))
        return media, used

    def _source(
        self, modality: Modality, record: Record, fields: tuple[str, ...], name: str
    ) -> Source:
        def locate(value: Any) -> Source:
            return self.locate(value, f"{name}{modality.suffixes[0]}")

        return modality.from_record(record, fields, locate)

    def _listed(self, entries: Any, name: str) -> list[tuple[str, Source]]:
        """Media in our own form: ``[["audio", "a.wav"], ["imu", {"data": "b.npy", …}]]``."""
        return [
            (kind, self._nested(value, f"{name}{self.modalities[kind].suffixes[0]}"))
            for kind, value in check_listed(entries, name, self.modalities)
        ]

    def _nested(self, value: Any, name: str) -> Source:
        if isinstance(value, list | tuple) and not _is_numbers(value):
            return tuple(self._nested(part, name) for part in value)
        return self.locate(value, name)

    def locate(self, value: Any, name: str) -> Source:
        """A field's value as a source: paths from the data set's folder, bytes named.

        Args:
            value: a path, bytes, ``{"bytes": …, "path": …}``, ``{"array": …, "sampling_rate": …}``,
                ``{"data": …}`` with facts, numbers, or an object that the modality reads.
            name: file name for bytes that come without one.

        Raises:
            BadInput: nothing, or a number where a file is to stand.
        """
        if isinstance(value, str):
            return str(self.folder / value)
        if isinstance(value, bytes):
            return Blob(name, value)
        if isinstance(value, Mapping) and value.get("bytes") is not None:
            own = Path(str(value.get("path") or "")).suffix
            return Blob(f"{name}{own}" if own else name, value["bytes"])
        if isinstance(value, Mapping) and value.get("path"):
            return str(self.folder / str(value["path"]))
        if isinstance(value, Mapping) and "array" in value:
            data = self._nested(value["array"], name)
            return {"data": data, "rate_hz": value.get("sampling_rate")}
        if isinstance(value, Mapping) and "data" in value:
            return {**value, "data": self._nested(value["data"], name)}
        if _is_numbers(value):
            try:
                return np.asarray(value, dtype=np.float32)
            except ValueError as error:
                raise BadInput(name, expected="rows of numbers", found=f"{error}") from error
        if value is None or isinstance(value, bool | int | float | Mapping):
            expected = "a file, its bytes, numbers, or a mapping with 'bytes', 'path' or 'array'"
            raise BadInput(name, expected=expected, found=repr(value)[:60])
        return value

    # -- text -----------------------------------------------------------------------------

    def _texts(self, record: Record, name: str) -> list[str]:
        """Captions of a record without a conversation."""
        if any(field in record for field in (*CONVERSATIONS, "question")):
            return []
        value = next((record[f] for f in CAPTIONS if record.get(f)), None)
        texts = value if isinstance(value, list | tuple) else [value] if value else []
        for text in texts:
            if not isinstance(text, str):
                raise BadInput(name, expected="captions as text", found=type(text).__name__)
        return [text.strip() for text in texts if text.strip()]

    def _turns(self, record: Record, name: str) -> Turns:
        field = next((f for f in CONVERSATIONS if f in record), None)
        if field is None:
            asked, answer = record.get("question"), record.get("answer")
            if not asked and not answer:
                return ()
            turns = [("user", self._clean(asked)), ("assistant", self._clean(answer))]
            return tuple(turns)
        if not isinstance(record[field], list | tuple):
            found = type(record[field]).__name__
            raise BadInput(name, expected=f"a list under {field!r}", found=found)
        turns, system = [], ""
        for turn in record[field]:
            role, text = _role_and_text(turn, name)
            if role == "system":
                system = f"{text}\n\n"
                continue
            if role not in ROLES:
                known = ", ".join(ROLES)
                raise BadInput(name, expected=f"a role of {known}", found=repr(role))
            text = self._clean(text)
            if ROLES[role] == "user":
                text, system = f"{system}{text}", ""
            turns.append((ROLES[role], text))
        # Shared chats may begin in the middle of an answer, or end with a question.
        if len(turns) > 1 and turns[0][0] == "assistant":
            turns = turns[1:]
        while turns and turns[-1][0] == "user":
            turns.pop()
        return tuple(turns)

    def _clean(self, text: Any) -> str:
        """Text without the marks that say where a medium goes: media stand behind BOS."""
        return self._marker.sub("\n", str(text or "")).strip()


def _captioned(record: Record) -> tuple[str, ...]:
    """The field of a file under a neutral name that has a caption; () without a file or caption."""
    fields = (field for field in FILES if is_there(record, field))
    return tuple(fields)[:1] if is_there(record, CAPTIONS[0]) else ()


def _each(record: Record, fields: tuple[str, ...]) -> list[Record]:
    """A record for each medium where fields hold lists of files."""
    several = [
        f for f in fields if isinstance(record[f], list | tuple) and not _is_numbers(record[f])
    ]
    if not several:
        return [record]
    count = min(len(record[f]) for f in several)
    return [record | {f: record[f][i] for f in several} for i in range(count)]


def _is_numbers(value: Any) -> bool:
    """Whether a value is a list of numbers, or of such lists: a signal, not several files."""
    while isinstance(value, list | tuple) and value:
        value = value[0]
        if isinstance(value, int | float) and not isinstance(value, bool):
            return True
    return False


def _role_and_text(turn: Any, name: str) -> tuple[str, str]:
    if isinstance(turn, Mapping):
        role, said = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        if isinstance(said, list):  # parts, of which the text alone is said
            said = "\n".join(str(p.get("text", "")) for p in said if isinstance(p, Mapping)).strip()
        if isinstance(role, str) and isinstance(said, str):
            return role.lower(), said
    elif isinstance(turn, list | tuple) and len(turn) == 2:
        return str(turn[0]).lower(), str(turn[1])
    expected = "turns such as {'from': 'human', 'value': '…'}"
    raise BadInput(name, expected=expected, found=repr(turn)[:60])


def check_listed(
    entries: Any, name: str, modalities: Mapping[str, Modality]
) -> list[tuple[str, Any]]:
    """Media in our own form, as pairs of modality and source.

    Args:
        entries: ``[["audio", "a.wav"], …]``.
        name: of the sample, for error messages.
        modalities: known modalities by name.

    Raises:
        BadInput: another form, or an unknown modality.
    """
    listed = []
    for entry in entries if isinstance(entries, list | tuple) else [entries]:
        if not (isinstance(entry, list | tuple) and len(entry) == 2):
            expected = 'pairs such as ["MODALITY", "FILE"] under "media"'
            raise BadInput(name, expected=expected, found=repr(entry)[:60])
        kind, value = entry
        if not isinstance(kind, str) or kind not in modalities:
            known = ", ".join(modalities)
            raise BadInput(name, expected=f"one of {known}", found=f"the modality {kind!r}")
        listed.append((kind, value))
    return listed


def check_declared(name: str, modalities: Mapping[str, Modality]) -> None:
    """Refuse a data set of a modality that the model does not have.

    Raises:
        ConfigError: with the nearest spelling.
    """
    from onellm.spelling import did_you_mean

    if name and name not in modalities:
        raise ConfigError(f"data: unknown modality {name!r}.{did_you_mean(name, modalities)}")
