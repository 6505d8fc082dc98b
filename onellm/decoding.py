"""The decode loop: the prompt through the LLM once, then a position per token.

Shape legend: B batch, T positions, D width of the LLM, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from onellm.errors import ConfigError
from onellm.kvcache import KVPrefix, new_cache, round_capacity, static_cache
from onellm.splice import Spliced

if TYPE_CHECKING:
    from onellm.model import OneLLM

# Positions to make room for where nobody says how many tokens will be asked for.
_SOME = 64


@torch.inference_mode()
def decode(
    model: OneLLM,
    spliced: Spliced,
    choose: Callable[[Tensor], Tensor],
    *,
    room: int | None = None,
    prefix: KVPrefix | None = None,
    compiled: bool = False,
    legacy_decode_offset: bool = False,
) -> Iterator[Tensor]:
    """Yield the next token of every sample, (B,) int64, for as long as the caller asks.

    Args:
        model: the model.
        spliced: prompts padded on the left.
        choose: logits (B, V) → tokens (B,).
        room: at most this many tokens; the cache is made for them. None for no limit.
        prefix: keys and values of earlier turns (B = 1), which are not run again. Compiled and
            legacy decoding run everything.
        compiled: run the step through ``torch.compile``; needs ``room``.
        legacy_decode_offset: see :class:`onellm.generation.Decoding`.
    """
    if compiled and room is None:
        raise ConfigError("a compiled step needs room=…, the most tokens that will be asked for")
    kept = None if compiled or legacy_decode_offset else prefix
    run = _Run(model.llm, spliced, room, kept, compiled)
    logits_BV = run.prompt()
    if legacy_decode_offset:
        run.forget(2 * (int(spliced.item.max()) + 1))
    count = 0
    while True:
        tokens_B = choose(logits_BV)
        yield tokens_B
        count += 1
        if count == room:
            return
        logits_BV = run.feed(tokens_B)


class _Run:
    """A batch on its way through the LLM: cache, mask and positions."""

    def __init__(
        self,
        llm: Any,
        spliced: Spliced,
        room: int | None,
        prefix: KVPrefix | None,
        compiled: bool,
    ) -> None:
        self.llm, self.spliced, self.prefix, self.compiled = llm, spliced, prefix, compiled
        batch, self.length = spliced.embeds.shape[:2]
        self.position_B1 = spliced.position_ids[:, -1:]
        self.past = 0  # positions that the cache holds from earlier turns
        capacity = self.length + (room or _SOME)
        if compiled:
            capacity = round_capacity(capacity)
            self.cache: Any = static_cache(llm, batch, capacity)
        elif prefix is not None:
            self.cache, self.past = prefix.begin(llm, spliced.embeds[0], capacity)
        else:
            self.cache = new_cache(llm, capacity)
        # Attention is faster without a mask, which only padding needs.
        mask_BT = spliced.attention_mask
        self.mask_BT = None if bool(mask_BT.all()) else _extended(mask_BT, capacity)

    def prompt(self) -> Tensor:
        """Run the prompt; returns the logits (B, V) behind its last position."""
        spliced = self.spliced
        out = self.llm(
            inputs_embeds=spliced.embeds[:, self.past :],
            attention_mask=None if self.mask_BT is None else self.mask_BT[:, : self.length],
            position_ids=spliced.position_ids[:, self.past :],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        if self.prefix is not None:
            self.prefix.ran(spliced.embeds[0])
        return out.logits[:, -1]

    def forget(self, positions: int) -> None:
        """Take the last positions back, as if they had not been there."""
        self.cache.crop(-positions)
        self.length -= positions
        self.position_B1 = self.position_B1 - positions

    def feed(self, tokens_B: Tensor) -> Tensor:
        """Run one more token per sample; returns the logits (B, V) behind it."""
        self.length += 1
        self.position_B1 = self.position_B1 + 1
        step = self.llm.get_compiled_call(None) if self.compiled else self.llm
        out = step(
            input_ids=tokens_B[:, None],
            attention_mask=self._seen(),
            position_ids=self.position_B1,
            past_key_values=self.cache,
            use_cache=True,
        )
        if self.prefix is not None:
            self.prefix.fed(tokens_B)
        return out.logits[:, -1]

    def _seen(self) -> Tensor | None:
        """The mask up to here; for a compiled step all of it, whose shape does not change."""
        if self.mask_BT is None or self.compiled:
            return self.mask_BT
        if self.length > self.mask_BT.shape[1]:
            self.mask_BT = _extended(self.mask_BT, 2 * self.length)
        return self.mask_BT[:, : self.length]


def _extended(mask_BT: Tensor, length: int) -> Tensor:
    """A mask in which everything to come is real; causality hides it until it is there."""
    missing = length - mask_BT.shape[1]
    return torch.cat([mask_BT, mask_BT.new_ones(len(mask_BT), missing)], dim=1)
