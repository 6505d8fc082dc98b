"""The way of a signal: tokenizer, shared encoder, mean over frames, projector, tags.

It knows nothing of text. Shape legend: B batch, T frames, N encoder tokens, Q queries, D width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from onellm.config import StrictModel
from onellm.encoder import Encoder, EncoderConfig
from onellm.errors import ConfigError
from onellm.modality import Modality
from onellm.projection.upm import UPM, UPMConfig
from onellm.registry import get_modality, modality_classes
from onellm.sequence import TokenSeq
from onellm.slots import real_parameters


def _all_modalities() -> dict[str, dict[str, Any]]:
    return {name: {} for name in modality_classes()}


class OneLLMConfig(StrictModel):
    """Everything but the LLM, which describes itself.

    Attributes:
        encoder: the shared vision tower.
        projector: the universal projection module.
        modalities: options by modality name; an empty mapping takes the published sizes.
        prompt_format: a key of :data:`onellm.prompts.FORMATS`.
    """

    encoder: EncoderConfig = EncoderConfig()
    projector: UPMConfig = UPMConfig()
    modalities: dict[str, dict[str, Any]] = Field(default_factory=_all_modalities)
    prompt_format: str = "plain"


class MediaPath(nn.Module):
    """From signals of any registered modality to soft tokens that an LLM reads.

    Args:
        config: sizes and modalities.
        llm: the causal LM that reads them; of it the embeddings' width and scale are asked.

    Raises:
        ConfigError: a modality that there is not, or that does not fit the encoder.
    """

    def __init__(self, config: OneLLMConfig, llm: nn.Module) -> None:
        super().__init__()
        self.modalities: dict[str, Modality] = {
            (modality := get_modality(name, **options)).name: modality
            for name, options in config.modalities.items()
        }
        # With every option spelled out, so that a later change of defaults leaves this model be.
        options = {name: m.model_dump(mode="json") for name, m in self.modalities.items()}
        self.config = config.model_copy(update={"modalities": options})
        width = config.encoder.width
        self.encoder = Encoder(config.encoder)
        self.tokenizers = nn.ModuleDict()
        self.positions = nn.ParameterDict()
        self.frames = nn.ParameterDict()
        for name, modality in self.modalities.items():
            self._add_tokenizer(name, modality, width)
        self.llm: Any = llm  # a part as well, whose parameters come in this place
        table_VD = llm.get_input_embeddings().weight  # type: ignore[operator]
        llm_width = table_VD.shape[1]
        self.projector = UPM(config.projector, self.modalities, width, llm_width)
        # Published tags start uniform in [0, 1), some 25 times the size of the LLM's embeddings
        # (spec §1.2); ours start at that size.
        known = table_VD.numel() and not table_VD.is_meta
        scale = float(table_VD.detach().float().std()) if known else 0.02
        self.tags: Any = nn.ModuleDict(
            {
                side: nn.ParameterDict(
                    {m: nn.Parameter(torch.randn(llm_width) * scale) for m in self.modalities}
                )
                for side in ("start", "end")
            }
        )

    def _add_tokenizer(self, name: str, modality: Modality, width: int) -> None:
        """Build a modality's tokenizer and count its tokens by running it on an empty signal."""
        with real_parameters():  # it runs right now; few would without weights
            built = modality.build_tokenizer(width)
        example = modality.example()
        with torch.no_grad():
            x = example if modality.frame_axis else example[None]
            if built is not None:
                tokens = built(x)
                self.tokenizers[name] = built
            else:
                tokens = self.encoder.patch_tokenizer(x.to(self.encoder.visual.conv1.weight.device))
        if modality.frame_axis and modality.frame_reduce == "gated":
            # Noise tells the frames apart; around 1 the reduction starts near the plain mean.
            self.frames[name] = nn.Parameter(1 + torch.randn(len(example), width))
        if modality.positions == "own":
            table = torch.randn(tokens.shape[1] + 1, width) * 0.02
            self.positions[name] = nn.Parameter(table)
        elif tokens.shape[1] + 1 != self.encoder.visual.positional_embedding.shape[0]:
            raise ConfigError(
                f"modalities.{name}: {tokens.shape[1]} tokens do not fit the encoder's "
                f"{self.config.encoder.image_size}-pixel position table; set its size to that"
            )

    def _tokenizer(self, name: str) -> nn.Module:
        return self.tokenizers[name] if name in self.tokenizers else self.encoder.patch_tokenizer

    def modality(self, name: str) -> Modality:
        """The modality object of this model, by registered or published name.

        Raises:
            ConfigError: the model does not have it.
        """
        if name in self.modalities:
            return self.modalities[name]
        for modality in self.modalities.values():
            if modality.published_name == name:
                return modality
        raise ConfigError(f"this model has no modality {name!r}; it has {list(self.modalities)}")

    @property
    def device(self) -> torch.device:
        """Where the projector lives; inputs are moved there."""
        return next(self.projector.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Parameter type of the projector."""
        return next(self.projector.parameters()).dtype

    def features(self, modality: str, x: Tensor) -> TokenSeq:
        """Tokenize and encode a batch of signals of one modality.

        Args:
            modality: registered or published name.
            x: signals stacked on a batch axis, as :meth:`onellm.Modality.load` returns them.

        Returns:
            tokens (B, N, D) of the shared encoder; where the modality has a frame axis, one
            sequence made of its frames.
        """
        return self.reduce_frames(self.frame_features(modality, x))

    def frame_features(self, modality: str, x: Tensor) -> TokenSeq:
        """Encoder tokens of every frame: (B, T, N, D) with a frame axis, (B, N, D) without.

        Nothing trained stands behind the encoder here, so this is what may be computed once where
        the tokenizer is frozen.
        """
        kind = self.modality(modality)
        x = x.to(self.device, self.dtype)
        batch, frames = x.shape[0], x.shape[1] if kind.frame_axis else 1
        if kind.frame_axis:
            x = x.flatten(0, 1)
        tokens = self._tokenizer(kind.name)(x)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        sequence = TokenSeq(tokens, mask, (tokens.shape[1],), kind.name)
        own = self.positions[kind.name] if kind.name in self.positions else None
        out = self.encoder(sequence, own)
        if kind.frame_axis:
            x_BTND = out.x_BND.unflatten(0, (batch, frames))
            out = TokenSeq(x_BTND, out.mask_BN[::frames], out.grid, kind.name)
        return out

    def reduce_frames(self, features: TokenSeq) -> TokenSeq:
        """Mean over frames (spec §1.1), each weighted first where the modality is ``gated``.

        Args:
            features: what :meth:`frame_features` returned.
        """
        kind = self.modality(features.modality)
        if not kind.frame_axis:
            return features
        x_BTND = features.x_BND
        if kind.name in self.frames:
            gate_TD = self.frames[kind.name]
            if len(gate_TD) != x_BTND.shape[1]:
                raise ConfigError(
                    f"{kind.name}: this model weighs {len(gate_TD)} frames, not {x_BTND.shape[1]}"
                )
            x_BTND = x_BTND * gate_TD[:, None].to(x_BTND.dtype)
        return TokenSeq(x_BTND.mean(1), features.mask_BN, features.grid, kind.name)

    def project(self, features: TokenSeq) -> Tensor:
        """Encoder features → soft tokens (B, Q, D_llm)."""
        return self.projector(features)

    def encode(self, modality: str, x: Tensor) -> Tensor:
        """Signals → soft tokens in the LLM's embedding space.

        Args:
            modality: registered or published name.
            x: (B, …), a batch of signals.

        Returns:
            (B, Q, D_llm).
        """
        return self.project(self.features(modality, x))

    @torch.no_grad()
    def embed(self, modality: str, x: Tensor, *, normalize: bool = True) -> Tensor:
        """Signals → one vector each in the LLM's space, for retrieval: the mean of the soft tokens.

        Args:
            modality: registered or published name.
            x: (B, …), a batch of signals.
            normalize: divide each vector by its length, so that dot products are cosines.

        Returns:
            (B, D_llm) float32.
        """
        vector_BD = self.encode(modality, x).float().mean(1)
        return nn.functional.normalize(vector_BD, dim=-1) if normalize else vector_BD

    def soften(self, media: Sequence[Sequence[tuple[str, Tensor]]]) -> list[list[Tensor]]:
        """Encode the media of many samples, one pass per modality and shape.

        Args:
            media: for each sample its (modality, signal) pairs, signals without a batch axis.

        Returns:
            soft tokens (Q, D_llm) in the same arrangement.
        """
        groups: dict[tuple[str, torch.Size], list[tuple[int, int]]] = defaultdict(list)
        for b, items in enumerate(media):
            for i, (name, signal) in enumerate(items):
                groups[self.modality(name).name, signal.shape].append((b, i))
        soft: list[list[Tensor]] = [[torch.empty(0)] * len(items) for items in media]
        for (name, _), places in groups.items():
            batch = torch.stack([media[b][i][1] for b, i in places])
            for (b, i), tokens_QD in zip(places, self.encode(name, batch), strict=True):
                soft[b][i] = tokens_QD
        return soft

    def tagged(self, modality: str, soft_QD: Tensor) -> Tensor:
        """Put a modality's start and end tags around its soft tokens: (Q + 2, D_llm)."""
        name = self.modality(modality).name
        start, end = self.tags["start"][name], self.tags["end"][name]
        return torch.cat([start[None], soft_QD, end[None]])

    @torch.no_grad()
    def copy_path(self, source: str, targets: Iterable[str]) -> None:
        """After stage I: start the experts and other modalities from the source's (paper §3.3).

        Args:
            source: the modality that stage I trained.
            targets: modalities whose queries, projections, router and tags are overwritten.
        """
        names = [self.modality(t).name for t in targets]
        self.projector.copy_image_path(self.modality(source).name, names)
        for side in ("start", "end"):
            for name in names:
                self.tags[side][name].copy_(self.tags[side][self.modality(source).name])
