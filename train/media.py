"""The media of a batch on their way through the model, frozen parts from memory where possible.

Shape legend: B batch, N tokens, D width, Q queries.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from onellm.data.faults import Faults, Skipped
from onellm.data.loader import Batch, medium_key, view_key
from onellm.data.order import stable_hash
from onellm.data.sample import Sample
from onellm.data.signal_reader import SignalReader
from onellm.errors import BadInput, ConfigError
from onellm.modality import Modality
from onellm.model import OneLLM
from onellm.sequence import TokenSeq
from onellm.source import Source

Place = tuple[int, int]
"""Sample of the batch, medium of the sample."""

Agree = Callable[[Mapping[str, int]], Mapping[str, int]]
"""Passes of each modality on this device → the most of any device."""


class Store(Protocol):
    """Outputs of frozen parts that stand in for media.

    Attributes:
        level: ``"features"`` of the encoder, or ``"soft"`` tokens.
    """

    level: str

    def holds(self, key: str, source: Source) -> bool:
        """Whether a medium's outputs are here, and still good for its source."""
        ...

    def any_key(self, name: str) -> str | None:
        """Key of some stored output of a modality, or None."""
        ...

    def get(self, keys: Sequence[str]) -> Tensor:
        """Stored outputs, stacked on a batch axis."""
        ...


class FrozenStore:
    """Outputs of frozen parts, computed once and kept in memory.

    Only what no trained parameter feeds into may be stored, so it is built after the trainable
    parameters have been selected.

    Args:
        model: the model.
        level: ``"features"`` of the encoder, or ``"soft"`` tokens.
        modalities: of the stage; those with a trained tokenizer (or, for ``"soft"``, a trained
            projector) are left out.
        views: random variations of each signal that are stored beside the plain one.
        seed: of the variations.
        gigabytes: 10^9 bytes of outputs; more is an error.

    Raises:
        ConfigError: nothing can be stored, because all of it is trained.
    """

    def __init__(
        self,
        model: OneLLM,
        level: str,
        modalities: Sequence[str],
        gigabytes: float,
        *,
        views: int = 0,
        seed: int = 0,
    ) -> None:
        self.model, self.level, self.views, self.seed = model, level, views, seed
        self.modalities = [m for m in modalities if is_frozen(model, m, level)]
        if not self.modalities:
            raise ConfigError(
                f"stage.frozen={level}: every modality has trained parameters in front of that"
            )
        self._room = gigabytes * 1e9
        self._kept: dict[str, Tensor] = {}

    def __contains__(self, key: str) -> bool:
        return view_key(key, 0) in self._kept

    def holds(self, key: str, source: Source) -> bool:
        """Whether a medium's outputs are here."""
        return key in self

    @torch.no_grad()
    def fill(
        self,
        samples: Mapping[str, Sequence[Sample]],
        reader: SignalReader,
        faults: Faults,
        *,
        batch: int = 16,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Compute the outputs of all samples.

        The grouping into batches depends on the data alone, so that a resumed run finds the same
        numbers to the last bit.

        Args:
            samples: by modality.
            reader: reads signals.
            faults: policy for broken samples; skipped ones are left out.
            batch: signals of one pass.
            progress: told how many samples are done, of how many.
        """
        training = self.model.training
        self.model.eval()  # what is stored must not hold one draw of a dropout for ever
        names = [name for name in self.modalities if name in samples]
        total, done = sum(len(samples[name]) for name in names), 0
        for name in names:
            modality = self.model.modality(name)
            for chunk in same_shape(samples[name], name, reader, faults, batch):
                for view in range(self.views + 1):
                    signals = torch.stack(
                        [vary(modality, *item, view, self.seed) for item in chunk]
                    )
                    keys = [view_key(key, view) for key, _ in chunk]
                    self._keep(keys, self._compute(name, signals))
                done += len(chunk)
                progress(done, total)
        self.model.train(training)
        progress(total, total)

    def _compute(self, name: str, signals: Tensor) -> Tensor:
        frames = self.model.frame_features(name, signals)
        if not bool(frames.mask_BN.all()):
            raise ConfigError(f"stage.frozen cannot store the padded features of {name}")
        if self.level == "features":
            # A plain mean over frames is frozen, too, and a fraction of their size.
            plain = name not in self.model.frames
            return self.model.reduce_frames(frames).x_BND if plain else frames.x_BND
        return self.model.project(self.model.reduce_frames(frames))

    def _keep(self, keys: Sequence[str], outputs: Tensor) -> None:
        self._room -= outputs.numel() * outputs.element_size()
        if self._room < 0:
            raise ConfigError(
                "stage.frozen: the outputs need more memory than stage.frozen_gigabytes allows; "
                "raise it or set stage.frozen=none"
            )
        self._kept.update(zip(keys, outputs, strict=True))

    def any_key(self, name: str) -> str | None:
        """Key of some stored output of a modality, or None."""
        return next((key for key in self._kept if key.startswith(f"{name}/")), None)

    def get(self, keys: Sequence[str]) -> Tensor:
        """Stored outputs, stacked on a batch axis."""
        return torch.stack([self._kept[key] for key in keys])


def parts_before(name: str, level: str) -> tuple[str, ...]:
    """Beginnings of the names of all parameters between a modality's signal and a level."""
    before = ("encoder.", f"tokenizers.{name}.", f"positions.{name}")
    return (*before, "projector.", f"frames.{name}") if level == "soft" else before


def is_frozen(model: OneLLM, name: str, level: str) -> bool:
    """Whether no trained parameter stands between a modality's signal and the level."""
    before = parts_before(name, level)
    return not any(
        parameter.requires_grad and parameter_name.startswith(before)
        for parameter_name, parameter in model.named_parameters()
    )


def vary(modality: Modality, key: str, signal: Tensor, view: int, seed: int) -> Tensor:
    """One of a signal's random variations, always the same one for a view and seed.

    Args:
        modality: augments it.
        key: of the medium.
        signal: as the modality loads it; left as it is.
        view: 0 for the signal itself.
        seed: of all variations.
    """
    if not view:
        return signal
    generator = torch.Generator().manual_seed(stable_hash(seed, key, view) >> 1)
    return modality.augment(signal, generator)


def same_shape(
    samples: Sequence[Sample], name: str, reader: SignalReader, faults: Faults, size: int
) -> Iterator[list[tuple[str, Tensor]]]:
    """Runs of at most ``size`` signals of one shape with their keys, in the samples' order.

    Args:
        samples: media of other modalities are passed over.
        name: the modality.
        reader: reads signals.
        faults: policy for broken samples; skipped ones are left out.
        size: longest run.
    """
    chunk: list[tuple[str, Tensor]] = []
    seen: set[str] = set()  # many samples may ask about one file
    for index in range(len(samples)):
        try:
            sample = samples[index]
        except BadInput:
            with suppress(Skipped):
                faults.attempt(partial(samples.__getitem__, index), name)
            continue
        for position, (modality, source) in enumerate(sample.media):
            if modality != name:
                continue
            key = medium_key(sample, position)
            if key in seen:
                continue
            seen.add(key)
            try:
                signal = faults.attempt(partial(reader.read, name, source, key), name)
            except Skipped:
                continue
            if chunk and (len(chunk) == size or chunk[0][1].shape != signal.shape):
                yield chunk
                chunk = []
            chunk.append((key, signal))
    if chunk:
        yield chunk


@dataclass
class MediaGroup:
    """Media of one modality and shape, from anywhere in a batch.

    Args:
        modality: their modality's name.
        places: where each of them stands.
        features: their encoder features (B, N, D); None where ``soft`` was stored.
        soft: their stored soft tokens (B, Q, D_llm), or None.
    """

    modality: str
    places: list[Place]
    features: TokenSeq | None
    soft: Tensor | None = None

    def soften(self, model: OneLLM) -> Tensor:
        """Soft tokens (B, Q, D_llm), stored or computed."""
        if self.features is not None:
            return model.project(self.features)
        assert self.soft is not None, "a media group has features or soft tokens"
        return self.soft


def encode_groups(
    model: OneLLM, batch: Batch, store: Store | None, agree: Agree | None = None
) -> list[MediaGroup]:
    """Encode all media of a batch, one pass per modality and shape.

    Args:
        model: the model.
        batch: examples; a medium without a signal is looked up in the store.
        store: stored outputs of frozen parts.
        agree: where all devices must run the same passes: gives the most of any device.

    Returns:
        groups in order of modality, so that every device builds the same graph. Where another
        device has more of a modality, groups without places stand in for them.
    """
    found: dict[tuple[str, tuple[int, ...]], list[Place]] = defaultdict(list)
    for b, example in enumerate(batch):
        for i, medium in enumerate(example.media):
            shape = () if medium.signal is None else tuple(medium.signal.shape)
            found[medium.modality, shape].append((b, i))
    if agree is not None:
        here = Counter(name for name, _ in found)
        for name, most in agree(here).items():
            stored = store is not None and store.any_key(name) is not None
            for number in range(here[name], most):
                found[name, () if stored else (-number,)] = []
    return [
        _encode(model, batch, name, places, store if not shape else None)
        for (name, shape), places in sorted(found.items())
    ]


def _encode(
    model: OneLLM, batch: Batch, name: str, places: list[Place], store: Store | None
) -> MediaGroup:
    media = [batch[b].media[i] for b, i in places]
    if store is not None:
        kept = store.get([m.key for m in media] or [store.any_key(name) or ""])
        if store.level == "soft":
            return MediaGroup(name, places, None, kept)
        shape = (len(kept), kept.shape[-2])
        mask_BN = torch.ones(shape, dtype=torch.bool, device=kept.device)
        frames = TokenSeq(kept, mask_BN, (kept.shape[-2] - 1,), name)
        reduced = frames if kept.ndim == 3 else model.reduce_frames(frames)
        return MediaGroup(name, places, reduced)
    signals = [m.signal for m in media if m.signal is not None] or [model.modality(name).example()]
    return MediaGroup(name, places, model.features(name, torch.stack(signals)))
