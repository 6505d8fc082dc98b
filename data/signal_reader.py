"""Reading media through their modalities, and keeping what fits into memory."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from onellm.modality import Modality
from onellm.source import Source


class SignalReader:
    """Reads media through their modalities and keeps signals in memory up to a limit.

    Args:
        modalities: known modalities by name.
        megabytes: 10^6 bytes of signals kept; what comes when it is full is read each time.
    """

    def __init__(self, modalities: Mapping[str, Modality], megabytes: float = 0.0) -> None:
        self.modalities = modalities
        self._room = megabytes * 1e6
        self._kept: dict[str, Tensor] = {}

    def read(self, name: str, source: Source, key: str) -> Tensor:
        """The signal of a medium, as its modality loads it.

        Raises:
            BadInput: names the file, what was expected and what was found.
        """
        if key in self._kept:
            return self._kept[key]
        signal = self.modalities[name].load(source)
        size = signal.numel() * signal.element_size()
        if size <= self._room:
            self._room -= size
            self._kept[key] = signal
        return signal
