"""The texts of a record: captions, questions and answers, conversations."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from onellm.data.records import Record
from onellm.errors import BadInput
from onellm.modality import is_there

Turns = tuple[tuple[str, str], ...]

ROLES = {
    **{role: "user" for role in ("human", "user")},
    **{role: "assistant" for role in ("gpt", "assistant", "chatgpt", "model", "bing", "bard")},
}
CONVERSATIONS = ("conversations", "messages", "turns")
CAPTIONS = ("caption", "text")
TEXTS = (*CAPTIONS, *CONVERSATIONS, "question", "answer")


def captions(record: Record, name: str) -> list[str]:
    """Captions of a record without a conversation.

    Raises:
        BadInput: they are no text.
    """
    if _conversation_field(record) is not None or is_there(record, "question"):
        return []
    value = next((record[f] for f in CAPTIONS if record.get(f)), None)
    texts = value if isinstance(value, list | tuple) else [value] if value else []
    for text in texts:
        if not isinstance(text, str):
            raise BadInput(name, expected="captions as text", found=type(text).__name__)
    return [text.strip() for text in texts if text.strip()]


def conversation(record: Record, name: str) -> Turns:
    """The turns of a record, with the marks of media that are in them.

    An answer in front of the first question is left out, and so is a question without an answer;
    what a system says stands in front of the next question.

    Raises:
        BadInput: in a form nobody knows.
    """
    field = _conversation_field(record)
    if field is None:
        return ()
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
        if ROLES[role] == "user":
            text, system = f"{system}{text}", ""
        turns.append((ROLES[role], text))
    # Shared chats may begin in the middle of an answer, or end with a question.
    if len(turns) > 1 and turns[0][0] == "assistant":
        turns = turns[1:]
    while turns and turns[-1][0] == "user":
        turns.pop()
    return tuple(turns)


def question(record: Record, name: str) -> tuple[Turns, list[str]]:
    """The question of a record with its first answer, and further answers.

    Raises:
        BadInput: one of both is missing, or is neither text nor a number.
    """
    asked = _said(record, "question", name)
    answers = record.get("answer")
    several = answers if isinstance(answers, list | tuple) else [answers]
    told = [said for one in several if (said := _said({"answer": one}, "answer", name))]
    if not asked and not told:
        return (), []
    if not (asked and told):
        there, missing = ("question", "answer") if asked else ("answer", "question")
        expected = f"an {missing!r}" if missing == "answer" else f"a {missing!r}"
        fields = ", ".join(map(repr, record))
        raise BadInput(name, expected=f"{expected} beside its {there!r}", found=f"only {fields}")
    return (("user", asked), ("assistant", told[0])), told[1:]


def _said(record: Record, field: str, name: str) -> str:
    value = record.get(field)
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, bool | int | float):
        return str(value)
    found = f"a {type(value).__name__}"
    raise BadInput(name, expected=f"a text under {field!r}", found=found)


def _conversation_field(record: Record) -> str | None:
    return next((f for f in CONVERSATIONS if is_there(record, f)), None)


def _role_and_text(turn: Any, name: str) -> tuple[str, str]:
    if isinstance(turn, Mapping):
        role, said = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        if isinstance(said, list):  # parts, of which the text alone is said
            texts = [
                p["text"] for p in said if isinstance(p, Mapping) and p.get("text") is not None
            ]
            said = "\n".join(map(str, texts)).strip()
        if isinstance(role, str) and isinstance(said, str):
            return role.lower(), said
    elif isinstance(turn, list | tuple) and len(turn) == 2:
        return str(turn[0]).lower(), str(turn[1])
    expected = "turns such as {'from': 'human', 'value': '…'}"
    raise BadInput(name, expected=expected, found=repr(turn)[:60])


def text_fields(record: Record) -> tuple[str, ...]:
    """The fields that a record's texts are read from."""
    field = _conversation_field(record)
    if field is not None:
        return (field,)
    asked = tuple(f for f in ("question", "answer") if record.get(f) is not None)
    return asked or next(((f,) for f in CAPTIONS if record.get(f)), ())


def parts(record: Record) -> Iterator[Mapping[str, Any]]:
    """Parts of messages that are no text: ``{"type": "image", …}``."""
    field = _conversation_field(record)
    turns = record[field] if field is not None else ()
    for turn in turns if isinstance(turns, list) else ():
        said = turn.get("content") if isinstance(turn, dict) else None
        if isinstance(said, list):
            for part in said:
                if isinstance(part, Mapping) and part.get("text") is None:
                    yield {key: value for key, value in part.items() if value is not None}


class Marks:
    """What stands in a text for a medium, such as ``<image>``.

    Args:
        names: of what may stand between the brackets.
    """

    def __init__(self, names: Iterable[str]) -> None:
        marks = f"<(?:{'|'.join(sorted(map(re.escape, names)))})>"
        self._any = re.compile(rf"\n?{marks}\n?")
        self._alone = re.compile(rf"(?:^|\n){marks}(?:\n|$)")

    def without(self, text: str) -> str:
        """A text without marks: media stand behind BOS."""
        return self._any.sub("\n", text).strip()

    def alone(self, turns: Turns) -> str:
        """The first mark that has a line of a question to itself; "" if there is none.

        Elsewhere it may be a text's own: HTML has ``<video>``, too.
        """
        found = (self._alone.search(text) for role, text in turns if role == "user")
        return next((match.group().strip() for match in found if match), "")
