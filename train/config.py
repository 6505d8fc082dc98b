"""The one schema of a training run; ``train/configs/*.yaml`` are instances of it.

A run is one *stage*: data decide which samples are drawn, the stage what is trained on them and
with which objective, the rest how. Every unknown key is an error that offers the nearest spelling.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from onellm.config import StrictModel
from onellm.data.datasets import DatasetConfig
from onellm.data.faults import FaultConfig
from onellm.data.fetching import FetchConfig
from onellm.data.plan import Layout
from onellm.data.targets import Target
from onellm.data.workers import PATIENCE
from onellm.errors import ConfigError
from onellm.train.compute import ComputeConfig, DeepSpeedConfig, LogConfig
from onellm.train.stage import StageConfig


def _captions() -> dict[Target, float]:
    return {"caption": 1.0}


IDLE_WITH_DATASETS = ("folder", "split", "targets", "balance", "weights")


class DataConfig(StrictModel):
    """Which samples are drawn, and what text is trained on.

    Attributes:
        datasets: data sets in any of the formats of docs/data.md, each a section or a path alone;
            one may stand without a list. ``folder``, ``split``, ``targets``, ``balance`` and
            ``weights`` have nothing to say beside them: those of a stage's file are left out where
            an override names data sets.
        folder: folder of ``<modality>-<split>.tar`` shards; ``"starter"`` is the packaged data.
        split: ``"train"`` or ``"test"``.
        targets: what text is trained on, with weights: see :data:`onellm.data.targets.Target`.
        balance: ``"equal"`` draws every modality equally often, ``"size"`` in proportion to its
            number of samples.
        weights: further factors by modality; 1 where left out.
        media: false leaves the media out and trains on the text alone.
        augment: vary signals at random, seeded by (seed, epoch, sample).
        max_tokens: longer texts are cut off.
        faults: what happens to samples that cannot be read.
        keep_megabytes: 10^6 bytes of decoded signals kept in memory.
        ahead: optimiser steps read ahead in a thread; 0 reads in the loop.
        workers: processes on each device's machine that read media for it; 0 reads in the thread,
            which is enough where a core decodes faster than the device learns.
        patience: seconds to wait for what a worker process reads, before the run stops and names
            the sample; 0 waits for ever.
        shelf: folder for shards that are fetched; the user's cache if left out.
        shelf_gigabytes: 10^9 bytes of fetched shards kept on each machine.
        fetch: how often, and with what patience, a shard under an address is asked for.
    """

    datasets: tuple[DatasetConfig, ...] = ()
    folder: str = "starter"
    split: Literal["train", "test"] = "train"
    targets: dict[Target, PositiveFloat] = Field(default_factory=_captions)
    balance: Literal["equal", "size"] = "equal"
    weights: dict[str, PositiveFloat] = Field(default_factory=dict)
    media: bool = True
    augment: bool = False
    max_tokens: PositiveInt = 96
    faults: FaultConfig = FaultConfig()
    keep_megabytes: float = Field(default=0.0, ge=0)
    ahead: NonNegativeInt = 1
    workers: NonNegativeInt = 0
    patience: NonNegativeFloat = PATIENCE
    shelf: str = ""
    shelf_gigabytes: PositiveFloat = 100.0
    fetch: FetchConfig = FetchConfig()

    @field_validator("datasets", mode="before")
    @classmethod
    def _paths_alone(cls, value: Any) -> Any:
        many = [value] if isinstance(value, str | Mapping) else value
        if not isinstance(many, list | tuple):
            return many
        return [{"path": one} if isinstance(one, str) else one for one in many]

    @model_validator(mode="after")
    def _one_kind_of_data(self) -> Self:
        fields = {n: type(self).model_fields[n] for n in IDLE_WITH_DATASETS}
        usual = {
            name: field.get_default(call_default_factory=True) for name, field in fields.items()
        }
        idle = [name for name, value in usual.items() if getattr(self, name) != value]
        if self.datasets and idle:
            raise ValueError(
                f"data.datasets replaces data.{idle[0]}: each data set has its own settings"
            )
        return self


class OptimConfig(StrictModel):
    """AdamW and its learning rate, all in optimiser steps.

    Attributes:
        lr: peak learning rate.
        min_lr: where the schedule ends.
        schedule: ``"cosine"`` from ``lr`` to ``min_lr`` over the run, or ``"constant"``.
        lr_factors: glob over parameter names → factor on the learning rate; the first that
            matches counts.
        warmup_steps: optimiser steps of linear rise to ``lr``.
        betas: of AdamW.
        weight_decay: of AdamW, for parameters that no glob of ``no_decay`` matches.
        no_decay: globs over parameter names: by default biases, norms, tags, positions and
            queries, the encoder's class token, and the learned temperature.
        grad_clip: largest norm of the whole gradient.
        max_skipped: so many updates in a row may be left out because the loss or the gradient is
            not finite; one more stops the run. 0 stops at the first. With float16 they are the
            business of the loss scale, and do not stop the run.
    """

    lr: PositiveFloat
    min_lr: float = Field(default=0.0, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    lr_factors: dict[str, PositiveFloat] = Field(default_factory=dict)
    warmup_steps: NonNegativeInt = 0
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(default=0.0, ge=0)
    no_decay: tuple[str, ...] = (
        *("*bias", "*norm*", "*.ln_*", "projector.proj_*.1.weight"),
        *("tags.*", "positions.*", "frames.*", "projector.queries.*", "head.log_scale"),
        *("*.positional_embedding", "*.class_embedding"),
    )
    grad_clip: PositiveFloat = 2.0
    max_skipped: NonNegativeInt = 0


class BatchConfig(StrictModel):
    """How samples are grouped; none of it depends on the number of devices but ``per_device``.

    Attributes:
        size: samples of one optimiser step, over all devices and accumulated passes.
        per_device: samples of one forward pass on one device; left out, ``size / devices``.
            Gradients are accumulated over ``size / (per_device x devices)`` passes. In packed
            rows it is the average, and with ``tokens`` it does not count.
        same_modality: this many samples in a row are of one modality; 1 mixes freely. ZeRO 2
            needs a multiple of ``per_device x devices``.
        arrange: ``"order"`` makes passes of samples as they come; ``"length"`` of samples of
            similar length, out of those of the step (or of a ``same_modality`` block), so that
            there is little padding and devices need not wait for each other.
        pack: put the samples of a pass into one row without padding; attention and positions
            begin anew with each.
        tokens: with ``pack`` and ``arrange: length``, longest row in positions, media included;
            the number of passes follows from it.
    """

    size: PositiveInt
    per_device: PositiveInt | None = None
    same_modality: PositiveInt = 1
    arrange: Literal["order", "length"] = "order"
    pack: bool = False
    tokens: PositiveInt | None = None

    @model_validator(mode="after")
    def _rows_fit(self) -> Self:
        if self.tokens and not (self.pack and self.arrange == "length"):
            raise ValueError("batch.tokens needs batch.pack=true and batch.arrange=length")
        return self

    def split(self, world: int) -> tuple[int, int]:
        """Samples of one forward pass on one device, and passes of one optimiser step.

        Args:
            world: number of processes.

        Raises:
            ConfigError: they do not come out even.
        """
        per_device = self.per_device or max(1, self.size // world)
        passes, rest = divmod(self.size, per_device * world)
        if rest or not passes:
            raise ConfigError(
                f"batch.size {self.size} is no multiple of {per_device} samples (batch.per_device) "
                f"on each of {world} device(s)"
            )
        return per_device, passes

    def layout(self, world: int) -> Layout:
        """How samples are laid out over devices and passes.

        Args:
            world: number of processes.

        Raises:
            ConfigError: they do not come out even.
        """
        per_device, _ = self.split(world)
        block = self.same_modality if self.same_modality > 1 else 0
        if self.arrange == "length" and block % (per_device * world):
            raise ConfigError(
                f"batch.arrange=length: set batch.same_modality to a multiple of "
                f"{per_device * world} (batch.per_device x devices); found {self.same_modality}"
            )
        return Layout(world, per_device, self.arrange, self.pack, self.tokens or 0, block)


class LengthConfig(StrictModel):
    """How long a run is.

    Attributes:
        steps: optimiser steps; or else
        epochs: times the number of examples drawn, all parts taken together. An override of one
            takes the place of the other in a stage's file.
    """

    steps: PositiveInt | None = None
    epochs: PositiveFloat | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.steps is None and self.epochs is None:
            raise ValueError("give steps or epochs")
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give steps or epochs, not both (length.epochs=null takes one away)")
        return self


class CheckpointConfig(StrictModel):
    """What survives a crash.

    Attributes:
        every: optimiser steps between checkpoints; 0 writes the last one only.
        keep: how many of the newest, by recorded step, are kept.
        keep_every: checkpoints whose step is a multiple of it are kept for good; 0 for none.
        resume: go on from the newest in ``out``; false refuses a folder that has one.
    """

    every: NonNegativeInt = 1000
    keep: PositiveInt = 3
    keep_every: NonNegativeInt = 0
    resume: bool = True


class TrainConfig(StrictModel):
    """One training run.

    Attributes:
        model: folder of a saved model, or a hub id, to start from.
        out: folder of the run: the trained model, ``metrics.jsonl``, ``train.json`` and
            ``checkpoints/``.
        seed: of the order of samples, augmentation and new heads.
        dtype: ``"float32"``; ``"bfloat16"`` weights with float32 masters under DeepSpeed,
            autocast without it; ``"float16"`` with DeepSpeed only; ``"auto"``, without DeepSpeed,
            autocast to bfloat16 where the device is faster at it.
        data: which samples.
        stage: what is trained.
        optim: optimiser and schedule.
        batch: grouping of samples.
        length: duration.
        checkpoint: what survives a crash.
        router_every: optimiser steps between router tables in ``metrics.jsonl``; 0 for none.
        compute: recomputation, compilation, attention, 4-bit weights.
        log: TensorBoard and Weights & Biases.
        deepspeed: left out, a single process trains with plain PyTorch.
    """

    model: str
    out: str
    seed: NonNegativeInt = 0
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    data: DataConfig = DataConfig()
    stage: StageConfig
    optim: OptimConfig
    batch: BatchConfig
    length: LengthConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    router_every: NonNegativeInt = 100
    compute: ComputeConfig = ComputeConfig()
    log: LogConfig = LogConfig()
    deepspeed: DeepSpeedConfig | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.data.augment and self.stage.frozen != "none" and not self.stage.frozen_views:
            raise ValueError(
                "stage.frozen stores one version of each signal: set data.augment=false, or "
                "stage.frozen_views to how many variations it is to store"
            )
        if self.dtype == "float16" and self.deepspeed is None:
            raise ValueError("dtype float16 needs loss scaling: add a deepspeed section")
        if self.dtype == "auto" and self.deepspeed is not None:
            raise ValueError("dtype auto is for plain PyTorch: with deepspeed, name the type")
        if self.stage.objective != "lm" and (self.batch.pack or self.batch.arrange != "order"):
            raise ValueError(
                f"batch.pack and batch.arrange are for the lm objective; {self.stage.objective} "
                "compares the samples of a pass, which are to come at random; set "
                "batch.pack=false batch.arrange=order"
            )
        if self.deepspeed and self.deepspeed.zero == 0 and self.dtype != "float32":
            raise ValueError(f"deepspeed.zero=0 trains in float32; take zero=1 for {self.dtype}")
        if self.compute.llm_bits and self.stage.lora is None:
            raise ValueError("compute.llm_bits=4 freezes the LLM's weights: add stage.lora")
        if self.compute.llm_bits and self.deepspeed is not None:
            raise ValueError("compute.llm_bits=4 is for one GPU: set deepspeed=null")
        strangers = set(self.data.weights) - set(self.stage.modalities)
        if strangers:
            raise ValueError(f"data.weights names {sorted(strangers)}, not in stage.modalities")
        return self
