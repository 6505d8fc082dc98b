"""The texts of a record: captions, questions and answers, conversations."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from onellm.data.records import Record
from onellm.errors import BadInput

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
    if any(field in record for field in (*CONVERSATIONS, "question")):
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
        asked, answer = record.get("question"), record.get("answer")
        if not asked and not answer:
            return ()
        return (("user", str(asked or "")), ("assistant", str(answer or "")))
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


def _conversation_field(record: Record) -> str | None:
    return next((f for f in CONVERSATIONS if f in record), None)


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


def text_fields(record: Record) -> tuple[str, ...]:
    """The fields that a record's texts are read from."""
    field = _conversation_field(record)
    if field is not None:
        return (field,)
    asked = tuple(f for f in ("question", "answer") if record.get(f))
    return asked or next(((f,) for f in CAPTIONS if record.get(f)), ())


def parts(record: Record) -> Iterator[Mapping[str, Any]]:
    """Parts of messages that are no text: ``{"type": "image", …}``."""
    field = _conversation_field(record)
    turns = record[field] if field is not None else ()
    for turn in turns if isinstance(turns, list | tuple) else ():
        said = turn.get("content") if isinstance(turn, Mapping) else None
        for part in said if isinstance(said, list) else ():
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
