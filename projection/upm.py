"""The universal projection module (paper §3.3; spec §1.5): features → tokens of the LLM.

Shape legend: B batch, N tokens, Q queries, D width, E experts.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from onellm.config import StrictModel
from onellm.errors import ConfigError
from onellm.freshness import version_of
from onellm.projection.experts import ExpertBlock, hidden_width
from onellm.projection.router import Router
from onellm.sequence import TokenSeq


class UPMConfig(StrictModel):
    """Sizes of the universal projection module; the defaults are the published ones.

    Attributes:
        width: D inside the module.
        queries: Q, modality tokens in front of the features and tokens that enter the LLM.
        experts: E.
        depth: blocks per expert.
        heads: attention heads per block.
        multiple_of: the feed-forward width is rounded up to a multiple of this.
        gate: the router's gate.
        output_scale: initial weight of the last LayerNorm, the size at which soft tokens enter
            the LLM. 1 as published; the root mean square of the LLM's own embeddings starts
            small models closer to what they know.
        token_drop: in training, the share of the encoder's tokens that are left out at random,
            the same for all samples of a pass. 0 as published; with few data it keeps the
            queries from learning samples by heart, and costs less than nothing.
    """

    width: int = 1024
    queries: int = 30
    experts: int = 3
    depth: int = 8
    heads: int = 16
    multiple_of: int = 256
    gate: Literal["sigmoid", "softmax"] = "sigmoid"
    output_scale: float = 1.0
    token_drop: float = Field(default=0.0, ge=0, lt=1)


class UPM(nn.Module):
    """Three experts under a soft router, shared by all modalities.

    Args:
        config: sizes.
        modalities: names of the modalities it serves.
        feature_width: width of the encoder's tokens.
        llm_width: D_llm, width of the LLM's embeddings.

    Attributes:
        active_experts: how many experts run. The paper's first stage trains a single image
            projection that later becomes every expert: it runs with 1.
    """

    def __init__(
        self, config: UPMConfig, modalities: Iterable[str], feature_width: int, llm_width: int
    ) -> None:
        super().__init__()
        self.config, width = config, config.width
        if width % config.heads:
            raise ConfigError(f"projector: width {width} is no multiple of {config.heads} heads")
        names = list(modalities)
        self.active_experts = config.experts
        self._folded: dict[str, tuple[Hashable, Tensor]] = {}
        self.queries = nn.ParameterDict(
            {m: nn.Parameter(torch.randn(config.queries, width) * 0.02) for m in names}
        )
        self.proj_in = nn.ModuleDict({m: _project(feature_width, width) for m in names})
        self.routers = nn.ModuleDict({m: Router(width, config.experts, config.gate) for m in names})
        hidden = hidden_width(width, config.multiple_of)
        self.experts = nn.ModuleList(
            ExpertBlock(config.experts, width, config.heads, hidden) for _ in range(config.depth)
        )
        self.proj_out = nn.ModuleDict(
            {m: _project(width, llm_width, config.output_scale) for m in names}
        )

    def forward(self, features: TokenSeq) -> Tensor:
        """Project features to soft tokens (B, Q, D_llm)."""
        return self.proj_out[features.modality](self.mix(features))

    def mix(self, features: TokenSeq) -> Tensor:
        """The routed mixture of the experts' query outputs (B, Q, D), before ``proj_out``.

        Args:
            features: the encoder's output; padding is hidden by its mask.
        """
        name, active = features.modality, self.active_experts
        features = self._drop(features)
        x_BND = self.proj_in[name](features.x_BND)
        batch, count = x_BND.shape[0], self.config.queries
        query_QD = self.queries[name]
        x_BND = torch.cat([query_QD.to(x_BND.dtype).expand(batch, -1, -1), x_BND], dim=1)
        x_EBND = x_BND.expand(active, -1, -1, -1)
        bias = self._bias(features.mask_BN, x_BND.dtype)
        last = len(self.experts) - 1
        for depth, block in enumerate(self.experts):
            x_EBND = block(
                x_EBND, active=active, bias=bias, queries=count if depth == last else None
            )
        weight_QE = self.router_table(name).to(x_EBND.dtype)
        return torch.einsum("qe,ebqd->bqd", weight_QE, x_EBND)

    def _drop(self, features: TokenSeq) -> TokenSeq:
        """Leave out a random share of the tokens while training."""
        count = features.x_BND.shape[1]
        keep = round(count * (1 - self.config.token_drop))
        if not self.training or keep >= count or keep < 1:
            return features
        index = torch.randperm(count, device=features.x_BND.device)[:keep].sort().values
        return TokenSeq(
            features.x_BND[:, index], features.mask_BN[:, index], features.grid, features.modality
        )

    def router_table(self, modality: str) -> Tensor:
        """The router's weights (Q, E) for a modality; with one active expert, ones.

        The router sees learned constants alone (spec §0.2), so in evaluation its table is computed
        once, and again when one of its weights has changed.
        """
        active = self.active_experts
        if active == 1:
            return torch.ones_like(self.queries[modality][:, :1])
        if active < self.config.experts:
            raise ConfigError(f"active_experts must be 1 or all {self.config.experts}")
        router, query_QD = self.routers[modality], self.queries[modality]
        weights = [query_QD, *router.parameters()]
        learns = torch.is_grad_enabled() and any(w.requires_grad for w in weights)
        if self.training or learns:
            self._folded.clear()
            return router(query_QD)
        version = version_of(weights)
        if self._folded.get(modality, (None,))[0] != version:
            # A table made in inference mode could not take part in autograd later.
            with torch.inference_mode(False), torch.no_grad():
                self._folded[modality] = version, router(query_QD)
        return self._folded[modality][1]

    def _bias(self, mask_BN: Tensor, dtype: torch.dtype) -> Tensor | None:
        if bool(mask_BN.all()):
            return None
        batch, _ = mask_BN.shape
        mask_BN = torch.cat([mask_BN.new_ones(batch, self.config.queries), mask_BN], dim=1)
        bias_BN = torch.zeros(mask_BN.shape, dtype=dtype, device=mask_BN.device)
        bias_BN = bias_BN.masked_fill(~mask_BN, float("-inf"))
        return bias_BN.repeat(self.active_experts, 1)[:, None, None, :]

    @torch.no_grad()
    def copy_image_path(self, source: str, targets: Iterable[str]) -> None:
        """Start the other experts and modalities from what stage I learned (paper §3.3).

        Expert 0 becomes every expert; the source modality's queries, projections and router
        become those of each target.

        Args:
            source: the modality that stage I trained.
            targets: modalities to overwrite.
        """
        for parameter in self.experts.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter))
        for target in targets:
            self.queries[target].copy_(self.queries[source])
            for parts in (self.proj_in, self.proj_out, self.routers):
                parts[target].load_state_dict(parts[source].state_dict())


def _project(inner: int, out: int, scale: float = 1.0) -> nn.Sequential:
    norm = nn.LayerNorm(out)
    nn.init.constant_(norm.weight, scale)
    return nn.Sequential(nn.Linear(inner, out), norm)
