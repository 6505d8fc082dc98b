"""Grouping of point clouds: farthest point sampling and nearest neighbours.

Shape legend: B batch, P points, G groups, K neighbours, C coordinates.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def farthest_points(x_BPC: Tensor, groups: int) -> Tensor:
    """Choose points that lie far apart, one after another, starting at point 0.

    Each next point is the one whose squared distance to the chosen ones is largest; of equals
    the first. Deterministic, and a cloud's choice does not depend on its batch.

    Args:
        x_BPC: coordinates (B, P, C), float32.
        groups: G, how many to choose, at most P.

    Returns:
        Indices (B, G), int64.
    """
    batch, points = x_BPC.shape[:2]
    chosen_BG = torch.zeros(batch, groups, dtype=torch.long, device=x_BPC.device)
    nearest_BP = x_BPC.new_full((batch, points), torch.inf)
    rows = torch.arange(batch, device=x_BPC.device)
    for g in range(1, groups):
        centre_B1C = x_BPC[rows, chosen_BG[:, g - 1]].unsqueeze(1)
        nearest_BP = torch.minimum(nearest_BP, (x_BPC - centre_B1C).square().sum(-1))
        chosen_BG[:, g] = nearest_BP.argmax(dim=-1)
    return chosen_BG


@torch.no_grad()
def nearest_points(x_BPC: Tensor, centres_BG: Tensor, neighbours: int) -> Tensor:
    """Find the nearest points of each centre by Euclidean distance, the centre among them.

    Args:
        x_BPC: coordinates (B, P, C), float32.
        centres_BG: indices of the centres (B, G).
        neighbours: K, at most P.

    Returns:
        Indices (B, G, K), int64, nearest first.
    """
    centre_BGC = gather_points(x_BPC, centres_BG)
    # The matrix-product shortcut for distances loses digits near zero, where it matters most.
    exact = "donot_use_mm_for_euclid_dist"
    distance_BGP = torch.cdist(centre_BGC, x_BPC, compute_mode=exact)
    return distance_BGP.topk(neighbours, dim=-1, largest=False).indices


def gather_points(x_BPC: Tensor, index: Tensor) -> Tensor:
    """Take points by index.

    Args:
        x_BPC: (B, P, C).
        index: (B, …), int64.

    Returns:
        (B, …, C).
    """
    rows = torch.arange(len(x_BPC), device=x_BPC.device)
    return x_BPC[rows.view(-1, *[1] * (index.dim() - 1)), index]
