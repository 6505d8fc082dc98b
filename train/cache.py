"""Outputs of frozen parts on disk: encoder features and soft tokens that runs need not compute.

A cache belongs to the weights and settings that it was computed with, and to the very files. What
has changed since is refused, never used and never silently computed again.

Shape legend: B batch, N tokens, D width, Q queries.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from onellm.data.faults import Faults
from onellm.data.loader import medium_key, view_key
from onellm.data.sample import Sample
from onellm.data.signal_reader import SignalReader
from onellm.errors import BadInput, CheckpointError, ConfigError
from onellm.model import OneLLM
from onellm.progress import Progress
from onellm.source import Source, stamp_of
from onellm.train.config import TrainConfig
from onellm.train.engine import pick_device, weight_type
from onellm.train.media import FrozenStore, is_frozen, parts_before
from onellm.train.mixture import open_data
from onellm.train.trainables import select

LISTING = "cache.json"
_FILE_BYTES = 1 << 29


def fingerprint(model: OneLLM, name: str, level: str) -> str:
    """A hash of all that a modality's outputs depend on, beside the files themselves.

    Args:
        model: the model.
        name: the modality.
        level: ``"features"`` or ``"soft"``.
    """
    digest = hashlib.blake2b(digest_size=16)
    settings: dict[str, Any] = {
        "modality": model.modality(name).model_dump(mode="json"),
        "encoder": model.config.encoder.model_dump(mode="json"),
    }
    if level == "soft":
        settings["projector"] = model.config.projector.model_dump(mode="json")
        settings["active_experts"] = model.projector.active_experts
    digest.update(json.dumps(settings, sort_keys=True).encode())
    others = set(model.modalities) - {name}
    for key, tensor in sorted(model.state_dict().items()):
        if key.startswith(parts_before(name, level)) and not others & set(key.split(".")):
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()


class CacheWriter(FrozenStore):
    """Computes outputs of frozen parts and writes them to a folder.

    Args:
        folder: a new or empty folder.
        model: the model, with the trainable parameters of the stage to come selected.
        level: ``"features"`` or ``"soft"``.
        modalities: of the stage; those with trained parts in front of the level are left out.
        views: random variations of each signal beside the plain one.
        seed: of the variations.

    Raises:
        ConfigError: nothing can be stored, or the folder holds something.
    """

    def __init__(
        self,
        folder: Path,
        model: OneLLM,
        level: str,
        modalities: Sequence[str],
        *,
        views: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(model, level, modalities, float("inf"), views=views, seed=seed)
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder}: expected a new or empty folder; found files in it")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._bytes, self._files = folder, 0, 0
        self._where: dict[str, str] = {}
        self._stamps: dict[str, str] = {}

    def write(
        self,
        samples: Mapping[str, Sequence[Sample]],
        reader: SignalReader,
        faults: Faults,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> int:
        """Compute and write the outputs of all samples.

        Args:
            samples: by modality.
            reader: reads signals.
            faults: policy for broken samples; skipped ones are left out.
            progress: told how many samples are done, of how many.

        Returns:
            how many outputs were written.
        """
        for name in self.modalities:
            self._stamp(samples.get(name, ()))
        self.fill(samples, reader, faults, progress=progress)
        self._flush()
        listing = {
            "level": self.level,
            "views": self.views,
            "seed": self.seed,
            "fingerprints": {n: fingerprint(self.model, n, self.level) for n in self.modalities},
            "outputs": self._where,
            "stamps": {k: s for k, s in self._stamps.items() if view_key(k, 0) in self._where},
        }
        temporary = self.folder / f".{LISTING}.tmp"
        temporary.write_text(json.dumps(listing), encoding="utf-8")
        temporary.replace(self.folder / LISTING)  # last: a folder with a listing is complete
        return len(self._where)

    def _stamp(self, samples: Sequence[Sample]) -> None:
        for index in range(len(samples)):
            with suppress(BadInput):  # it is told of, or passed over, where it is encoded
                sample = samples[index]
                for position, (_, source) in enumerate(sample.media):
                    self._stamps[medium_key(sample, position)] = stamp_of(source)

    def _keep(self, keys: Sequence[str], outputs: Tensor) -> None:
        for key, output in zip(keys, outputs, strict=True):
            self._kept[key] = output.detach().cpu().clone()
            self._where[key] = self._name
            self._bytes += output.numel() * output.element_size()
        if self._bytes >= _FILE_BYTES:
            self._flush()

    @property
    def _name(self) -> str:
        return f"outputs-{self._files:05d}.safetensors"

    def _flush(self) -> None:
        if self._kept:
            save_file(self._kept, str(self.folder / self._name))
            self._files += 1
        self._kept, self._bytes = {}, 0


class CachedStore:
    """Outputs that :class:`CacheWriter` wrote, read when they are drawn.

    Args:
        folder: of the cache.
        model: the model.
        level: what the stage wants.
        views: variations that the stage wants.
        seed: of the run.
        modalities: of the stage.

    Raises:
        CheckpointError: no cache, or one of other weights or settings: it says which.
    """

    def __init__(
        self,
        folder: str | Path,
        model: OneLLM,
        level: str,
        modalities: Sequence[str],
        *,
        views: int = 0,
        seed: int = 0,
    ) -> None:
        self.folder, self.level, self.views, self.device = Path(folder), level, views, model.device
        listing = self._listing()
        wanted = {"level": level, "views": views} | ({"seed": seed} if views else {})
        for key, value in wanted.items():
            if listing[key] != value:
                raise CheckpointError(
                    f"{folder}: expected a cache with {key} {value}; found {listing[key]}. Write "
                    "one for this run: onellm data cache"
                )
        self.modalities = [m for m in listing["fingerprints"] if m in modalities]
        for name in self.modalities:
            if not is_frozen(model, name, level):
                raise CheckpointError(
                    f"{folder}: the stage trains parts of {name} that its cached {level} hold"
                )
            if listing["fingerprints"][name] != fingerprint(model, name, level):
                raise CheckpointError(
                    f"{folder}: the cached {level} of {name} are of other weights or settings; "
                    "write them again: onellm data cache"
                )
        self._where: dict[str, str] = listing["outputs"]
        self._stamps: dict[str, str] = listing["stamps"]
        self._open: dict[str, Any] = {}

    def _listing(self) -> dict[str, Any]:
        file = self.folder / LISTING
        try:
            listing: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(f"{file}: expected a finished cache; found none") from error
        except ValueError as error:
            raise CheckpointError(f"{file}: damaged ({error})") from error
        return listing

    def __contains__(self, key: str) -> bool:
        return view_key(key, 0) in self._where

    def holds(self, key: str, source: Source) -> bool:
        """Whether a medium's outputs are here, and still those of its file.

        Raises:
            BadInput: the file is another one than that which was encoded, or was not encoded with
                the others of its modality.
        """
        if key.partition("/")[0] not in self.modalities:
            return False
        if key not in self:
            raise BadInput(
                key,
                expected=f"outputs in {self.folder}",
                found="none under this path",
                hint="Write the cache again for this run's data: onellm data cache.",
            )
        found = stamp_of(source)
        if found != self._stamps[key]:
            raise BadInput(
                key,
                expected=f"the file whose outputs are in {self.folder}",
                found="another one, or a changed one",
                hint="Write the cache again: onellm data cache.",
            )
        return True

    def any_key(self, name: str) -> str | None:
        """Key of some stored output of a modality, or None."""
        return next((key for key in self._where if key.startswith(f"{name}/")), None)

    def get(self, keys: Sequence[str]) -> Tensor:
        """Stored outputs, stacked on a batch axis."""
        return torch.stack([self._read(key) for key in keys]).to(self.device)

    def _read(self, key: str) -> Tensor:
        name = self._where[key]
        try:
            if name not in self._open:
                self._open[name] = safe_open(str(self.folder / name), framework="pt")
            tensor: Tensor = self._open[name].get_tensor(key)
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{self.folder / name}: expected outputs of the cache; found no such file"
            ) from error
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.folder / name}: damaged ({error})") from error
        return tensor

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_open": {}}  # open files do not travel to workers


def write_cache(config: TrainConfig, folder: Path, progress: Progress) -> tuple[int, int, int]:
    """Write the cache of a stage: what its frozen parts make of its media.

    Args:
        config: the run; ``stage.frozen`` says what is written.
        folder: a new or empty folder.
        progress: told how many samples are done.

    Returns:
        how many outputs were written, their bytes on disk, and how many samples or media were left
        out because they are broken.

    Raises:
        ConfigError: ``stage.frozen`` is ``"none"``, or everything is trained.
    """
    stage = config.stage
    if stage.frozen == "none":
        raise ConfigError("data cache: say what to write: stage.frozen=features or soft")
    model = OneLLM.from_pretrained(config.model, dtype=weight_type(config))
    model = model.to(pick_device())
    if stage.copy_path is not None:
        model.copy_path(stage.copy_path.source, stage.copy_path.targets)
    model.projector.active_experts = stage.active_experts or model.config.projector.experts
    select(model, stage.trainable, stage.modalities)
    # Neither a LoRA nor stage.fit_output is applied: both change what lies behind the features, and
    # a stage that trains the projector, as fit_output demands, has no frozen soft tokens.
    faults = Faults(config.data.faults)
    drawn = open_data(config.data, model.modalities, stage.modalities, faults)
    views = stage.frozen_views if config.data.augment else 0
    writer = CacheWriter(
        *(folder, model, stage.frozen, stage.modalities), views=views, seed=config.seed
    )
    title = f"{stage.frozen} of {', '.join(writer.modalities)}"
    reader = SignalReader(model.modalities)
    seen = -1

    def follow(done: int, total: int) -> None:
        nonlocal seen
        if seen < 0:
            progress.phase(title, total)
        progress.advance(done - max(seen, 0))
        seen = done

    count = writer.write(drawn.samples, reader, faults, follow)
    return count, sum(file.stat().st_size for file in folder.iterdir()), faults.total
