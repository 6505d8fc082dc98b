"""The contrastive objective: media against texts, without the LLM in the loop.

Shape legend: B batch, Q queries, D width, P width of the contrastive space, K different texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from onellm.data.loader import Batch
from onellm.errors import BadInput, ConfigError
from onellm.model import OneLLM
from onellm.train.media import MediaGroup, encode_groups
from onellm.train.objectives import Losses, Objective
from onellm.train.regression import embed_texts
from onellm.train.stage import ContrastiveConfig


class ContrastiveHead(nn.Module):
    """Two linear maps into one space, and a temperature.

    Args:
        width: D of the projector.
        llm_width: D of the LLM's embeddings.
        config: width of the space and first temperature.

    Attributes:
        centre: mean text embedding, subtracted from every text; shape (D_llm,).
    """

    centre: Tensor

    def __init__(self, width: int, llm_width: int, config: ContrastiveConfig) -> None:
        super().__init__()
        self.media = nn.Linear(width, config.width)
        self.text = nn.Linear(llm_width, config.width)
        self.log_scale = nn.Parameter(torch.tensor(1 / config.temperature).log())
        self.register_buffer("centre", torch.zeros(llm_width))

    def forward(self, media_BD: Tensor, text_KD: Tensor) -> Tensor:
        """Scaled cosine similarities (B, K), float32."""
        dtype = self.media.weight.dtype
        media_BP = functional.normalize(self.media(media_BD.to(dtype)).float(), dim=-1)
        text_KP = functional.normalize(self.text((text_KD - self.centre).to(dtype)).float(), dim=-1)
        # CLIP's bound: a sharper softmax is unstable.
        return self.log_scale.float().exp().clamp(max=100.0) * media_BP @ text_KP.T


class OneMedium(Objective):
    """A loss of samples with exactly one medium each."""

    def counts(self, batch: Batch) -> list[int]:
        """One per sample.

        Raises:
            BadInput: a sample with other than one medium.
        """
        for example in batch:
            if len(example.media) != 1:
                raise BadInput(
                    example.id,
                    expected="one medium for a contrastive objective",
                    found=f"{len(example.media)}",
                )
        return [1] * len(batch)


class Contrastive(OneMedium):
    """Media against texts, without the LLM in the loop; ours, not the paper's.

    The mean of the projector's mixed queries, *before* ``proj_out``, is compared with the mean
    input embedding of the text's tokens (frozen LLM, centred), each through a linear map of its
    own. Samples with the same text are positives of each other; modalities are not compared.
    Pulling the soft tokens themselves towards word embeddings would spoil them for the LLM.

    Args:
        model: the model.
        config: settings of the head.
        texts: texts of the data, whose mean embedding is the centre.
        seed: of the head's initial weights.
    """

    def __init__(
        self, model: OneLLM, config: ContrastiveConfig, texts: Sequence[str], seed: int
    ) -> None:
        super().__init__(model)
        table_VD = model.llm.get_input_embeddings().weight
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = ContrastiveHead(model.projector.config.width, table_VD.shape[1], config)
        self.head, self.mixup = head.to(table_VD.device), config.mixup
        different = sorted(set(texts))
        self.head.centre = embed_texts(self.model, different).mean(0).to(self.head.centre)

    def forward(self, batch: Batch) -> Losses:
        """Mean of both directions of InfoNCE, summed over samples."""
        self.counts(batch)
        loss_B = torch.zeros(len(batch), device=self.head.log_scale.device)
        parts: dict[str, list[tuple[list[int], Tensor, Tensor]]] = {}
        for group in encode_groups(self.model, batch, self.store):
            rows = [b for b, _ in group.places]
            parts.setdefault(group.modality, []).append((rows, *self._media(group)))
        for name in parts:
            rows = [b for part, _, _ in parts[name] for b in part]
            index = torch.tensor(rows, device=loss_B.device)
            media_BD = torch.cat([media for _, media, _ in parts[name]])
            share_BB = torch.block_diag(*(share for _, _, share in parts[name]))
            texts = [batch[b].answer for b in rows]
            loss_B = loss_B.index_copy(0, index, self._loss(media_BD, texts, share_BB))
        return Losses(loss_B.sum() + self.idle(batch), loss_B.detach())

    def _media(self, group: MediaGroup) -> tuple[Tensor, Tensor]:
        """Vectors of a group (B, D), and the share (B, B) of each sample's text in each."""
        if group.features is None:
            raise ConfigError("stage.frozen=soft does not fit the contrastive objective")
        features, count = group.features, len(group.places)
        share_BB = torch.eye(count, device=features.x_BND.device)
        if self.mixup and self.training and count > 1:
            beta = torch.distributions.Beta(self.mixup, self.mixup)
            own_B = beta.sample((count,)).to(share_BB)
            other_B = torch.randperm(count, device=share_BB.device)
            share_BB = torch.diag(own_B) + (1 - own_B)[:, None] * share_BB[other_B]
            features = features.blend(other_B, own_B)
        return self.model.projector.mix(features).mean(1), share_BB

    def _loss(self, media_BD: Tensor, texts: Sequence[str], share_BB: Tensor) -> Tensor:
        different = list(dict.fromkeys(texts))
        which_B = torch.tensor([different.index(t) for t in texts], device=media_BD.device)
        target_BK = share_BB @ functional.one_hot(which_B, len(different)).to(share_BB)
        logits_BK = self.head(media_BD, embed_texts(self.model, different))
        # From a text to its media: each of its samples in turn is the positive.
        log_p_BK = logits_BK.log_softmax(1) + logits_BK.log_softmax(0)
        return -(target_BK * log_p_BK).sum(1) / 2
