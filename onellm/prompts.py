"""Prompt formats: turns of a conversation → token ids and labels.

Labels come from character offsets of the encoded text, or from encoding turn by turn, never from
searching for an answer's ids (spec §6.1.15).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onellm.errors import ConfigError
from onellm.spelling import did_you_mean
from onellm.splice import IGNORED
from onellm.text import Span, TextTokenizer

Turns = Sequence[tuple[str, str]]

# The widely used Vicuna-v1 system text; the published weights were tuned with it (spec §3.3).
SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the human's questions."
)


@dataclass(frozen=True)
class PromptFormat:
    """How a conversation is written.

    Args:
        name: what ``config.json`` calls it.
        system: text in front of the first turn.
        user: template of a user turn, with ``{text}``.
        assistant: what stands in front of an answer.
        answer: template of an answer, with ``{text}``.
        closing: text behind the last answer (training only).
        supervised_tail: how many characters of what follows an answer are learned with it.
        learn_eos: supervise an end-of-sequence token behind every answer; without it an answer
            ends with the first of ``stop``.
        stop: strings that end an answer.
        template: the LLM's own chat template is used, and none of the texts above.
    """

    name: str
    system: str = ""
    user: str = "{text}\n"
    assistant: str = ""
    answer: str = "{text}"
    closing: str = ""
    supervised_tail: int = 0
    learn_eos: bool = True
    stop: tuple[str, ...] = ()
    template: bool = False


FORMATS = {
    f.name: f
    for f in (
        # As few tokens as will do: for small LLMs trained from a question and an answer alone.
        PromptFormat("plain"),
        PromptFormat(
            "published",
            system=f"{SYSTEM}\n\n",
            user="### Human: {text}\n",
            assistant="### Assistant:",
            answer=" {text}\n",
            closing="### ",
            supervised_tail=3,
            learn_eos=False,
            stop=("###",),
        ),
        # The published demo and evaluation scripts left out the space behind ### (spec §0.10).
        PromptFormat(
            "legacy",
            system=f"{SYSTEM}\n\n",
            user="###Human: {text}\n",
            assistant="###Assistant:",
            answer=" {text}\n",
            closing="###",
            supervised_tail=3,
            learn_eos=False,
            stop=("###",),
        ),
        # Whatever the LLM was tuned with, as its tokenizer tells.
        PromptFormat("chat", learn_eos=False, template=True),
    )
}


def get_format(name: str) -> PromptFormat:
    """Look up a prompt format.

    Raises:
        ConfigError: unknown name, with the nearest spelling.
    """
    if name not in FORMATS:
        raise ConfigError(f"unknown prompt format {name!r}.{did_you_mean(name, FORMATS)}")
    return FORMATS[name]


def render(turns: Turns, prompt_format: PromptFormat) -> tuple[str, list[Span]]:
    """Write a whole conversation and say which characters are learned.

    Args:
        turns: (role, text) pairs, roles ``"user"`` and ``"assistant"``.
        prompt_format: how to write it.

    Returns:
        the text, and one character span per answer.
    """
    text, spans = prompt_format.system, []
    for role, said in turns:
        if role == "user":
            text += prompt_format.user.format(text=said)
        elif role == "assistant":
            text += prompt_format.assistant
            begin = len(text)
            text += prompt_format.answer.format(text=said)
            spans.append((begin, len(text) + prompt_format.supervised_tail))
        else:
            raise ConfigError(f"unknown role {role!r}: expected 'user' or 'assistant'")
    return text + prompt_format.closing, spans


def encode_example(text: TextTokenizer, format_name: str, turns: Turns) -> tuple[Tensor, Tensor]:
    """Encode a conversation to train on.

    A lone assistant turn is a caption to align with: ``BOS caption EOS``, all of it learned but
    BOS (spec §3.3), in every format.

    Args:
        text: the LLM's tokenizer.
        format_name: a key of ``FORMATS``.
        turns: (role, text) pairs.

    Returns:
        ids (S,) int64 with BOS first, and labels (S,) int64, −100 where nothing is learned.
    """
    prompt_format = get_format(format_name)
    if [role for role, _ in turns] == ["assistant"]:
        prompt_format = FORMATS["plain"]
    if prompt_format.template:
        ids, learned = _templated(text, turns)
    elif prompt_format.learn_eos:
        ids, learned = _turn_by_turn(text, prompt_format, turns)
    else:
        ids, learned = _as_one_text(text, prompt_format, turns)
    ids_S = torch.tensor(ids)
    labels_S = torch.where(torch.tensor(learned), ids_S, IGNORED)
    return ids_S, labels_S


def _turn_by_turn(
    text: TextTokenizer, prompt_format: PromptFormat, turns: Turns
) -> tuple[list[int], list[bool]]:
    ids, learned = [text.bos_id], [False]
    pending = prompt_format.system
    for role, said in turns:
        if role == "user":
            pending += prompt_format.user.format(text=said)
            continue
        pieces, _ = text.encode(pending + prompt_format.assistant)
        answer, _ = text.encode(prompt_format.answer.format(text=said))
        ids += [*pieces, *answer, text.eos_id]
        learned += [False] * len(pieces) + [True] * (len(answer) + 1)
        pending = ""
    return ids, learned


def _as_one_text(
    text: TextTokenizer, prompt_format: PromptFormat, turns: Turns
) -> tuple[list[int], list[bool]]:
    whole, spans = render(turns, prompt_format)
    ids, offsets = text.encode(whole)
    learned = [any(a <= begin and end <= b for a, b in spans) for begin, end in offsets]
    # The final EOS is there, and not learned, as published (spec §3.3).
    return [text.bos_id, *ids, text.eos_id], [False, *learned, False]


def _templated(text: TextTokenizer, turns: Turns) -> tuple[list[int], list[bool]]:
    """In the LLM's own template: answers are learned with the mark that ends their turn."""
    whole, spans = render_template(text, turns), []
    for count, (role, _) in enumerate(turns):
        if role != "assistant":
            continue
        before = render_template(text, turns[:count], answer=True)
        upto = render_template(text, turns[: count + 1])
        if not (whole.startswith(upto) and upto.startswith(before)):
            raise ConfigError(
                "the LLM's chat template rewrites earlier turns, so that answers cannot be found "
                "in it; train with one turn per sample, or in another prompt format"
            )
        spans.append((len(before), len(upto)))
    ids, offsets = text.encode(whole)
    learned = [any(a <= begin and end <= b for a, b in spans) for begin, end in offsets]
    if ids[:1] == [text.bos_id]:
        return ids, learned
    return [text.bos_id, *ids], [False, *learned]


def render_template(text: TextTokenizer, turns: Turns, *, answer: bool = False) -> str:
    """Write a conversation in the LLM's own chat template.

    Args:
        text: the LLM's tokenizer.
        turns: (role, text) pairs, roles as the template knows them.
        answer: end with what stands in front of an answer.

    Raises:
        ConfigError: the tokenizer has no template, or the template refuses the turns.
    """
    tokenizer = getattr(text, "hf", None)
    if not getattr(tokenizer, "chat_template", None):
        names = ", ".join(name for name, f in FORMATS.items() if not f.template)
        raise ConfigError(
            f"the LLM's tokenizer has no chat template; prompt_format can be one of: {names}"
        )
    messages = [{"role": role, "content": said} for role, said in turns]
    try:
        return tokenizer.apply_chat_template(  # type: ignore[union-attr]
            messages, tokenize=False, add_generation_prompt=answer
        )
    except Exception as error:  # Jinja's own and whatever the template raises
        raise ConfigError(f"the LLM's chat template refuses these turns: {error}") from error


def encode_prompt(text: TextTokenizer, format_name: str, turns: Turns) -> Tensor:
    """Encode a conversation up to where the assistant is to answer.

    Args:
        text: the LLM's tokenizer.
        format_name: a key of ``FORMATS``.
        turns: (role, text) pairs, the last one the user's. No turn at all asks for a caption
            in the alignment format: BOS alone.

    Returns:
        ids (S,) int64, BOS first.
    """
    prompt_format = get_format(format_name)
    if not turns:
        return torch.tensor([text.bos_id])
    if turns[-1][0] != "user":
        raise ConfigError("the last turn of a prompt must be the user's")
    if prompt_format.template:
        ids, _ = text.encode(render_template(text, turns, answer=True))
        return torch.tensor(ids if ids[:1] == [text.bos_id] else [text.bos_id, *ids])
    if not prompt_format.learn_eos:
        whole, _ = render(turns, prompt_format)
        whole = whole.removesuffix(prompt_format.closing) + prompt_format.assistant
        return torch.tensor([text.bos_id, *text.encode(whole)[0]])
    ids, _ = _turn_by_turn(text, prompt_format, [*turns, ("assistant", "")])
    return torch.tensor(ids[:-1])
