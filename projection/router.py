"""The soft router: how much each expert counts for each query token.

Shape legend: Q queries, D width, E experts.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional


class Router(nn.Module):
    """Two-layer gate of one modality.

    The published gate is a sigmoid per expert, divided by the sum over experts; the paper writes
    softmax (spec §0.3). It sees the modality's query tokens alone, which are learned constants,
    so its output is one (Q, E) table per modality (spec §0.2).

    Args:
        width: D.
        experts: E.
        gate: ``"sigmoid"`` as published, ``"softmax"`` as in the paper.
    """

    def __init__(
        self, width: int, experts: int, gate: Literal["sigmoid", "softmax"] = "sigmoid"
    ) -> None:
        super().__init__()
        self.gate = gate
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, experts)

    def forward(self, query_QD: Tensor) -> Tensor:
        """Weights (Q, E), positive, each row summing to 1."""
        logits_QE = self.fc2(functional.gelu(self.fc1(query_QD)))
        if self.gate == "softmax":
            return logits_QE.softmax(-1)
        weight_QE = logits_QE.sigmoid()
        return weight_QE / weight_QE.sum(-1, keepdim=True)
