"""Settings of how a run is computed and watched; the whole schema is in ``train/config.py``."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from onellm.config import StrictModel


class LoraConfig(StrictModel):
    """Train low-rank additions to the LLM's linear maps in place of the LLM itself.

    Attributes:
        rank: of the additions.
        alpha: their scale times the rank.
        dropout: share of their inputs that is dropped while training.
        targets: names of linear layers, as peft takes them; ``"all-linear"`` for all but the head.
    """

    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: str | tuple[str, ...] = "all-linear"


class OffloadConfig(StrictModel):
    """What DeepSpeed keeps out of the GPU's memory.

    Attributes:
        optimizer: where float32 weights and Adam's moments are; the update is then computed on
            the CPU. ``"nvme"`` needs ZeRO 3 and DeepSpeed's async_io extension (libaio).
        parameters: where weights wait until they are needed; ZeRO 3 only.
        path: folder on a local NVMe disk.
    """

    optimizer: Literal["none", "cpu", "nvme"] = "none"
    parameters: Literal["none", "cpu", "nvme"] = "none"
    path: str | None = None


class DeepSpeedConfig(StrictModel):
    """Train with DeepSpeed; its JSON is made from this configuration.

    Attributes:
        zero: ZeRO stage: 0 none, 1 optimiser states divided among devices, 2 gradients too, 3
            weights too.
        offload: what is kept out of the GPU's memory; ZeRO 1 and up.
        raw: passed through to DeepSpeed's JSON, over what we write there.
    """

    zero: Literal[0, 1, 2, 3] = 1
    offload: OffloadConfig = OffloadConfig()
    raw: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        used = {self.offload.optimizer, self.offload.parameters}
        if self.offload.parameters != "none" and self.zero < 3:
            raise ValueError(f"offload.parameters needs zero=3; found zero={self.zero}")
        if self.offload.optimizer != "none" and self.zero < 1:
            raise ValueError("offload.optimizer needs zero=1 or more")
        if self.offload.optimizer == "nvme" and self.zero < 3:
            raise ValueError(f"offload.optimizer=nvme needs zero=3; found zero={self.zero}")
        if "nvme" in used and self.offload.path is None:
            raise ValueError("offload.path: name a folder on the NVMe disk")
        return self


ModelPart = Literal["encoder", "projector", "llm"]


class ComputeConfig(StrictModel):
    """How the same mathematics is computed: what it costs in time and memory.

    Attributes:
        recompute: parts whose blocks keep nothing but their input for the backward pass, and are
            computed again there (activation checkpointing).
        compile: parts whose blocks go through ``torch.compile``.
        attention: of the LLM, as ``transformers`` names it; ``"sdpa"`` lets PyTorch choose its
            kernel, its own FlashAttention among them; ``"flash_attention_2"`` needs the package
            flash-attn; ``"as_is"`` leaves what the model came with. Encoder and projector
            always go through PyTorch's choice.
        llm_bits: 4 keeps the LLM's frozen linear weights in 4-bit NF4; needs ``stage.lora``.
    """

    recompute: tuple[ModelPart, ...] = ()
    compile: tuple[ModelPart, ...] = ()
    attention: Literal["sdpa", "flash_attention_2", "eager", "as_is"] = "as_is"
    llm_bits: Literal[4] | None = None


class LogConfig(StrictModel):
    """Where a run is reported beside ``metrics.jsonl``.

    Attributes:
        tensorboard: write event files into ``tensorboard/`` of the run's folder.
        wandb: name of a Weights & Biases project; left out, none is written to.
        peak_tflops: 10^12 floating-point operations per second that a device can do at best, in
            the run's number type, against which MFU is reckoned; left out, known GPUs' data
            sheets, or on other devices a matrix product measured at the start.
    """

    tensorboard: bool = False
    wandb: str | None = None
    peak_tflops: PositiveFloat | None = None
