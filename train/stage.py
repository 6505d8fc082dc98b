"""Settings of what a stage trains, on which modalities, with which objective."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from onellm.config import StrictModel
from onellm.data.targets import Target
from onellm.train.compute import LoraConfig


class CopyPath(StrictModel):
    """Start other modalities from one that is already trained (paper §3.3).

    Attributes:
        source: the modality that was trained alone, with one active expert.
        targets: modalities that begin as its copy; its expert becomes every expert.
    """

    source: str
    targets: tuple[str, ...] = Field(min_length=1)


class FitOutput(StrictModel):
    """Start the last projection from a ridge regression onto word embeddings; ours.

    Attributes:
        modalities: whose ``projector.proj_out`` is set.
        target: which text of a sample its soft tokens are brought near.
        ridge: strength, as a share of the mean variance of the mixed queries.
    """

    modalities: tuple[str, ...] = Field(min_length=1)
    target: Target = "answer"
    ridge: PositiveFloat = 0.01


class ContrastiveConfig(StrictModel):
    """The head of the contrastive objective; it is dropped after its stage.

    Attributes:
        width: of the space in which media and texts are compared.
        temperature: where the learned temperature starts.
        mixup: a of the Beta(a, a) distribution from which the share is drawn that a sample's
            features keep of themselves when they are mixed with another one's; 0 for no mixing.
    """

    width: PositiveInt = 128
    temperature: PositiveFloat = 0.07
    mixup: float = Field(default=0.0, ge=0)


class ClipConfig(StrictModel):
    """The text tower of the clip objective; it is dropped after its stage.

    Attributes:
        width: of the tower.
        layers: number of blocks.
        heads: attention heads per block.
        context: longest text in tokens of CLIP's own tokenizer.
        temperature: where the learned temperature starts.
    """

    width: PositiveInt = 128
    layers: PositiveInt = 2
    heads: PositiveInt = 4
    context: PositiveInt = 16
    temperature: PositiveFloat = 0.07


class StageConfig(StrictModel):
    """What is trained, on which modalities, with which objective.

    Attributes:
        name: of the stage, for logs and checkpoints.
        objective: ``"lm"`` next-token prediction through the LLM; ``"contrastive"`` media
            against texts without the LLM in the loop; ``"clip"`` pictures against texts with
            open_clip's loss, to pre-train the encoder.
        modalities: which are drawn, replayed ones included.
        trainable: globs over parameter names; ``{modality}`` stands for each of ``modalities``.
            Everything else is frozen, and a glob that matches nothing is an error.
        copy_path: applied once, before the first step.
        fit_output: applied once, before the first step and behind ``copy_path``.
        active_experts: how many experts run; left out, all of them.
        lora: of the LLM exactly these additions are trained, whatever ``trainable`` says of
            ``llm.*``; they are merged into the LLM at the end.
        frozen: what is computed once instead of every step: ``"features"`` of the encoder for
            modalities whose tokenizer is frozen, ``"soft"`` tokens where the projector is
            frozen too.
        frozen_views: with ``data.augment``, how many random variations of each signal are
            computed beside the plain one; each draw takes one of them.
        frozen_gigabytes: 10^9 bytes that may take; more is an error.
        frozen_folder: read it from here, where ``onellm data cache`` wrote it, in place of
            computing it and keeping it in memory.
        contrastive: settings of that objective.
        clip: settings of that objective.
    """

    name: str
    objective: Literal["lm", "contrastive", "clip"] = "lm"
    modalities: tuple[str, ...] = Field(min_length=1)
    trainable: tuple[str, ...] = Field(min_length=1)
    copy_path: CopyPath | None = None
    fit_output: FitOutput | None = None
    active_experts: PositiveInt | None = None
    lora: LoraConfig | None = None
    frozen: Literal["none", "features", "soft"] = "none"
    frozen_views: NonNegativeInt = 0
    frozen_gigabytes: PositiveFloat = 4.0
    frozen_folder: str = ""
    contrastive: ContrastiveConfig = ContrastiveConfig()
    clip: ClipConfig = ClipConfig()
