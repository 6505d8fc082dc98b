"""Beam search: ``transformers``' own, told where our answers end.

Shape legend: B batch, T positions, D width of the LLM.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from onellm.splice import Spliced
from onellm.text import TextTokenizer
from onellm.writer import Writer


@torch.inference_mode()
def beam_search(
    llm: Any,
    spliced: Spliced,
    *,
    beams: int,
    room: int,
    text: TextTokenizer,
    ends: Collection[int],
    stops: tuple[str, ...],
) -> list[str]:
    """The best answer of several that are followed at a time.

    Args:
        llm: any Hugging Face causal LM.
        spliced: prompts padded on the left.
        beams: how many answers to follow.
        room: at most this many tokens.
        text: the LLM's tokenizer.
        ends: ids that end an answer.
        stops: strings that end an answer.

    Returns:
        B answers.
    """
    from transformers import GenerationConfig, StoppingCriteriaList

    settings = GenerationConfig(
        max_new_tokens=room,
        num_beams=beams,
        do_sample=False,
        # Some LLMs come with penalties in their own settings, which would join in.
        repetition_penalty=1.0,
        length_penalty=1.0,
        eos_token_id=sorted(ends),
        pad_token_id=text.pad_id,
    )
    criteria = StoppingCriteriaList([_StopStrings(text, stops)] if stops else [])
    ids_BT = llm.generate(
        inputs_embeds=spliced.embeds,
        attention_mask=spliced.attention_mask,
        generation_config=settings,
        stopping_criteria=criteria,
    )
    answers = []
    for row in ids_BT.tolist():
        writer = Writer(text, ends, stops, room)
        for token in row:
            writer.add(token)
        answers.append(writer.text())
    return answers


class _StopStrings:
    """A stopping criterion for any tokenizer; ``transformers``' own wants a Hugging Face one."""

    def __init__(self, text: TextTokenizer, stops: tuple[str, ...]) -> None:
        self._text, self._stops = text, stops
        # An id writes at least one byte in all but the rarest cases, so a stop string ends within
        # the last few ids.
        self._reach = max(len(stop.encode()) for stop in stops) + 4

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        tails = [self._text.decode(row) for row in input_ids[:, -self._reach :].tolist()]
        found = [any(stop in tail for stop in self._stops) for tail in tails]
        return torch.tensor(found, device=input_ids.device)
