"""Soft tokens of media that were encoded before, found again by content.

Shape legend: Q soft tokens, D width of the LLM.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from itertools import chain
from typing import TYPE_CHECKING

from torch import Tensor

from onellm.freshness import version_of

if TYPE_CHECKING:
    from onellm.model import OneLLM


def content_key(modality: str, signal: Tensor) -> bytes:
    """A name for what a signal holds: equal for equal numbers, wherever they came from.

    It is made of what the tokenizer will see, so that whatever stands beside a file (a texture, an
    index) and every option of its reader counts.

    Args:
        modality: registered name.
        signal: as :meth:`onellm.Modality.load` returned it; a 10 MB video takes 10 ms.
    """
    digest = hashlib.blake2b(f"{modality} {signal.dtype} {tuple(signal.shape)}".encode())
    digest.update(signal.detach().cpu().float().contiguous().numpy().data)
    return digest.digest()


class EncodedMedia:
    """The soft tokens of the media used last, up to a number of bytes.

    A medium of the published model takes 0.5 MB (30 × 4096 numbers in float32). Everything is
    forgotten when a weight that the tokens were made with changes.

    Args:
        max_bytes: of tokens kept; 0 keeps none.
    """

    def __init__(self, max_bytes: int = 128 * 2**20) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()
        self._version: Hashable = None

    def __len__(self) -> int:
        return len(self._kept)

    def lookup(self, model: OneLLM, keys: Iterable[bytes]) -> dict[bytes, Tensor]:
        """What is known of some media.

        Args:
            model: the model that will encode the others.
            keys: of :func:`content_key`.

        Returns:
            soft tokens (Q, D) by key.
        """
        parts = (model.encoder, model.tokenizers, model.positions, model.frames, model.projector)
        weights = version_of(chain.from_iterable(part.parameters() for part in parts))
        version = (weights, model.projector.active_experts)
        if version != self._version:
            self.clear()
            self._version = version
        found = {key: self._kept[key] for key in keys if key in self._kept}
        for key in found:
            self._kept.move_to_end(key)
        return found

    def keep(self, key: bytes, soft_QD: Tensor) -> None:
        """Remember a medium, and forget the ones not used for longest if there are too many."""
        soft_QD = soft_QD.clone()  # a view would keep its whole batch
        self._kept[key] = soft_QD
        self.bytes = sum(kept.nbytes for kept in self._kept.values())
        while self.bytes > self.max_bytes:
            self.bytes -= self._kept.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self.bytes = 0
