"""The published recipe's training pass, written from its description, over our weights.

Texts are padded to a fixed length, logits are computed at every position in float32, the experts
run one after the other over all tokens in all blocks, and the router over all tokens, of which 30
are read (spec §1.5, §3.3, §6.2). Which parameters are trained is left as it is, so that both sides
do the same mathematics.

Shape legend: B batch, T positions, Q queries, D width, V vocabulary.
"""

from __future__ import annotations

import torch
from encode import SerialBlock, SerialUPM
from open_clip.transformer import QuickGELU
from torch import Tensor, nn
from torch.nn import functional

from onellm.data.loader import Batch
from onellm.model import OneLLM
from onellm.splice import IGNORED


class TrainedSerialUPM(SerialUPM):
    """The serial loop with experts that are trained if ours are.

    Args:
        model: its projector's other parts are shared, its experts copied.
    """

    def __init__(self, model: OneLLM) -> None:
        super().__init__(model.projector)
        learns = model.projector.experts[0].wq.requires_grad
        for block in self.modules():
            if isinstance(block, SerialBlock):
                block.attention_norm = nn.Parameter(block.attention_norm)
                block.ffn_norm = nn.Parameter(block.ffn_norm)
        self.requires_grad_(learns)


class PublishedStep(nn.Module):
    """Loss of a batch in the published way.

    Args:
        model: the model, which becomes the published one: its encoder's blocks as open_clip has
            them, its experts one by one.
        length: text tokens that every sample is padded to.
    """

    def __init__(self, model: OneLLM, length: int) -> None:
        super().__init__()
        self.model, self.length = model, length
        for block in model.encoder.visual.transformer.resblocks:  # as open_clip has them
            block.attn.__class__ = nn.MultiheadAttention
            block.mlp.gelu = QuickGELU()
        self.upm = TrainedSerialUPM(model)

    def trained(self) -> list[nn.Parameter]:
        """What is trained, our fused experts replaced by the serial ones."""
        fused = {id(p) for p in self.model.projector.experts.parameters()}
        return [p for p in self.parameters() if p.requires_grad and id(p) not in fused]

    def forward(self, batch: Batch) -> tuple[Tensor, int]:
        """Sum of cross-entropies over learned tokens, and their number.

        Args:
            batch: samples with one medium each, all of one modality, as published.
        """
        model, name = self.model, batch[0].media[0].modality
        signals = torch.stack([example.media[0].signal for example in batch])
        soft_BQD = self.upm(model.features(name, signals))
        ids_BT = torch.zeros(len(batch), self.length, dtype=torch.long, device=model.device)
        labels_BT = torch.zeros_like(ids_BT)
        for b, example in enumerate(batch):
            ids_BT[b, : len(example.ids)] = example.ids
            learned = example.labels.masked_fill(example.labels == IGNORED, 0)
            labels_BT[b, : len(learned)] = learned
        text_BTD = model.llm.get_input_embeddings()(ids_BT)
        tags = [model.tags[s][name].expand(len(batch), 1, -1) for s in ("start", "end")]
        embeds = torch.cat([text_BTD[:, :1], tags[0], soft_BQD, tags[1], text_BTD[:, 1:]], 1)
        logits_BTV = model.llm(inputs_embeds=embeds, use_cache=False).logits.float()
        # The end tag predicts the first text token; id 0 is padding and is ignored.
        shown = logits_BTV[:, soft_BQD.shape[1] + 2 : -1].flatten(0, 1)
        wanted = labels_BT[:, 1:].flatten()
        loss = functional.cross_entropy(shown, wanted, ignore_index=0, reduction="sum")
        return loss, int((wanted != 0).sum())
