"""Putting media into text: the only place that makes positions, roles and labels line up.

Shape legend: B batch, T positions, D width of the LLM, S text tokens of one sample, M tokens of one
medium with its tags.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

PAD, TEXT, MEDIA, ANSWER = 0, 1, 2, 3
IGNORED = -100


@dataclass(frozen=True)
class Insertion:
    """One medium on its way into a sample's text.

    Args:
        at: index of the text token it goes in front of; 1 is right behind BOS, as published.
        embeds_MD: start tag, soft tokens and end tag, shape (M, D).
    """

    at: int
    embeds_MD: Tensor


@dataclass
class Spliced:
    """A batch ready for the LLM: a row for each sample, or all samples packed into one row.

    Args:
        embeds: (B, T, D); packed, B = 1.
        attention_mask: (B, T), 1 = real, 0 = padding, int64. It says nothing of the borders
            inside a packed row; ``position_ids`` do.
        position_ids: (B, T) int64, counted over real positions, from 0 in each sample.
        labels: (B, T) int64, −100 = ignored; not shifted (Hugging Face's convention). A sample's
            first position is never learned: nothing of the sample stands in front of it.
        roles: (B, T) int8: 0 PAD, 1 TEXT, 2 MEDIA, 3 ANSWER.
        item: (B, T) int16: which medium of the sample a position belongs to, −1 for text.
        sample: (B, T) int32: which sample a position belongs to, −1 for padding.
        text_at: (samples, S) int64: where in its row text token s landed, −1 beyond the text.
    """

    embeds: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    labels: Tensor
    roles: Tensor
    item: Tensor
    sample: Tensor
    text_at: Tensor


def splice(
    embed: Callable[[Tensor], Tensor],
    ids: Sequence[Tensor],
    labels: Sequence[Tensor] | None,
    media: Sequence[Sequence[Insertion]],
    *,
    side: Literal["left", "right"] = "right",
    pack: bool = False,
) -> Spliced:
    """Splice any number of media, of any modality, into each sample's text.

    Args:
        embed: the LLM's input embedding, ids (S,) → (S, D).
        ids: text ids of each sample, BOS first, shape (S,) each.
        labels: labels of each sample's text, same shapes; None for no supervision.
        media: insertions of each sample; those at the same place keep their order.
        side: where padding goes: ``"right"`` to train, ``"left"`` to generate.
        pack: put all samples one behind the other into a single row, without padding.

    Raises:
        ValueError: lists of different lengths, or an insertion outside the text.
    """
    if len(ids) != len(media) or (labels is not None and len(labels) != len(ids)):
        raise ValueError(f"{len(ids)} texts, {len(media)} media lists: expected one for each")
    # One look-up for all: the gradient of each is as large as the whole embedding table, and under
    # ZeRO 3 each call of a module gathers its weights.
    texts_SD = embed(torch.cat(list(ids))).split([len(row) for row in ids])
    rows = [
        _row(texts_SD[b], ids[b], labels[b] if labels is not None else None, media[b])
        for b in range(len(ids))
    ]
    return _pack(rows) if pack else _pad(rows, side)


@dataclass
class _Row:
    embeds: Tensor
    labels: Tensor
    roles: Tensor
    item: Tensor
    text_at: Tensor


def _row(
    text_SD: Tensor,
    ids_S: Tensor,
    labels_S: Tensor | None,
    media: Sequence[Insertion],
) -> _Row:
    """One sample: pieces of text and media in order, with what each position is."""
    count = len(ids_S)
    labels_S = torch.full_like(ids_S, IGNORED) if labels_S is None else labels_S
    roles_S = torch.where(labels_S == IGNORED, TEXT, ANSWER)
    pieces: list[tuple[Tensor, Tensor, Tensor, int]] = []
    done = 0
    for index in sorted(range(len(media)), key=lambda i: media[i].at):
        at = media[index].at
        if not 0 <= at <= count:
            raise ValueError(f"a medium at text position {at} of {count}")
        pieces.append((text_SD[done:at], labels_S[done:at], roles_S[done:at], -1))
        soft = media[index].embeds_MD.to(text_SD.dtype)
        blank = labels_S.new_full((len(soft),), IGNORED)
        pieces.append((soft, blank, torch.full_like(blank, MEDIA), index))
        done = at
    pieces.append((text_SD[done:], labels_S[done:], roles_S[done:], -1))
    roles = torch.cat([p[2] for p in pieces])
    item = torch.cat([torch.full_like(p[1], p[3]) for p in pieces])
    labels = torch.cat([p[1] for p in pieces])
    labels[:1] = IGNORED
    return _Row(
        embeds=torch.cat([p[0] for p in pieces]),
        labels=labels,
        roles=roles,
        item=item,
        text_at=(roles != MEDIA).nonzero(as_tuple=True)[0],
    )


def _pad(rows: Sequence[_Row], side: Literal["left", "right"]) -> Spliced:
    """Stack rows of different lengths and count positions over what is real."""
    length = max(len(row.embeds) for row in rows)
    words = max(len(row.text_at) for row in rows)
    first = rows[0]

    def stack(values: Sequence[Tensor], size: int, fill: int, *, left: bool = False) -> Tensor:
        out = values[0].new_full((len(values), size, *values[0].shape[1:]), fill)
        pieces = []
        for row, value in zip(out, values, strict=True):
            gap = row[: size - len(value)]
            pieces.append(torch.cat([gap, value] if left else [value, gap]))
        return torch.stack(pieces)

    left = side == "left"
    shift = [length - len(row.embeds) if left else 0 for row in rows]
    mask = stack([torch.ones_like(row.labels) for row in rows], length, 0, left=left)
    number_B1 = torch.arange(len(rows), device=mask.device)[:, None]
    return Spliced(
        embeds=stack([row.embeds for row in rows], length, 0, left=left),
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        labels=stack([row.labels for row in rows], length, IGNORED, left=left),
        roles=stack([row.roles for row in rows], length, PAD, left=left).to(torch.int8),
        item=stack([row.item for row in rows], length, -1, left=left).to(torch.int16),
        sample=torch.where(mask.bool(), number_B1, -1).to(torch.int32),
        text_at=stack([row.text_at + s for row, s in zip(rows, shift, strict=True)], words, -1).to(
            first.labels.device
        ),
    )


def _pack(rows: Sequence[_Row]) -> Spliced:
    """Lay rows one behind the other; each counts its positions from 0."""
    sizes = [len(row.embeds) for row in rows]
    starts = [sum(sizes[:b]) for b in range(len(rows))]
    labels_T = torch.cat([row.labels for row in rows])
    device = labels_T.device
    length = max(len(row.text_at) for row in rows)
    text_at = torch.full((len(rows), length), -1, dtype=torch.long, device=device)
    for b, (row, start) in enumerate(zip(rows, starts, strict=True)):
        text_at[b, : len(row.text_at)] = row.text_at + start
    number_T = torch.repeat_interleave(
        torch.arange(len(rows), device=device), torch.tensor(sizes, device=device)
    )
    return Spliced(
        embeds=torch.cat([row.embeds for row in rows])[None],
        attention_mask=torch.ones_like(labels_T)[None],
        position_ids=torch.cat([torch.arange(size, device=device) for size in sizes])[None],
        labels=labels_T[None],
        roles=torch.cat([row.roles for row in rows])[None].to(torch.int8),
        item=torch.cat([row.item for row in rows])[None].to(torch.int16),
        sample=number_T[None].to(torch.int32),
        text_at=text_at,
    )
