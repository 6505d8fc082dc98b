"""What a stage minimises. An objective wraps the model, and owns whatever heads it needs.

DeepSpeed sees one module. Heads are in the training checkpoints, not in the exported model.

Shape legend: B batch, T positions, S supervised positions, V vocabulary, Q queries, D width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from onellm.data.loader import Batch
from onellm.errors import BadInput
from onellm.model import OneLLM
from onellm.splice import IGNORED, Spliced
from onellm.train.lm_head import CHUNK, check_packing, chunked_cross_entropy
from onellm.train.media import Agree, MediaGroup, Store, encode_groups
from onellm.train.stage import StageConfig


class Losses(NamedTuple):
    """Losses of one micro-batch, not yet divided by anything; a tuple, as hooks want it.

    Args:
        total: sum over everything that counts, a scalar to call ``backward`` on.
        sums_B: the share of each sample in it, detached, float32.
    """

    total: Tensor
    sums_B: Tensor


class Objective(nn.Module, ABC):
    """A loss over the model.

    Losses are sums; the loop divides by the sum of :meth:`counts` over all passes and devices of
    a step, so that accumulation and number of devices do not change the update.

    Args:
        model: the model, with its trainable parameters selected.

    Attributes:
        store: outputs of frozen parts, if the stage keeps them.
        in_step: whether other devices wait for every gradient of this one.
        divided: whether each device holds a part of every weight (ZeRO 3).
        agree: gives the largest count of every modality over all devices, where these must run
            the same passes in the same order (ZeRO 2 and 3); None where they need not.
    """

    def __init__(self, model: OneLLM) -> None:
        super().__init__()
        self.model = model
        self.store: Store | None = None
        self.in_step = False
        self.agree: Agree | None = None
        self.divided = False
        self._absent: set[str] = set()
        self._fillers: list[Tensor] = []

    @abstractmethod
    def counts(self, batch: Batch) -> list[int]:
        """How many terms each sample adds to the loss."""

    @abstractmethod
    def forward(self, batch: Batch) -> Losses:
        """Losses of a micro-batch."""

    def positions(self, batch: Batch) -> tuple[list[int], int]:
        """Length of each sample in the LLM, and positions computed, padding among them."""
        return [], 0

    def trained(self) -> dict[str, nn.Parameter]:
        """Trained parameters, by their name in the model; heads begin with ``head.``."""
        return {
            name.removeprefix("model."): parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad
        }

    def head_buffers(self) -> dict[str, Tensor]:
        """What a head computed once and needs again after a restart."""
        return {n: b for n, b in self.named_buffers() if not n.startswith("model.")}

    def idle(self, batch: Batch) -> Tensor:
        """Zero, with a gradient of zero for every trained parameter the batch does not reach.

        Devices reduce gradients parameter by parameter; one that has none for the audio
        tokenizer, because it drew no audio, would wait for ever or reduce the wrong ones. One
        process alone need not pay for that.
        """
        if not self.in_step:
            return torch.zeros((), device=self.model.device)
        drawn = {medium.modality for example in batch for medium in example.media}
        if self.agree is not None:
            drawn = set(self.model.modalities) - self._absent
        absent = set(self.model.modalities) - drawn
        idle = [
            self._touched(name)
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
            and (
                absent & set(name.split("."))
                or name.startswith("encoder.")  # its convolution waits where no picture was drawn
                or not (drawn or name.startswith("llm."))
            )
        ]
        idle, self._fillers = [*idle, *self._fillers], []
        return 0.0 * torch.stack(idle).sum() if idle else torch.zeros((), device=self.model.device)

    def _touched(self, name: str) -> Tensor:
        """A number of a parameter; asked of its owner, since ZeRO 3 gathers it only then."""
        home, _, leaf = name.rpartition(".")
        parameter = self.model.get_submodule(home)._parameters[leaf]
        assert parameter is not None, name
        return parameter.flatten()[:1].sum()

    def encoded(self, batch: Batch) -> list[MediaGroup]:
        """The batch's media, encoded; with groups of no place for the passes of other devices."""
        groups = encode_groups(self.model, batch, self.store, self.agree)
        self._absent = set(self.model.modalities) - {group.modality for group in groups}
        return groups

    def soften(self, group: MediaGroup) -> Tensor:
        """A group's soft tokens; a filler's enter the loss at weight zero."""
        soft_BQD = group.soften(self.model)
        if not group.places:
            self._fillers.append(soft_BQD.sum())
        return soft_BQD[: len(group.places)]


class LanguageModelling(Objective):
    """Cross-entropy of the next token, at supervised positions and nowhere else.

    Args:
        model: the model, with its trainable parameters selected.
        pack: put the samples of a pass into one row without padding; attention and positions
            begin anew with each.
        chunk: logits of about so many positions exist at a time.

    Raises:
        ConfigError: ``pack``, and the LLM attends across samples in a packed row.
    """

    def __init__(self, model: OneLLM, *, pack: bool = False, chunk: int = CHUNK) -> None:
        super().__init__(model)
        self._plain_head = has_plain_head(model.llm)
        self.pack, self.chunk = pack, chunk
        if pack:
            check_packing(model.llm)

    def counts(self, batch: Batch) -> list[int]:
        """Supervised tokens of each sample.

        Raises:
            BadInput: there is none in the whole batch.
        """
        counts = [example.supervised for example in batch]
        if not sum(counts):
            names = ", ".join(example.id for example in batch)
            raise BadInput(names, expected="at least one supervised token", found="none")
        return counts

    def positions(self, batch: Batch) -> tuple[list[int], int]:
        """Length of each sample with its media, and all positions that are computed."""
        medium = self.model.config.projector.queries + 2
        lengths = [len(example.ids) + medium * len(example.media) for example in batch]
        padded = max(lengths, default=0) * len(lengths)
        return lengths, sum(lengths) if self.pack else padded

    def forward(self, batch: Batch) -> Losses:
        """Sum of cross-entropies; logits are computed at supervised positions only."""
        self.counts(batch)
        spliced = self.model.splice(
            [example.ids for example in batch],
            [example.labels for example in batch],
            self._soft(batch),
            pack=self.pack,
        )
        # Position t predicts token t + 1.
        labels_BT = spliced.labels[:, 1:]
        learned_BT = labels_BT != IGNORED
        loss_S = self._losses(spliced, learned_BT, labels_BT[learned_BT])
        sample_S = spliced.sample[:, 1:][learned_BT].long()
        sums_B = loss_S.new_zeros(len(batch)).index_add(0, sample_S, loss_S.detach())
        return Losses(loss_S.sum() + self.idle(batch), sums_B)

    def _losses(self, spliced: Spliced, learned_BT: Tensor, labels_S: Tensor) -> Tensor:
        """Cross-entropy (S,) of learned tokens, float32."""
        inputs = {
            "inputs_embeds": spliced.embeds,
            # Without a mask, transformers finds the samples of a packed row by their positions:
            # a block-diagonal mask for SDPA, lengths of the sequences for FlashAttention.
            "attention_mask": None if self.pack else spliced.attention_mask,
            "position_ids": spliced.position_ids,
            "use_cache": False,
        }
        llm = self.model.llm
        if not self._plain_head:
            keep = learned_BT.any(0).nonzero()[:, 0]
            logits_SV = llm(**inputs, logits_to_keep=keep).logits[learned_BT[:, keep]]
            return functional.cross_entropy(logits_SV.float(), labels_S, reduction="none")
        hidden_BTD = llm.base_model(**inputs).last_hidden_state
        hidden_SD = hidden_BTD[:, :-1][learned_BT]
        # Devices that gather the head's weights together all call it equally often, and have let
        # go of them again before a checkpoint compares them with those of its first run.
        few = 1 if self.divided else math.ceil(len(labels_S) / self.chunk)
        return chunked_cross_entropy(llm.get_output_embeddings(), hidden_SD, labels_S, few)

    def _soft(self, batch: Batch) -> list[list[tuple[str, Tensor]]]:
        soft: list[list[tuple[str, Tensor]]] = [
            [(m.modality, torch.empty(0)) for m in example.media] for example in batch
        ]
        for group in self.encoded(batch):
            if self.agree is not None:
                # Tags, too, are gathered by all devices in one order, and not as samples come.
                tags = self.model.tags
                self._fillers += [tags[side][group.modality].sum() for side in ("start", "end")]
            for (b, i), soft_QD in zip(group.places, self.soften(group), strict=True):
                soft[b][i] = (group.modality, soft_QD)
        return soft


@torch.no_grad()
def has_plain_head(llm: Any) -> bool:
    """Whether an LLM's logits are its output embedding applied to its last hidden states.

    Some cap or scale them afterwards (Gemma 2, Cohere, Granite); those are asked through their
    own forward, at the cost of logits at every position that any sample of the batch learns. A
    scale shows on any input; a cap only on large logits, so configurations are asked for it.
    """
    if getattr(llm.config, "final_logit_softcapping", None):
        return False
    training = llm.training
    llm.eval()
    ids_12 = torch.zeros(1, 2, dtype=torch.long, device=llm.get_input_embeddings().weight.device)
    own = llm(input_ids=ids_12, use_cache=False).logits
    plain = llm.get_output_embeddings()(
        llm.base_model(input_ids=ids_12, use_cache=False).last_hidden_state
    )
    llm.train(training)
    return bool((own - plain).float().norm() <= 1e-2 * plain.float().norm())


def build_objective(
    model: OneLLM, stage: StageConfig, texts: Sequence[str], seed: int, *, pack: bool = False
) -> Objective:
    """The objective a stage names.

    Args:
        model: the model, with its trainable parameters selected.
        stage: objective and its settings.
        texts: texts of the data.
        seed: of new heads.
        pack: whether the LLM sees the samples of a pass in one row.
    """
    if stage.objective == "contrastive":
        from onellm.train.contrastive import Contrastive

        return Contrastive(model, stage.contrastive, texts, seed)
    if stage.objective == "clip":
        from onellm.train.clip import Clip

        return Clip(model, stage.clip, seed)
    return LanguageModelling(model, pack=pack)
