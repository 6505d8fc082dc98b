"""The one internal record of training and evaluation data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from onellm.source import Source


@dataclass(frozen=True)
class Sample:
    """Media and a conversation about them.

    Args:
        id: unique within its data set; stands in logs and error messages.
        media: (modality name, source) pairs in the order they enter the prompt.
        turns: (role, text) pairs, roles ``"user"`` and ``"assistant"`` in turn. A caption to be
            aligned without a question is a single assistant turn.
        meta: whatever else the data set says (label, licence, author …).
        captions: other texts for the last turn; each time round takes the next one.
    """

    id: str
    media: tuple[tuple[str, Source], ...]
    turns: tuple[tuple[str, str], ...]
    meta: dict[str, Any] = field(default_factory=dict)
    captions: tuple[str, ...] = ()

    def said(self, epoch: int) -> tuple[tuple[str, str], ...]:
        """The turns, with the caption of an epoch where there are several.

        Args:
            epoch: how often the sample was drawn before.

        Example:
            >>> Sample("a", (), (("assistant", "a dog"),), captions=("a pug",)).said(1)
            (('assistant', 'a pug'),)
        """
        turn = epoch % (len(self.captions) + 1)
        if not turn:
            return self.turns
        role, _ = self.turns[-1]
        return (*self.turns[:-1], (role, self.captions[turn - 1]))
