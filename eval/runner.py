"""Asking a model: batched answers, each medium encoded once, resumable at any batch and world.

Shape legend: Q soft tokens, D width of the LLM.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from onellm.errors import BadInput, ConfigError
from onellm.eval.answers import Record, to_line
from onellm.eval.items import Item, Medium
from onellm.eval.likelihood import choice_logprobs
from onellm.eval.parts import Shard, answered, merge, part_path, repair, share
from onellm.generation import Decoding, answer_encoded, load_signal
from onellm.model import OneLLM
from onellm.progress import Progress, SilentProgress

Soft = Mapping[tuple[str, str], Tensor]

WINDOW = 16
"""Batches that are planned at a time: prompts of like length among them go side by side."""
KEPT_BYTES = 256 * 2**20
"""Soft tokens that are kept for later questions about the same media."""


def run(
    model: OneLLM,
    items: Sequence[Item],
    out_jsonl: str | Path,
    batch_size: int = 16,
    progress: Progress | None = None,
    *,
    shard: Shard | None = None,
    model_id: str = "",
    seed: int = 0,
    phase: str = "evaluation",
) -> list[Record]:
    """Answer every item that no file of answers has yet.

    Neither batch size, nor number of processes, nor where an earlier run stopped changes an
    answer: greedy ones depend on nothing else, and sampled ones have a seed of their own each.

    Args:
        model: the model; it is put into evaluation mode.
        items: what to ask; see :func:`onellm.eval.items.build_items`.
        out_jsonl: file of answers (:mod:`onellm.eval.answers`). A part of it is added to after
            every batch; in the end it holds the items' answers in the items' order, nothing else.
        batch_size: questions of one pass.
        progress: told about a phase, counted in items.
        shard: this process among others. With several, each answers its share, and the file is
            put together by :func:`onellm.eval.parts.merge` when all are done.
        model_id: what the model is known by; answers of another one are not used. Left out, the
            file belongs to one model: remove it before another one is asked.
        seed: of sampling.
        phase: the phase's name.

    Returns:
        the file's records; of several processes this one's.

    Raises:
        BadInput: a medium that cannot be read; it is never left out silently.
        ConfigError: two items that cannot be told apart.
    """
    file, progress, shard = Path(out_jsonl), progress or SilentProgress(), shard or Shard()
    order = {item.key(model_id, seed): item for item in items}
    if len(order) != len(items):
        raise ConfigError(f"{len(items) - len(order)} evaluation items are there twice")
    keys = {id(item): key for key, item in order.items()}
    mine, part = share(items, shard), part_path(file, shard)
    file.parent.mkdir(parents=True, exist_ok=True)
    repair(part)
    known = answered(file, order)
    todo = [item for item in mine if keys[id(item)] not in known]
    progress.phase(phase, len(mine), len(mine) - len(todo))
    model.eval()
    with part.open("a", encoding="utf-8", newline="\n") as out:
        for batch, soft in _batches(model, todo, batch_size):
            for item, record in zip(batch, _ask(model, batch, soft, seed), strict=True):
                key = keys[id(item)]
                known[key] = {"key": key, **record}
                out.write(to_line(known[key]))
            out.flush()
            progress.advance(len(batch))
    if shard.world > 1:
        return [known[keys[id(item)]] for item in mine]
    return merge(file, order, known)


def _batches(
    model: OneLLM, items: Sequence[Item], batch_size: int
) -> Iterator[tuple[list[Item], Soft]]:
    """Batches of one kind, with the soft tokens of their media.

    Questions about the same media are asked one after the other, so that few soft tokens have to
    be kept (30 x 4096 numbers a medium in the published model).
    """
    kinds: dict[object, list[Item]] = {}
    for item in items:
        names = tuple(medium.modality for medium in item.media)
        kinds.setdefault((names, item.likelihood, item.settings), []).append(item)
    kept: OrderedDict[tuple[str, str], Tensor] = OrderedDict()
    for alike in kinds.values():
        groups: dict[tuple[tuple[str, str], ...], list[Item]] = {}
        for item in alike:
            groups.setdefault(tuple((m.modality, m.id) for m in item.media), []).append(item)
        ordered = [item for group in groups.values() for item in group]
        size = WINDOW * batch_size
        for first in range(0, len(ordered), size):
            window = ordered[first : first + size]
            _encode_missing(model, window, kept, batch_size)
            # Questions of like length side by side leave little padding.
            window.sort(key=lambda item: len(item.prompt))
            for start in range(0, len(window), batch_size):
                yield window[start : start + batch_size], kept


def _encode_missing(
    model: OneLLM, window: Sequence[Item], kept: OrderedDict[tuple[str, str], Tensor], size: int
) -> None:
    """Encode the media of a window that are not kept yet, and forget the oldest of too many."""
    wanted = {(m.modality, m.id): m for item in window for m in item.media}
    for key in [key for key in wanted if key in kept]:
        kept.move_to_end(key)
    kept.update(encode_media(model, [m for key, m in wanted.items() if key not in kept], size))
    total = sum(soft.nbytes for soft in kept.values())
    while total > KEPT_BYTES and len(kept) > len(wanted):
        total -= kept.popitem(last=False)[1].nbytes


@torch.inference_mode()
def encode_media(model: OneLLM, media: Sequence[Medium], batch_size: int = 16) -> Soft:
    """Soft tokens of media, each encoded once however often it is listed.

    Args:
        model: the model.
        media: what to encode.
        batch_size: media of one pass.

    Returns:
        soft tokens (Q, D) by modality and id.
    """
    different = list({(m.modality, m.id): m for m in media}.values())
    soft: dict[tuple[str, str], Tensor] = {}
    for start in range(0, len(different), batch_size):
        chunk = different[start : start + batch_size]
        signals = [[(m.modality, load_signal(model, m.modality, m.open()))] for m in chunk]
        for medium, (tokens_QD,) in zip(chunk, model.soften(signals), strict=True):
            soft[medium.modality, medium.id] = tokens_QD.clone()  # a view keeps its whole batch
    return soft


def item_seed(seed: int, item: Item) -> int:
    """The seed of one answer: a function of the run's and the question, not of its batch."""
    digest = hashlib.sha256(f"{seed}/{item.task}/{item.id}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _ask(model: OneLLM, batch: Sequence[Item], soft: Soft, seed: int) -> list[Record]:
    began = time.perf_counter()
    prompts = [item.prompt for item in batch]
    media = [[(m.modality, soft[m.modality, m.id]) for m in item.media] for item in batch]
    settings, seeds = batch[0].settings, [item_seed(seed, item) for item in batch]
    chances: list[list[dict[str, float]]] = []
    if batch[0].likelihood:
        for item in batch:
            if len(item.options) < 2:
                where = f"task {item.task}, question {item.id}"
                raise BadInput(where, expected="options to rank", found=f"{len(item.options)}")
        chances = choice_logprobs(model, prompts, media, [item.options for item in batch])
        answers = [_likeliest(item, chance) for item, chance in zip(batch, chances, strict=True)]
    else:
        decoding = Decoding(
            settings.max_new_tokens, settings.temperature, settings.top_p, seed=seeds
        )
        answers = answer_encoded(model, prompts, media, decoding)
    seconds = round((time.perf_counter() - began) / len(batch), 5)
    return [
        {
            "task": item.task,
            "id": item.id,
            "prompt": item.prompt,
            "media": [[m.modality, m.id] for m in item.media],
            "answer": answers[number],
            "target": item.target,
            "meta": dict(item.meta),
            **({"options": list(item.options)} if item.options else {}),
            **({"choice_logprobs": chances[number]} if chances else {}),
            "seconds": seconds,
            "seed": seeds[number] if settings.temperature > 0 else 0,
        }
        for number, item in enumerate(batch)
    ]


def _likeliest(item: Item, chances: Sequence[dict[str, float]]) -> str:
    """The text of the option with the greatest mean log-probability; scorers may use the sums."""
    best = max(range(len(chances)), key=lambda option: chances[option]["mean"])
    return item.options[best]
