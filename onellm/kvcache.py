"""Keys and values of past positions: a cache sized to need, and one that outlives a chat turn.

The caches are ``transformers``' own; what it lacks is a layer that neither copies the past at every
step (its dynamic one) nor attends over positions still to come (its static one).

Shape legend: B batch, H heads, T positions, K head width, D width of the LLM.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer

STATIC_STEP = 256


class SizedLayer(DynamicLayer):
    """One layer's keys and values in a buffer that holds all positions that are to come.

    Args:
        capacity: T to make room for; should it not do, the buffer doubles.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.length = capacity, 0
        self.keys: Tensor
        self.values: Tensor
        self.is_initialized: bool

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add positions.

        Args:
            key_states: (B, H, new, K).
            value_states: (B, H, new, K).
            *args: what other versions of ``transformers`` pass; unused.
            **kwargs: likewise.

        Returns:
            keys and values (B, H, T, K) of all positions so far, without a copy.
        """
        end = self.length + key_states.shape[-2]
        if not self.is_initialized or end > self.capacity:
            self._grow(key_states, value_states, end)
        self._keys[:, :, self.length : end] = key_states
        self._values[:, :, self.length : end] = value_states
        self._show(end)
        return self.keys, self.values

    def _grow(self, key_states: Tensor, value_states: Tensor, end: int) -> None:
        past = (self.keys, self.values) if self.is_initialized else None
        self.capacity = self.capacity if end <= self.capacity else max(end, 2 * self.capacity)
        self._keys, self._values = (
            new.new_empty(*new.shape[:2], self.capacity, new.shape[-1])
            for new in (key_states, value_states)
        )
        if past is not None:
            self._keys[:, :, : self.length] = past[0]
            self._values[:, :, : self.length] = past[1]
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def _show(self, length: int) -> None:
        self.length = length
        self.keys, self.values = self._keys[:, :, :length], self._values[:, :, :length]

    def get_seq_length(self, *args: Any) -> int:
        """T so far."""
        return self.length

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last positions.

        Args:
            tokens_to_remove: how many, as a negative number (``transformers``' convention).
        """
        if self.is_initialized:
            self._show(self.length - abs(tokens_to_remove))


def new_cache(llm: Any, capacity: int) -> DynamicCache:
    """A cache for ``capacity`` positions of an LLM.

    Layers that keep a sliding window or a recurrent state stay ``transformers``' own.

    Args:
        llm: any Hugging Face causal LM.
        capacity: T to make room for.
    """
    cache = DynamicCache(config=llm.config)
    if cache.layers and all(type(layer) is DynamicLayer for layer in cache.layers):
        cache.layers = [SizedLayer(capacity) for _ in cache.layers]
    return cache


def round_capacity(capacity: int) -> int:
    """The next of the few sizes that static caches come in: a step is compiled for each."""
    return STATIC_STEP * -(-capacity // STATIC_STEP)


def static_cache(llm: Any, batch: int, capacity: int) -> StaticCache:
    """A cache whose shapes never change, for a compiled step.

    The LLM's last one is emptied and used again where it will do: a new one would make the step be
    recorded anew.

    Args:
        llm: any Hugging Face causal LM.
        batch: B.
        capacity: T to make room for; see :func:`round_capacity`.
    """
    kept = getattr(llm, "_onellm_static_cache", None)
    wanted = (batch, capacity, llm.dtype, llm.device)
    if kept is not None and kept[0] == wanted:
        kept[1].reset()
        return kept[1]
    cache = StaticCache(config=llm.config, max_cache_len=capacity)
    llm._onellm_static_cache = (wanted, cache)
    return cache


class KVPrefix:
    """The keys and values of a conversation, kept from one turn to the next.

    A turn repeats the conversation so far and adds to it. What it repeats is found by comparing
    embeddings, position by position, and only what comes behind is run through the LLM: whatever a
    prompt format or a tokenizer does to the history, the answer is that of a fresh start. For one
    conversation of one model whose weights do not change.

    Example:
        >>> prefix = KVPrefix()
        >>> model.generate("What is this?", media, prefix=prefix)
    """

    def __init__(self) -> None:
        self._cache: DynamicCache | None = None
        self._llm: Any = None
        self._embeds_TD: Tensor | None = None
        self._tokens: list[Tensor] = []

    def reset(self) -> None:
        """Forget everything."""
        self._cache, self._embeds_TD, self._tokens = None, None, []

    def begin(self, llm: Any, embeds_TD: Tensor, capacity: int) -> tuple[DynamicCache, int]:
        """Start a turn.

        Args:
            llm: the LLM.
            embeds_TD: embeddings of the whole prompt.
            capacity: positions to make room for where a new cache is needed.

        Returns:
            a cache, and how many positions of the prompt it holds already; always fewer than T,
            since the last position's logits are wanted.
        """
        kept = self._common(llm, embeds_TD)
        cache, self._embeds_TD, self._tokens = self._cache, None, []
        if cache is None or kept == 0:
            cache, kept = new_cache(llm, capacity), 0
        for layer in cache.layers if kept else ():
            # An interrupted turn may have left some layers a position ahead of the others.
            if (surplus := layer.get_seq_length() - kept) > 0:
                layer.crop(-surplus)
        # A window or a recurrent state cannot be taken back to an earlier position.
        usable = all(isinstance(layer, SizedLayer) for layer in cache.layers)
        self._llm, self._cache = llm, cache if usable else None
        return cache, kept

    def ran(self, embeds_TD: Tensor) -> None:
        """The prompt has been run: the cache holds all of its positions."""
        self._embeds_TD = embeds_TD

    def fed(self, token_1: Tensor) -> None:
        """One more token has been run, (1,) int64."""
        self._tokens.append(token_1)

    def _common(self, llm: Any, embeds_TD: Tensor) -> int:
        """How many positions of a prompt are the cache's first ones."""
        known_TD = self._embeds_TD
        if self._cache is None or known_TD is None or self._llm is not llm:
            return 0
        if (known_TD.dtype, known_TD.device) != (embeds_TD.dtype, embeds_TD.device):
            return 0
        if self._tokens:
            said_TD = llm.get_input_embeddings()(torch.cat(self._tokens))
            known_TD = torch.cat([known_TD, said_TD])
        length = min(len(known_TD), len(embeds_TD) - 1)
        differs_T = (known_TD[:length] != embeds_TD[:length]).any(-1)
        return int(differs_T.nonzero()[0]) if bool(differs_T.any()) else length
