"""A conversation with a model at the terminal: turns, media, a few commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onellm.errors import ConfigError, OneLLMError
from onellm.spelling import did_you_mean

if TYPE_CHECKING:
    from onellm.kvcache import KVPrefix
    from onellm.model import OneLLM


class Conversation:
    """What was said and shown so far.

    Media belong to the whole conversation: they stand in front of its first turn, in the order in
    which they were attached, as the model was trained.

    Args:
        model: the model that answers.
        settings: of decoding; see :meth:`onellm.OneLLM.generate`.
    """

    def __init__(self, model: OneLLM, **settings: Any) -> None:
        self.model, self.settings = model, settings
        self.turns: list[tuple[str, str]] = []
        self.media: list[tuple[str, Any]] = []
        self.files: list[tuple[str, str]] = []
        self._prefix: KVPrefix | None = None

    def attach(self, modality: str, path: str) -> str:
        """Read a medium and add it.

        Returns:
            a sentence that says so.

        Raises:
            BadInput: the file cannot be used.
            ConfigError: the model does not have the modality.
        """
        kind = self.model.modality(modality)
        if not path:
            raise ConfigError(f"/{modality} needs a file: /{modality} {kind.forms[0]}")
        signal = kind.load(str(Path(path).expanduser()))
        self.media.append((kind.name, signal))
        self.files.append((kind.name, path))
        count = f"{len(self.media)} in this conversation"
        if len(self.media) > 1:
            count += ", all in front of its first question; /reset first to ask about one alone"
        return f"{kind.name} attached ({count})"

    def ask(self, text: str) -> Iterator[str]:
        """Answer a turn piece by piece; it becomes history when it has been answered.

        Only what is new is run through the model: its keys and values of the history are kept, and
        media are encoded once.
        """
        from onellm.kvcache import KVPrefix

        self._prefix = self._prefix or KVPrefix()
        turns = [*self.turns, ("user", text)]
        answer = ""
        pieces = self.model.stream(tuple(turns), self.media, prefix=self._prefix, **self.settings)
        for piece in pieces:
            answer += piece
            yield piece
        self.turns = [*turns, ("assistant", answer)]

    def reset(self) -> None:
        """Forget turns and media."""
        self.turns, self.media, self.files = [], [], []
        self._prefix = None


def chat(conversation: Conversation, read: Callable[[], str], write: Callable[[str], None]) -> None:
    """Talk until ``/quit`` or the end of the input; a mistake is reported and forgotten.

    Args:
        conversation: with the model.
        read: returns the next line, without its end; raises ``EOFError`` behind the last.
        write: shows a piece of text.
    """
    while True:
        try:
            line = read().strip()
        except EOFError:
            return
        if line in ("/quit", "/exit", "/q"):
            return
        if not line:
            continue
        try:
            if line.startswith("/"):
                write(_command(conversation, line) + "\n")
            else:
                _answer(conversation, line, write)
        except OneLLMError as error:
            write(f"error: {error}\n")


def _answer(conversation: Conversation, line: str, write: Callable[[str], None]) -> None:
    pieces = conversation.ask(line)
    try:
        for piece in pieces:
            write(piece)
    except KeyboardInterrupt:
        write(" (stopped)")
    write("\n")


def _command(conversation: Conversation, line: str) -> str:
    """Do what a line beginning with a stroke says; returns what to show."""
    word, _, rest = line[1:].partition(" ")
    if word == "help":
        return help_text(conversation)
    if word == "reset":
        conversation.reset()
        return "forgotten"
    if word == "media":
        listed = [f"{name}  {path}" for name, path in conversation.files]
        return "\n".join(listed) or "none"
    known = conversation.model.modalities
    aliases = {m.published_name for m in known.values()}
    if word in known or (word and word in aliases):
        return conversation.attach(word, rest.strip().strip("'\""))
    commands = ["help", "reset", "media", "quit", *known]
    raise ConfigError(f"unknown command /{word}.{did_you_mean(word, commands)} Try /help.")


def help_text(conversation: Conversation) -> str:
    """What can be typed."""
    lines = [
        ("text", "ask; earlier turns are remembered"),
        *(
            (f"/{name} {kind.forms[0]}", f"attach {name}, in front of the first question")
            for name, kind in conversation.model.modalities.items()
        ),
        ("/media", "list what is attached"),
        ("/reset", "forget turns and media, for a question about something else"),
        ("/quit", "leave (so does Ctrl-D); Ctrl-C stops an answer"),
    ]
    width = max(len(command) for command, _ in lines)
    return "\n".join(f"  {command:<{width}}  {what}" for command, what in lines)
