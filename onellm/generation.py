"""Decoding: one loop that generates and streams, batched, with early stop.

Shape legend: B batch, T positions, D width of the LLM, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from onellm.errors import ConfigError
from onellm.prompts import encode_prompt, get_format
from onellm.splice import Spliced
from onellm.text import TextTokenizer

if TYPE_CHECKING:
    from onellm.model import OneLLM


@dataclass(frozen=True)
class Decoding:
    """Settings of one decoding run; see :meth:`onellm.OneLLM.generate`.

    Args:
        max_new_tokens: at most this many tokens.
        temperature: 0 is greedy.
        top_p: nucleus mass.
        seed: sample b of a batch draws from a stream seeded (seed, b).
        stop: strings that end an answer, besides the prompt format's.
        legacy_decode_offset: reproduce the published cached decoding, which forgets the last two
            prompt positions of each medium (spec §0.1). For comparison only.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    legacy_decode_offset: bool = False


def answer(model: OneLLM, prompt: Any, media: Any, settings: Decoding) -> Any:
    """Answer one prompt (a string) or a list of them (a list)."""
    if isinstance(prompt, list):
        if any(isinstance(m, tuple) and m and isinstance(m[0], str) for m in media):
            raise ConfigError("for a list of prompts, media is a list of (modality, source) lists")
        return _answers(model, prompt, list(media) or [()] * len(prompt), settings)
    return _answers(model, [prompt], [media], settings)[0]


def _answers(
    model: OneLLM, prompts: Sequence[Any], media: Sequence[Any], settings: Decoding
) -> list[str]:
    return _write(model, prepare(model, prompts, media), settings)


def answer_encoded(
    model: OneLLM,
    prompts: Sequence[Any],
    soft: Sequence[Sequence[tuple[str, Tensor]]],
    settings: Decoding,
) -> list[str]:
    """Answer prompts about media that are encoded already, to encode each medium once.

    Args:
        model: the model.
        prompts: texts, or conversations as tuples of turns.
        soft: for each prompt its (modality, soft tokens (Q, D)) pairs, as
            :meth:`onellm.OneLLM.soften` gives them.
        settings: how to decode.

    Returns:
        one answer per prompt.
    """
    return _write(model, splice_prompts(model, prompts, soft), settings)


def _write(model: OneLLM, spliced: Spliced, settings: Decoding) -> list[str]:
    text, stops = _text_of(model), _stops(model, settings)
    writers = [_Writer(text, stops, settings.max_new_tokens) for _ in spliced.embeds]
    for tokens_B in _tokens(model, spliced, settings):
        for writer, token in zip(writers, tokens_B.tolist(), strict=True):
            writer.add(token)
        if all(writer.done for writer in writers):
            break
    return [writer.final() for writer in writers]


def _tokens(model: OneLLM, spliced: Spliced, settings: Decoding) -> Iterator[Tensor]:
    choose = chooser(settings, len(spliced.embeds))
    return decode(model, spliced, choose, legacy_decode_offset=settings.legacy_decode_offset)


def answer_in_pieces(model: OneLLM, prompt: Any, media: Any, settings: Decoding) -> Iterator[str]:
    """Yield an answer as it comes; nothing that could turn out to be a stop string is shown."""
    writer = _Writer(_text_of(model), _stops(model, settings), settings.max_new_tokens)
    shown = ""
    for tokens_B in _tokens(model, prepare(model, [prompt], [media]), settings):
        writer.add(int(tokens_B[0]))
        ready = writer.final() if writer.done else writer.safe()
        if len(ready) > len(shown) and ready.startswith(shown):
            yield ready[len(shown) :]
            shown = ready
        if writer.done:
            return
    if len(rest := writer.final()) > len(shown):
        yield rest[len(shown) :]


def _text_of(model: OneLLM) -> TextTokenizer:
    if model.text is None:
        raise ConfigError("this model was built without a text tokenizer; pass text=…")
    return model.text


def _stops(model: OneLLM, settings: Decoding) -> tuple[str, ...]:
    stops = (*get_format(model.config.prompt_format).stop, *settings.stop)
    if settings.max_new_tokens < 1 or "" in stops:
        raise ConfigError("max_new_tokens must be at least 1, and a stop string not empty")
    return stops


def prepare(model: OneLLM, prompts: Sequence[Any], media: Sequence[Any]) -> Spliced:
    """Load media, encode prompts and splice them, padded on the left.

    Args:
        model: the model.
        prompts: texts, or conversations as tuples of turns.
        media: for each prompt its (modality, source) pairs.
    """
    named = [[(name, load_signal(model, name, source)) for name, source in m] for m in media]
    with torch.inference_mode():
        soft = model.soften(named)
    pairs = [
        [(name, tokens) for (name, _), tokens in zip(n, s, strict=True)]
        for n, s in zip(named, soft, strict=True)
    ]
    return splice_prompts(model, prompts, pairs)


@torch.inference_mode()
def splice_prompts(
    model: OneLLM, prompts: Sequence[Any], soft: Sequence[Sequence[tuple[str, Tensor]]]
) -> Spliced:
    """Encode prompts and splice soft tokens into them, padded on the left.

    Args:
        model: the model.
        prompts: texts, or conversations as tuples of turns.
        soft: for each prompt its (modality, soft tokens (Q, D)) pairs.
    """
    if len(prompts) != len(soft):
        raise ConfigError(f"{len(prompts)} prompts with {len(soft)} lists of media")
    ids = [encode_prompt(_text_of(model), model.config.prompt_format, turns_of(p)) for p in prompts]
    return model.splice(ids, None, soft, side="left")


def turns_of(prompt: Any) -> tuple[tuple[str, str], ...]:
    """A bare text is one user turn; an empty one asks for a caption."""
    if isinstance(prompt, str):
        return (("user", prompt),) if prompt else ()
    return tuple((str(role), str(said)) for role, said in prompt)


def load_signal(model: OneLLM, name: str, source: Any) -> Tensor:
    """A signal as the model takes it; float tensors of the right shape pass as they are."""
    modality = model.modality(name)
    if isinstance(source, Tensor) and source.is_floating_point():  # integers are pixels, to be read
        want = modality.example().shape
        got = source.shape[1:] if source.dim() == len(want) + 1 and len(source) == 1 else None
        signal = source[0] if got is not None else source
        skip = 1 if modality.frame_axis else 0
        if signal.dim() == len(want) and signal.shape[skip:] == want[skip:]:
            return signal
    return modality.load(source)


@torch.inference_mode()
def decode(
    model: OneLLM,
    spliced: Spliced,
    choose: Callable[[Tensor], Tensor],
    *,
    legacy_decode_offset: bool = False,
) -> Iterator[Tensor]:
    """Yield the next token of every sample, (B,) int64, for as long as the caller asks.

    Args:
        model: the model.
        spliced: prompts padded on the left.
        choose: logits (B, V) → tokens (B,).
        legacy_decode_offset: see :class:`Decoding`.
    """
    from transformers import DynamicCache

    cache = DynamicCache()
    mask, position_B1 = spliced.attention_mask, spliced.position_ids[:, -1:]
    out = model.llm(
        inputs_embeds=spliced.embeds,
        attention_mask=mask,
        position_ids=spliced.position_ids,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    if legacy_decode_offset:
        lost = 2 * (int(spliced.item.max()) + 1)
        cache.crop(-lost)
        mask, position_B1 = mask[:, : mask.shape[1] - lost], position_B1 - lost
    while True:
        tokens_B = choose(out.logits[:, -1])
        yield tokens_B
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        position_B1 = position_B1 + 1
        out = model.llm(
            input_ids=tokens_B[:, None],
            attention_mask=mask,
            position_ids=position_B1,
            past_key_values=cache,
            use_cache=True,
        )


def chooser(settings: Decoding, batch: int) -> Callable[[Tensor], Tensor]:
    """Greedy choice, or sampling in which every sample has a random stream of its own.

    Args:
        settings: temperature, top_p and seed.
        batch: B.
    """
    if settings.temperature <= 0:
        return lambda logits_BV: logits_BV.argmax(-1)
    streams = [torch.Generator().manual_seed(settings.seed * 1_000_003 + b) for b in range(batch)]

    def sample(logits_BV: Tensor) -> Tensor:
        chance_BV = (logits_BV.float() / settings.temperature).softmax(-1).cpu()
        order_BV = chance_BV.argsort(-1, descending=True)
        sorted_BV = chance_BV.gather(-1, order_BV)
        before_BV = sorted_BV.cumsum(-1) - sorted_BV
        sorted_BV = sorted_BV.masked_fill(before_BV > settings.top_p, 0.0)
        picks = [
            order_BV[b, torch.multinomial(sorted_BV[b], 1, generator=stream)]
            for b, stream in enumerate(streams)
        ]
        return torch.cat(picks).to(logits_BV.device)

    return sample


class _Writer:
    """Collects one sample's tokens and knows when its answer has ended."""

    def __init__(self, text: TextTokenizer, stops: tuple[str, ...], limit: int) -> None:
        self.text, self.stops, self.limit = text, stops, limit
        self.ids: list[int] = []
        self.done = False
        self._longest = max((len(s) for s in stops), default=0)

    def add(self, token: int) -> None:
        """Take one token; tokens behind the end are ignored."""
        if self.done:
            return
        if token == self.text.eos_id:
            self.done = True
            return
        self.ids.append(token)
        self.done = len(self.ids) >= self.limit
        # A stop string ends within the last few tokens, so only their text is looked at.
        tail = self.text.decode(self.ids[-(self._longest + 4) :]) if self.stops else ""
        if any(stop in tail for stop in self.stops):
            self.done = True

    def final(self) -> str:
        """The answer, cut at the first stop string."""
        said = self.text.decode(self.ids)
        cuts = [at for stop in self.stops if (at := said.find(stop)) >= 0]
        return said[: min(cuts)].strip() if cuts else said.strip()

    def safe(self) -> str:
        """As much of the answer as no further token can take back."""
        said = self.text.decode(self.ids).lstrip()
        while said.endswith("\ufffd"):  # a character whose bytes have not all come
            said = said[:-1]
        return said[: max(0, len(said) - self._longest)].rstrip() if self.stops else said.rstrip()
