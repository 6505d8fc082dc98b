"""Messages for developers of other packages stay away from users; all else is shown."""

from __future__ import annotations

import logging

from onellm.quiet import IDLE, hush


def test_known_messages_alone_are_dropped():
    (name, words), *_ = IDLE.items()
    logger, seen = logging.getLogger(name), []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())

    listener, before = Listener(), list(logger.filters)
    logger.addHandler(listener)
    try:
        hush()
        hush()  # once is enough
        assert len(logger.filters) <= len(before) + 1
        logger.warning("%s " + words + " by torch.compile", "Kind")
        logger.warning("something else")
    finally:
        logger.removeHandler(listener)
        logger.filters[:] = before
    assert seen == ["something else"]
