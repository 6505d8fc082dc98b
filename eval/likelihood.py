"""How likely each of several answers is: the prompt is run once, its answers all at a time.

Shape legend: B prompts, N answers of all prompts together, T positions of a prompt with its media,
S tokens of an answer, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache

from onellm.errors import ConfigError
from onellm.generation import turns_of
from onellm.prompts import get_format, render, render_template
from onellm.splice import Spliced
from onellm.text import TextTokenizer

if TYPE_CHECKING:
    from onellm.model import OneLLM

Soft = Sequence[tuple[str, Tensor]]


def choice_logprobs(
    model: OneLLM,
    prompts: Sequence[Any],
    soft: Sequence[Soft],
    options: Sequence[Sequence[str]],
) -> list[list[dict[str, float]]]:
    """Log-probabilities of each prompt's options as its answer.

    Only the option's own tokens count, neither what stands in front of an answer nor what ends
    it. Media and prompt are run once per prompt; their keys and values are then shared by its
    options, which run in one pass with those of the other prompts.

    Args:
        model: the model.
        prompts: texts, or conversations as tuples of turns.
        soft: for each prompt its (modality, soft tokens (Q, D)) pairs.
        options: for each prompt the texts to compare, at least one.

    Returns:
        for each prompt and option ``{"sum": …, "mean": …}``: of its tokens' natural
        log-probabilities.

    Raises:
        ConfigError: an option of no tokens, or a prompt beyond the LLM's context.
    """
    found = option_chances(model, prompts, soft, options)
    return [[{"sum": each.sum, "mean": each.mean} for each in several] for several in found]


@dataclass(frozen=True)
class Chance:
    """How likely an option is as the answer.

    Args:
        sum: of its tokens' natural log-probabilities.
        mean: over its tokens.
        greedy: whether each of its tokens is the likeliest one there.
    """

    sum: float
    mean: float
    greedy: bool


@torch.inference_mode()
def option_chances(
    model: OneLLM,
    prompts: Sequence[Any],
    soft: Sequence[Soft],
    options: Sequence[Sequence[str]],
) -> list[list[Chance]]:
    """See :func:`choice_logprobs`, whose numbers these are."""
    text = model.text
    if text is None:
        raise ConfigError("this model was built without a text tokenizer; pass text=…")
    name = model.config.prompt_format
    coded = [
        [encode_choice(text, name, turns_of(prompt), option) for option in several]
        for prompt, several in zip(prompts, options, strict=True)
    ]
    # Tokens may join across the border of prompt and answer: what is shared is found, not assumed.
    shared = [_shared_length(several) for several in coded]
    firsts = [several[0][0][:n] for several, n in zip(coded, shared, strict=True)]
    spliced = model.splice([torch.tensor(ids) for ids in firsts], None, soft, side="left")
    rests = [
        (b, ids[shared[b] :], [i - shared[b] for i in range(begin, end)])
        for b, several in enumerate(coded)
        for ids, begin, end in several
    ]
    _check_room(model.llm, spliced, max(len(ids) for _, ids, _ in rests))
    chances = iter(_chances(model.llm, spliced, rests))
    return [[next(chances) for _ in several] for several in coded]


def encode_choice(
    text: TextTokenizer, format_name: str, turns: Sequence[tuple[str, str]], answer: str
) -> tuple[list[int], int, int]:
    """Encode a conversation with an answer, and say which tokens are the answer's own.

    Args:
        text: the LLM's tokenizer.
        format_name: a key of :data:`onellm.prompts.FORMATS`.
        turns: (role, text) pairs, the last one the user's.
        answer: what the assistant says.

    Returns:
        ids up to the answer's last token, BOS first, and the answer's first and behind its last.

    Raises:
        ConfigError: an answer of no tokens.
    """
    form = get_format(format_name)
    before, _, _ = form.answer.partition("{text}")
    if form.template:
        whole = render_template(text, [*turns, ("assistant", answer)])
        prompt = render_template(text, turns, answer=True)
        if not whole.startswith(prompt + answer):
            raise ConfigError("the LLM's chat template rewrites answers; likelihoods need another")
        start = len(prompt)
    elif form.learn_eos:  # prompt and answer are encoded one by one, as in training
        head, _ = text.encode(form.system + _written(form.user, turns) + form.assistant)
        tail, _ = text.encode(before + answer)
        ids = [text.bos_id, *head, *tail]
        return _found(ids, 1 + len(head), len(ids), answer)
    else:
        whole, spans = render([*turns, ("assistant", answer)], form)
        start = spans[-1][0] + len(before)
    ids, offsets = text.encode(whole)
    # An option's first token may hold the space in front of it.
    own = [i for i, (a, b) in enumerate(offsets) if b > start and a < start + len(answer)]
    if not template_has_bos(ids, text):
        ids, own = [text.bos_id, *ids], [i + 1 for i in own]
    return _found(ids, own[0] if own else 0, own[-1] + 1 if own else 0, answer)


def template_has_bos(ids: Sequence[int], text: TextTokenizer) -> bool:
    """Whether a chat template wrote BOS itself."""
    return list(ids[:1]) == [text.bos_id]


def _written(user: str, turns: Sequence[tuple[str, str]]) -> str:
    if [role for role, _ in turns] != ["user"]:
        raise ConfigError("likelihoods in this prompt format are of answers to one user turn")
    return user.format(text=turns[0][1])


def _found(ids: list[int], begin: int, end: int, answer: str) -> tuple[list[int], int, int]:
    if begin >= end:
        raise ConfigError(f"option {answer!r} is no token of this tokenizer; it cannot be ranked")
    return ids[:end], begin, end


def _shared_length(several: Sequence[tuple[list[int], int, int]]) -> int:
    """How many first ids all answers have in common; at least one of each is left to be scored."""
    ids = [each for each, _, _ in several]
    limit = min(begin for _, begin, _ in several)
    same = 0
    while same < limit and len({each[same] for each in ids}) == 1:
        same += 1
    return same


def _check_room(llm: Any, spliced: Spliced, longest: int) -> None:
    context = getattr(llm.config.get_text_config(), "max_position_embeddings", None)
    taken = int(spliced.position_ids.max()) + 1 + longest
    if context is not None and taken > context:
        raise ConfigError(f"prompt, media and option take {taken} positions; the LLM has {context}")


def _chances(
    llm: Any, spliced: Spliced, rests: Sequence[tuple[int, list[int], list[int]]]
) -> list[Chance]:
    """How likely each answer is.

    Args:
        llm: any Hugging Face causal LM.
        spliced: shared beginnings, padded on the left.
        rests: for each answer its prompt, the ids behind the shared beginning, and the places
            among them that are scored.
    """
    cache = DynamicCache(config=llm.config)
    out = llm(
        inputs_embeds=spliced.embeds,
        attention_mask=spliced.attention_mask,
        position_ids=spliced.position_ids,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    device = spliced.embeds.device
    of_N = torch.tensor([b for b, _, _ in rests], device=device)
    cache.batch_select_indices(of_N)
    longest = max(len(ids) for _, ids, _ in rests)
    ids_NS = torch.zeros(len(rests), longest, dtype=torch.long, device=device)
    real_NS = torch.zeros_like(ids_NS)
    for row, (_, ids, _) in enumerate(rests):
        ids_NS[row, : len(ids)] = torch.tensor(ids, device=device)
        real_NS[row, : len(ids)] = 1
    begin_N1 = spliced.position_ids[of_N, -1:] + 1
    first_N1V = out.logits[of_N, -1:]
    if longest > 1:
        behind = llm(
            input_ids=ids_NS[:, :-1],
            attention_mask=torch.cat([spliced.attention_mask[of_N], real_NS[:, :-1]], dim=1),
            position_ids=begin_N1 + torch.arange(longest - 1, device=device),
            past_key_values=cache,
            use_cache=True,
        ).logits
        logits_NSV = torch.cat([first_N1V, behind], dim=1)
    else:
        logits_NSV = first_N1V
    picked_NS = logits_NSV.gather(-1, ids_NS[..., None])[..., 0].float()
    chance_NS = picked_NS - torch.logsumexp(logits_NSV.float(), dim=-1)
    greedy_NS = logits_NSV.argmax(-1) == ids_NS
    found = []
    for row, (_, _, places) in enumerate(rests):
        chance_S = chance_NS[row, places]
        greedy = bool(greedy_NS[row, places].all())
        found.append(Chance(float(chance_S.sum()), float(chance_S.mean()), greedy))
    return found
