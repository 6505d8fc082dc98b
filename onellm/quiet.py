"""What packages tell their own developers, kept from the people at the keyboard."""

from __future__ import annotations

import logging

IDLE = {
    # torchao, of its own enumerations, as soon as transformers has found it to be installed.
    "torch.utils._pytree": "is an Enum subclass and is now natively supported",
}
"""Name of a logger, and words of messages that it shall not write."""


class _Without(logging.Filter):
    """Drops messages with certain words."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self.words = words

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a message is written."""
        return self.words not in str(record.msg)


def hush() -> None:
    """Silence messages that no user can do anything about; for programs, not for libraries."""
    for name, words in IDLE.items():
        logger = logging.getLogger(name)
        if not any(isinstance(known, _Without) for known in logger.filters):
            logger.addFilter(_Without(words))
