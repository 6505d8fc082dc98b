"""Tokens → text as they come: incremental decoding, and where an answer ends."""

from __future__ import annotations

from collections.abc import Collection

from onellm.text import TextTokenizer

_INCOMPLETE = "\ufffd"  # what a character decodes to whose bytes have not all come


class Detokenizer:
    """Decodes a growing list of ids, each id a bounded number of times.

    Text of an id depends on the id before it (a space that is dropped at the start of a text, bytes
    of one character in several ids). So a window of the last ids is decoded with and without the
    newest one, and the difference is what is new.

    Args:
        text: the LLM's tokenizer.
    """

    def __init__(self, text: TextTokenizer) -> None:
        self._text = text
        self._window: list[int] = []
        self._old = 0  # how many ids of the window are written already
        self._known = ""  # what they decode to

    def add(self, token: int) -> str:
        """Take an id; returns the text that it completes, which may be none."""
        self._window.append(token)
        whole = self._text.decode(self._window)
        if len(whole) <= len(self._known) or whole.endswith(_INCOMPLETE):
            return ""
        new = whole[len(self._known) :]
        self._window = self._window[self._old :]
        self._old = len(self._window)
        self._known = self._text.decode(self._window)
        return new

    def flush(self) -> str:
        """What is left when no more ids come: at most broken characters."""
        rest = self._text.decode(self._window)[len(self._known) :]
        self._window, self._old, self._known = [], 0, ""
        return rest


class Writer:
    """Collects one sample's answer and knows when it has ended.

    Args:
        text: the LLM's tokenizer.
        ends: ids that end an answer.
        stops: strings that end it; neither they nor what follows belongs to it.
        limit: at most this many tokens.

    Attributes:
        done: the answer has ended; further tokens are ignored.
        count: tokens taken, an ending one included.
    """

    def __init__(
        self, text: TextTokenizer, ends: Collection[int], stops: tuple[str, ...], limit: int
    ) -> None:
        self.done, self.count = False, 0
        self._detokenizer = Detokenizer(text)
        self._ends, self._stops, self._limit = ends, stops, limit
        self._longest = max((len(stop) for stop in stops), default=0)
        self._said = ""

    def add(self, token: int) -> None:
        """Take one token."""
        if self.done:
            return
        self.count += 1
        ended = token in self._ends
        self._write("" if ended else self._detokenizer.add(token))
        if not self.done and (ended or self.count >= self._limit):
            self._write(self._detokenizer.flush())
            self.done = True

    def _write(self, piece: str) -> None:
        # A stop string that was not there before ends in the new piece.
        begin = max(0, len(self._said) - self._longest)
        self._said += piece
        cuts = [at for stop in self._stops if (at := self._said.find(stop, begin)) >= 0]
        if cuts:
            self._said, self.done = self._said[: min(cuts)], True

    def text(self) -> str:
        """The answer so far, without white space around it."""
        return self._said.strip()

    def ready(self) -> str:
        """As much of the answer as no further token can take back."""
        if self.done:
            return self.text()
        held = max((self._overlap(stop) for stop in self._stops), default=0)
        return self._said[: len(self._said) - held].strip()

    def _overlap(self, stop: str) -> int:
        """How many of the last characters may be the beginning of a stop string."""
        sizes = range(min(len(stop) - 1, len(self._said)), 0, -1)
        return next((n for n in sizes if self._said.endswith(stop[:n])), 0)
