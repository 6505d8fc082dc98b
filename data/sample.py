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
    """

    id: str
    media: tuple[tuple[str, Source], ...]
    turns: tuple[tuple[str, str], ...]
    meta: dict[str, Any] = field(default_factory=dict)
