"""Decoding: one loop that generates and streams, batched, with early stop.

Shape legend: B batch, Q soft tokens, D width of the LLM.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from onellm.beam import beam_search
from onellm.decoding import decode
from onellm.encoded import content_key
from onellm.errors import ConfigError
from onellm.kvcache import KVPrefix
from onellm.prompts import encode_prompt, get_format
from onellm.sampling import Chooser, greedy, nucleus, random_streams
from onellm.splice import Spliced
from onellm.text import TextTokenizer
from onellm.writer import Writer

if TYPE_CHECKING:
    from onellm.model import OneLLM

Soft = list[tuple[str, Tensor]]


@dataclass(frozen=True)
class Decoding:
    """Settings of one decoding run; see :meth:`onellm.OneLLM.generate`.

    Args:
        max_new_tokens: at most this many tokens; the end of the LLM's context comes first.
        temperature: 0 is greedy.
        top_p: nucleus mass, above 0 and at most 1.
        seed: of the sampling: one number for the batch, or one per sample.
        stop: strings that end an answer, besides the prompt format's.
        beams: answers that beam search follows at a time; 1 is no search.
        compile: run the decoding step through ``torch.compile``; pays on a GPU.
        legacy_decode_offset: reproduce the published cached decoding, which forgets the last two
            prompt positions of each medium (spec §0.1). For comparison only.

    Raises:
        ConfigError: a value out of range, or beam search together with what it does not have.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | Sequence[int] = 0
    stop: tuple[str, ...] = ()
    beams: int = 1
    compile: bool = False
    legacy_decode_offset: bool = False

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.max_new_tokens < 1 or self.beams < 1 or "" in self.stop:
            raise ConfigError(
                "max_new_tokens and beams must be at least 1, and a stop string not empty"
            )
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ConfigError("temperature must not be negative, and 0 < top_p <= 1")
        if self.beams > 1 and (self.temperature > 0 or self.compile or self.legacy_decode_offset):
            raise ConfigError("beam search goes with neither temperature, compile nor legacy mode")
        if self.compile and self.legacy_decode_offset:
            raise ConfigError("legacy_decode_offset needs a cache that can forget: no compile")


def answer(
    model: OneLLM, prompt: Any, media: Any, settings: Decoding, prefix: KVPrefix | None = None
) -> Any:
    """Answer one prompt (a string) or a list of them (a list)."""
    if isinstance(prompt, list):
        if any(isinstance(m, tuple) and m and isinstance(m[0], str) for m in media):
            raise ConfigError("for a list of prompts, media is a list of (modality, source) lists")
        if prefix is not None:
            raise ConfigError("a prefix is of one conversation; ask one prompt at a time")
        spliced = prepare(model, prompt, list(media) or [()] * len(prompt))
        return _write(model, spliced, settings, None)
    _check_pairs(media)
    return _write(model, prepare(model, [prompt], [media]), settings, prefix)[0]


def _check_pairs(media: Any) -> None:
    if any(isinstance(medium, str) or len(medium) != 2 for medium in media):
        raise ConfigError(
            'media is a list of (modality, source) pairs, such as [("image", "dog.jpg")]; found '
            f"{str(media)[:100]}"
        )


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
    return _write(model, splice_prompts(model, prompts, soft), settings, None)


def _write(
    model: OneLLM, spliced: Spliced, settings: Decoding, prefix: KVPrefix | None
) -> list[str]:
    text, stops, ends = _text_of(model), _stops(model, settings), _ends(model)
    room = _room(model.llm, spliced, settings.max_new_tokens)
    if settings.beams > 1:
        return beam_search(
            model.llm,
            spliced,
            beams=settings.beams,
            room=room,
            text=text,
            ends=ends,
            stops=stops,
        )
    writers = [Writer(text, ends, stops, room) for _ in spliced.embeds]
    for tokens_B in _tokens(model, spliced, settings, room, prefix):
        for writer, token in zip(writers, tokens_B.tolist(), strict=True):
            writer.add(token)
        if all(writer.done for writer in writers):
            break
    return [writer.text() for writer in writers]


def _tokens(
    model: OneLLM, spliced: Spliced, settings: Decoding, room: int, prefix: KVPrefix | None
) -> Iterator[Tensor]:
    return decode(
        model,
        spliced,
        chooser(settings, len(spliced.embeds)),
        room=room,
        prefix=prefix,
        compiled=settings.compile,
        legacy_decode_offset=settings.legacy_decode_offset,
    )


def answer_in_pieces(
    model: OneLLM, prompt: Any, media: Any, settings: Decoding, prefix: KVPrefix | None = None
) -> Iterator[str]:
    """Yield an answer as it comes; nothing that could turn out to be a stop string is shown.

    Args:
        model: the model.
        prompt: a text, or a conversation as a tuple of turns.
        media: (modality, source) pairs.
        settings: how to decode; beam search knows its answer at the end only, in one piece.
        prefix: of an earlier turn of the same conversation.
    """
    _check_pairs(media)
    spliced = prepare(model, [prompt], [media])
    if settings.beams > 1:
        yield from _write(model, spliced, settings, None)
        return
    room = _room(model.llm, spliced, settings.max_new_tokens)
    writer = Writer(_text_of(model), _ends(model), _stops(model, settings), room)
    shown = 0
    for tokens_B in _tokens(model, spliced, settings, room, prefix):
        writer.add(int(tokens_B[0]))
        if len(ready := writer.ready()) > shown:
            yield ready[shown:]
            shown = len(ready)
        if writer.done:
            return


def _text_of(model: OneLLM) -> TextTokenizer:
    if model.text is None:
        raise ConfigError("this model was built without a text tokenizer; pass text=…")
    return model.text


def _stops(model: OneLLM, settings: Decoding) -> tuple[str, ...]:
    return (*get_format(model.config.prompt_format).stop, *settings.stop)


def _ends(model: OneLLM) -> frozenset[int]:
    """Ids that end an answer: EOS, and in the LLM's own chat format whatever it ends turns with."""
    ends = {_text_of(model).eos_id}
    if get_format(model.config.prompt_format).template:
        own = getattr(model.llm.generation_config, "eos_token_id", None)
        ends.update([own] if isinstance(own, int) else own or [])
    return frozenset(ends)


def _room(llm: Any, spliced: Spliced, wanted: int) -> int:
    """How many tokens an answer can have before the LLM's context ends.

    Raises:
        ConfigError: none.
    """
    context = getattr(llm.config.get_text_config(), "max_position_embeddings", None)
    taken = int(spliced.position_ids.max()) + 1
    if context is None:
        return wanted
    if taken > context:
        raise ConfigError(
            f"prompt and media take {taken} positions, and the LLM has {context}; "
            "ask with fewer media or turns"
        )
    return min(wanted, context - taken + 1)  # the last token is not fed back


def prepare(model: OneLLM, prompts: Sequence[Any], media: Sequence[Any]) -> Spliced:
    """Load media, encode prompts and splice them, padded on the left.

    Args:
        model: the model.
        prompts: texts, or conversations as tuples of turns.
        media: for each prompt its (modality, source) pairs.
    """
    return splice_prompts(model, prompts, soft_tokens(model, media))


@torch.inference_mode()
def soft_tokens(model: OneLLM, media: Sequence[Any]) -> list[Soft]:
    """Soft tokens of media, each different one read and encoded once.

    What was encoded before is taken from ``model.encoded`` while the model is in evaluation mode.

    Args:
        model: the model.
        media: for each prompt its (modality, source) pairs.

    Returns:
        (modality, soft tokens (Q, D)) pairs in the same arrangement.
    """
    files: dict[tuple[str, str], Tensor] = {}
    signals: dict[bytes, tuple[str, Tensor]] = {}
    keys: list[list[bytes]] = [[] for _ in media]
    for row, items in zip(keys, media, strict=True):
        for name, source in items:
            signal = _load_once(model, name, source, files)
            row.append(key := content_key(model.modality(name).name, signal))
            signals[key] = (name, signal)
    known = {} if model.training else model.encoded.lookup(model, signals)
    missing = [key for key in signals if key not in known]
    for key, (soft_QD,) in zip(missing, model.soften([[signals[k]] for k in missing]), strict=True):
        known[key] = soft_QD
        if not model.training:
            model.encoded.keep(key, soft_QD)
    return [[(signals[key][0], known[key]) for key in row] for row in keys]


def _load_once(
    model: OneLLM, name: str, source: Any, files: dict[tuple[str, str], Tensor]
) -> Tensor:
    """A signal; a file that several prompts of a batch are about is read once."""
    if not isinstance(source, str | Path):
        return load_signal(model, name, source)
    if (place := (name, str(source))) not in files:
        files[place] = load_signal(model, name, source)
    return files[place]


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


def chooser(settings: Decoding, batch: int) -> Chooser:
    """Greedy choice, or sampling in which every sample has a random stream of its own.

    Args:
        settings: temperature, top_p and seed.
        batch: B.
    """
    if settings.temperature == 0:
        return greedy
    streams = random_streams(settings.seed, batch)
    return nucleus(settings.temperature, settings.top_p, streams)
