"""The experts of the universal projection module, run as one batched pass.

Each expert is a stack of LLaMA-style blocks (RMSNorm, SwiGLU, no biases) with bidirectional
attention and no positions (spec §1.5). Weights carry a leading expert axis, so that three Python
loops of eight layers become one loop of eight batched matrix products. Norms and gates are made
again in the backward pass (:mod:`onellm.light`), which more than halves what a block keeps for it.

Shape legend: E experts, B batch, N tokens, Q queries, D width, H heads, K head width, F hidden.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from onellm.light import light_products


def hidden_width(width: int, multiple_of: int = 256) -> int:
    """LLaMA's feed-forward width: ⌊2·4·width/3⌋ rounded up to a multiple.

    Example:
        >>> hidden_width(1024)
        2816
    """
    return multiple_of * -(-int(2 * 4 * width / 3) // multiple_of)


class ExpertBlock(nn.Module):
    """One block of all experts.

    Args:
        experts: E.
        width: D.
        heads: H; D must be a multiple of it.
        hidden: F.
        eps: of the RMSNorms.
    """

    def __init__(
        self, experts: int, width: int, heads: int, hidden: int, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.heads, self.eps = heads, eps
        self.wq = _stack(experts, width, width)
        self.wk = _stack(experts, width, width)
        self.wv = _stack(experts, width, width)
        self.wo = _stack(experts, width, width)
        self.w1 = _stack(experts, hidden, width)
        self.w2 = _stack(experts, width, hidden)
        self.w3 = _stack(experts, hidden, width)
        self.attention_norm = nn.Parameter(torch.ones(experts, width))
        self.ffn_norm = nn.Parameter(torch.ones(experts, width))

    def forward(
        self,
        x_EBND: Tensor,
        *,
        active: int,
        queries: int | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Attention and feed-forward of the first ``active`` experts.

        Args:
            x_EBND: one sequence per expert.
            active: how many experts to run; x has that many on its first axis.
            queries: compute the outputs of the first ``queries`` tokens only (the last block:
                nothing else is read); None for all.
            bias: additive attention bias that broadcasts to (E·B, H, N, N), or None.

        Returns:
            (E, B, N, D), or (E, B, Q, D) with ``queries``.
        """
        wq, wk, wv = (_first(w, active) for w in (self.wq, self.wk, self.wv))
        norm = _first(self.attention_norm, active)
        head_EBQD = x_EBND[:, :, :queries]
        if queries is None:
            made = light_products(self._norm, (wq, wk, wv), x_EBND, norm)
        else:
            made = light_products(self._norm, (wq,), head_EBQD, norm)
            made += light_products(self._norm, (wk, wv), x_EBND, norm)
        query, key, value = (_heads(x, self.heads) for x in made)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        (joined,) = light_products(partial(_join, active), (_first(self.wo, active),), mixed)
        x_EBQD = head_EBQD + joined
        w1, w2, w3 = (_first(w, active) for w in (self.w1, self.w2, self.w3))
        gate, up = light_products(self._norm, (w1, w3), x_EBQD, _first(self.ffn_norm, active))
        (out,) = light_products(_gated, (w2,), gate, up)
        return x_EBQD + out

    def _norm(self, x_EBND: Tensor, weight_ED: Tensor) -> Tensor:
        normed = functional.rms_norm(x_EBND.float(), x_EBND.shape[-1:], eps=self.eps)
        return normed.type_as(x_EBND) * weight_ED[:, None, None]


def _stack(experts: int, out: int, inner: int) -> nn.Parameter:
    weight = torch.empty(experts, out, inner)
    for expert in weight:
        nn.init.xavier_uniform_(expert)
    return nn.Parameter(weight)


def _first(weight: Tensor, experts: int) -> Tensor:
    """The first experts' share of a weight.

    Of all experts it is the weight itself: a view would hold on, from the forward to the backward
    pass, to what ZeRO 3 has gathered for the block.
    """
    return weight if experts == len(weight) else weight[:experts]


def _join(experts: int, mixed: Tensor) -> Tensor:
    """Put attention heads side by side: (E·B, H, N, K) → (E, B, N, D)."""
    return mixed.transpose(1, 2).flatten(2).unflatten(0, (experts, -1))


def _gated(gate_EBNF: Tensor, up_EBNF: Tensor) -> Tensor:
    """SwiGLU's gate."""
    return functional.silu(gate_EBNF) * up_EBNF


def _heads(x_EBND: Tensor, heads: int) -> Tensor:
    """(E, B, N, D) → (E·B, H, N, K)."""
    experts, batch, tokens, width = x_EBND.shape
    return x_EBND.reshape(experts * batch, tokens, heads, width // heads).transpose(1, 2)
