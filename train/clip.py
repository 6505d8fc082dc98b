"""Pre-training the encoder itself: pictures against their texts, with open_clip's own loss.

For an encoder that starts from nothing, as the quick start's does; a published tower skips it.

Shape legend: B batch, N tokens, D width, P width of the contrastive space, C context length.
"""

from __future__ import annotations

from collections.abc import Sequence

import open_clip
import torch
from open_clip.transformer import TextTransformer
from torch import Tensor, nn
from torch.nn import functional

from onellm.data.loader import Batch
from onellm.model import OneLLM
from onellm.train.contrastive import OneMedium
from onellm.train.media import encode_groups
from onellm.train.objectives import Losses
from onellm.train.stage import ClipConfig

MAX_LOG_SCALE = 4.6052  # ln 100, CLIP's bound on the temperature


class ClipHead(nn.Module):
    """open_clip's text tower and the learned temperature.

    Args:
        config: sizes of the tower.
        width: P, that of the encoder's visual projection.
    """

    def __init__(self, config: ClipConfig, width: int) -> None:
        super().__init__()
        self.words = open_clip.SimpleTokenizer(context_length=config.context)
        self.text = TextTransformer(
            context_length=config.context,
            vocab_size=self.words.vocab_size,
            width=config.width,
            heads=config.heads,
            layers=config.layers,
            output_dim=width,
        )
        self.log_scale = nn.Parameter(torch.tensor(1 / config.temperature).log())

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors of texts (B, P)."""
        ids_BC = self.words(list(texts)).to(self.log_scale.device)
        return functional.normalize(self.text(ids_BC).float(), dim=-1)

    def scale(self) -> Tensor:
        """Inverse temperature, a scalar of at most 100."""
        return self.log_scale.float().clamp(max=MAX_LOG_SCALE).exp()


class Clip(OneMedium):
    """CLIP's symmetric contrastive loss between pictures and their texts.

    A picture's vector is the mean of its tokens, class token left out, through the tower's visual
    projection: every patch learns to say what it shows, and all patches are handed on.

    Args:
        model: the model; its encoder is what is trained.
        config: settings of the text tower.
        seed: of the tower's initial weights.
    """

    def __init__(self, model: OneLLM, config: ClipConfig, seed: int) -> None:
        super().__init__(model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = ClipHead(config, model.config.encoder.output_dim)
        self.head = head.to(model.device)
        self.loss = open_clip.ClipLoss()

    def forward(self, batch: Batch) -> Losses:
        """The loss of the whole micro-batch, times its size."""
        self.counts(batch)
        vectors: list[Tensor] = [torch.empty(0)] * len(batch)
        for group in encode_groups(self.model, batch, None):
            assert group.features is not None, "nothing is stored here"
            x_BND = group.features.x_BND
            picture_BP = x_BND[:, 1:].mean(1) @ self.model.encoder.visual.proj
            for (b, _), vector_P in zip(group.places, picture_BP, strict=True):
                vectors[b] = vector_P
        picture_BP = functional.normalize(torch.stack(vectors).float(), dim=-1)
        text_BP = self.head([example.answer for example in batch])
        loss = self.loss(picture_BP, text_BP, self.head.scale())
        shares_B = loss.detach().expand(len(batch))
        return Losses(loss * len(batch) + self.idle(batch), shares_B)
