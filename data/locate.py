"""From a field's value to a source: a path, bytes, numbers, or what a modality reads itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onellm.errors import BadInput
from onellm.modality import Modality
from onellm.source import Blob, Source


def nested(value: Any, name: str, folder: Path) -> Source:
    """A source of several parts, such as a picture and its map, or of one: see :func:`locate`."""
    if isinstance(value, list | tuple) and not is_numbers(value):
        return tuple(nested(part, name, folder) for part in value)
    return locate(value, name, folder)


def locate(value: Any, name: str, folder: Path) -> Source:
    """A field's value as a source: paths from the data set's folder, bytes named.

    Args:
        value: a path, bytes, ``{"bytes": …, "path": …}``, ``{"array": …, "sampling_rate": …}``,
            ``{"data": …}`` with facts, numbers, or an object that the modality reads.
        name: file name for bytes that come without one.
        folder: what relative paths begin from.

    Raises:
        BadInput: an address, nothing, or a number where a file is to stand.
    """
    if isinstance(value, str):
        if re.match(r"[a-z][a-z0-9+]+://", value):
            hint = "Single media are not fetched: have them on a disk, or in shards."
            raise BadInput(name, expected="a file", found=f"the address {value}", hint=hint)
        return str(folder / value)
    if isinstance(value, bytes):
        return Blob(name, value)
    if isinstance(value, Mapping) and value.get("bytes") is not None:
        own = Path(str(value.get("path") or "")).suffix
        return Blob(f"{name}{own}" if own else name, value["bytes"])
    if isinstance(value, Mapping) and value.get("path"):
        return str(folder / str(value["path"]))
    if isinstance(value, Mapping) and "array" in value:
        data = nested(value["array"], name, folder)
        return {"data": data, "rate_hz": value.get("sampling_rate")}
    if isinstance(value, Mapping) and "data" in value:
        return {**value, "data": nested(value["data"], name, folder)}
    if is_numbers(value):
        try:
            return np.asarray(value, dtype=np.float32)
        except ValueError as error:
            raise BadInput(name, expected="rows of numbers", found=f"{error}") from error
    if value is None or isinstance(value, bool | int | float | Mapping):
        expected = "a file, its bytes, numbers, or a mapping with 'bytes', 'path' or 'array'"
        raise BadInput(name, expected=expected, found=repr(value)[:60])
    return value


def is_numbers(value: Any) -> bool:
    """Whether a value is a list of numbers, or of such lists: a signal, not several files."""
    while isinstance(value, list | tuple) and value:
        value = value[0]
        if isinstance(value, int | float) and not isinstance(value, bool):
            return True
    return False


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
