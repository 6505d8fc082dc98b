"""Asking a model: batched greedy answers, each medium encoded once, resumable at any batch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from onellm.errors import ConfigError
from onellm.eval.answers import Record, read_answers, to_line, write_answers
from onellm.eval.tasks import Item, Medium
from onellm.generation import Decoding, answer_encoded, load_signal
from onellm.model import OneLLM
from onellm.progress import Progress, SilentProgress

Soft = dict[tuple[str, str], Tensor]


def run(
    model: OneLLM,
    items: Sequence[Item],
    out_jsonl: str | Path,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> list[Record]:
    """Answer every item that a file of answers does not have yet.

    Answers are greedy, so they depend neither on the batch size nor on where an earlier run
    stopped. The file belongs to one model: remove it before another one is asked.

    Args:
        model: the model; it is put into evaluation mode.
        items: what to ask; see :func:`onellm.eval.tasks.starter_items`.
        out_jsonl: file of answers (:mod:`onellm.eval.answers`), added to after every batch. In
            the end it holds the items' answers in the items' order and nothing else.
        batch_size: questions of one pass.
        progress: told about a phase named ``"evaluation"``, counted in items.

    Returns:
        the file's records.

    Raises:
        BadInput: a medium that cannot be read; it is never left out silently.
        ConfigError: two items that cannot be told apart.
    """
    file, progress = Path(out_jsonl), progress or SilentProgress()
    order = {item.key: item for item in items}
    if len(order) != len(items):
        raise ConfigError(f"{len(items) - len(order)} evaluation items are there twice")
    known = {r["key"]: r for r in read_answers(file) if r["key"] in order} if file.exists() else {}
    write_answers(file, known.values())  # without a half line that a crash may have left
    todo = [item for item in items if item.key not in known]
    progress.phase("evaluation", len(items), len(known))
    model.eval()
    with file.open("a", encoding="utf-8", newline="\n") as out:
        for batch, soft in _batches(model, todo, batch_size):
            for record in _ask(model, batch, soft):
                known[record["key"]] = record
                out.write(to_line(record))
            out.flush()
            progress.advance(len(batch))
    records = [known[key] for key in order]
    write_answers(file, records)
    return records


def _batches(
    model: OneLLM, items: Sequence[Item], batch_size: int
) -> Iterator[tuple[list[Item], Soft]]:
    """Batches of one modality and answer length each, with the soft tokens of their media."""
    for modality in dict.fromkeys(item.modality for item in items):
        group = [item for item in items if item.modality == modality]
        # One modality's soft tokens at a time: 30 x 4096 numbers each in the published model.
        soft = encode_media(model, [m for item in group for m in item.media], batch_size)
        # Questions of like length side by side leave little padding.
        group.sort(key=lambda item: (item.max_new_tokens, len(item.question)))
        for limit in dict.fromkeys(item.max_new_tokens for item in group):
            alike = [item for item in group if item.max_new_tokens == limit]
            for start in range(0, len(alike), batch_size):
                yield alike[start : start + batch_size], soft


@torch.inference_mode()
def encode_media(model: OneLLM, media: Sequence[Medium], batch_size: int = 16) -> Soft:
    """Soft tokens of media, each encoded once however often it is listed.

    Args:
        model: the model.
        media: what to encode.
        batch_size: media of one pass.

    Returns:
        soft tokens (Q, D_llm) by modality and sample id.
    """
    different = list({(m.modality, m.id): m for m in media}.values())
    soft: Soft = {}
    for start in range(0, len(different), batch_size):
        chunk = different[start : start + batch_size]
        signals = [[(m.modality, load_signal(model, m.modality, m.source))] for m in chunk]
        for medium, (tokens_QD,) in zip(chunk, model.soften(signals), strict=True):
            soft[medium.modality, medium.id] = tokens_QD
    return soft


def _ask(model: OneLLM, batch: Sequence[Item], soft: Soft) -> list[Record]:
    began = time.perf_counter()
    answers = answer_encoded(
        model,
        [item.question for item in batch],
        [[(m.modality, soft[m.modality, m.id]) for m in item.media] for item in batch],
        Decoding(max_new_tokens=batch[0].max_new_tokens),
    )
    seconds = round((time.perf_counter() - began) / len(batch), 5)
    return [
        {
            "key": item.key,
            "task": item.task,
            "modality": item.modality,
            "id": item.id,
            "media": [[m.modality, m.id] for m in item.media],
            "question": item.question,
            "answer": answer,
            "reference": item.reference,
            "seconds": seconds,
        }
        for item, answer in zip(batch, answers, strict=True)
    ]
