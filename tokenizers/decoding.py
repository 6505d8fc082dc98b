"""What every reader shares: unpacking a source, and turning decoder failures into one error."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from onellm.errors import BadInput
from onellm.source import Source, source_name


@contextmanager
def decoding(name: str, expected: str) -> Iterator[None]:
    """Turn whatever a decoder throws at damaged data into :class:`BadInput`.

    Args:
        name: the file, as it stands in the message.
        expected: what the file should have held.

    Raises:
        BadInput: the block raised anything else; the cause is chained.

    Example:
        >>> with decoding("dog.jpg", "a picture"):
        ...     picture.load()
    """
    try:
        yield
    except BadInput:
        raise
    except MemoryError as error:
        raise BadInput(name, expected=expected, found="more data than fit in memory") from error
    # Decoders meet hostile bytes with struct.error, KeyError, zlib.error, ... : no list is whole.
    except Exception as error:
        said = " ".join(str(error).split())[:160]
        found = f"data that cannot be decoded ({said or type(error).__name__})"
        raise BadInput(name, expected=expected, found=found) from error


def unwrap(source: Source) -> tuple[Source, dict[str, Any]]:
    """Split ``{"data": source, **facts}`` into the source and its facts.

    Args:
        source: any source; other than mappings they come back as they are, without facts.

    Raises:
        BadInput: a mapping without ``data``.
    """
    if not isinstance(source, Mapping):
        return source, {}
    if "data" not in source:
        keys = ", ".join(map(str, source)) or "no keys"
        raise BadInput("<mapping>", expected="a mapping with the key 'data'", found=keys)
    return source["data"], {k: v for k, v in source.items() if k != "data"}


def rate_fact(
    source: Source, facts: Mapping[str, Any], *keys: str, low: float = 1e-3, high: float = 1e6
) -> float | None:
    """Read a rate in Hz from the facts of a source.

    Args:
        source: names the culprit in the message.
        facts: what :func:`unwrap` returned.
        keys: names under which the rate may stand; the first one present counts.
        low: least rate that makes sense, in Hz.
        high: greatest rate that makes sense, in Hz.

    Returns:
        The rate in Hz, or None when no fact gives it.

    Raises:
        BadInput: not a number, or out of range.
    """
    key = next((k for k in keys if facts.get(k) is not None), None)
    if key is None:
        return None
    expected = f"{key} between {low:g} and {high:g} Hz"
    with decoding(source_name(source), expected):
        rate = float(facts[key])
    if not math.isfinite(rate) or not low <= rate <= high:
        raise BadInput(source_name(source), expected=expected, found=f"{rate:g}")
    return rate
