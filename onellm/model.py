"""The model: tokenizers, shared encoder, projector, splice and LLM in one module.

It knows nothing of ranks, logging or training; files only through :mod:`onellm.checkpoint`.

Shape legend: B batch, L tokens, N encoder tokens, Q queries, D width, T positions, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from onellm.config import StrictModel
from onellm.encoded import EncodedMedia
from onellm.encoder import Encoder, EncoderConfig
from onellm.errors import ConfigError
from onellm.modality import Modality
from onellm.projection.upm import UPM, UPMConfig
from onellm.prompts import get_format
from onellm.registry import get_modality, modality_classes
from onellm.sequence import TokenSeq
from onellm.slots import real_parameters
from onellm.splice import Insertion, Spliced, splice
from onellm.text import TextTokenizer

if TYPE_CHECKING:
    from onellm.kvcache import KVPrefix

Media = Sequence[tuple[str, Any]]


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


class OneLLM(nn.Module):
    """A language model that takes signals of any registered modality.

    Args:
        config: sizes and modalities.
        llm: any Hugging Face causal LM.
        text: its tokenizer; needed for :meth:`generate` and :meth:`stream` only.

    Attributes:
        encoded: soft tokens of the media that were asked about last, found again by content in
            evaluation mode; ``model.encoded.max_bytes = 0`` keeps none.

    Example:
        >>> model = OneLLM.from_pretrained("my-model")
        >>> model.generate("What do you hear?", media=[("audio", "dog.wav")])
    """

    def __init__(
        self, config: OneLLMConfig, llm: nn.Module, text: TextTokenizer | None = None
    ) -> None:
        super().__init__()
        get_format(config.prompt_format)
        self.text = text
        # One entry per finished stage: its name and the parameters that it trained.
        self.history: list[dict[str, Any]] = []
        self.encoded = EncodedMedia()
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
        self.llm: Any = llm
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

    # -- media ----------------------------------------------------------------------------

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

    def splice(
        self,
        ids: Sequence[Tensor],
        labels: Sequence[Tensor] | None,
        soft: Sequence[Sequence[tuple[str, Tensor]]],
        side: Literal["left", "right"] = "right",
        pack: bool = False,
    ) -> Spliced:
        """Splice soft tokens behind BOS, in the order given (spec §1.6).

        Args:
            ids: text ids of each sample, BOS first.
            labels: labels of each text, or None.
            soft: for each sample its (modality, (Q, D_llm)) pairs.
            side: padding side.
            pack: all samples in one row, without padding.
        """
        device = self.device
        return splice(
            self.llm.get_input_embeddings(),
            [i.to(device) for i in ids],
            None if labels is None else [i.to(device) for i in labels],
            [[Insertion(1, self.tagged(m, s)) for m, s in items] for items in soft],
            side=side,
            pack=pack,
        )

    # -- language -------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor,
        media: Media = (),
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits at every text position.

        Args:
            input_ids: (B, T) int64, BOS first.
            media: (modality, x) pairs with x (B, …): medium i of sample b is ``x[b]``.
            attention_mask: (B, T), 0 where a text is padded on the right; all real if left out.

        Returns:
            (B, T, V). Entry t is the logits at text position t, with the last media position
            standing in for BOS at t = 0, so that entry t always predicts text token t + 1.
        """
        batch, length = input_ids.shape
        encoded = [(m, self.encode(m, x)) for m, x in media]
        sizes = [length] * batch if attention_mask is None else attention_mask.sum(-1).tolist()
        spliced = self.splice(
            [row[:size] for row, size in zip(input_ids, sizes, strict=True)],
            None,
            [[(m, soft[b]) for m, soft in encoded] for b in range(batch)],
        )
        logits = self.llm(
            inputs_embeds=spliced.embeds,
            attention_mask=spliced.attention_mask,
            position_ids=spliced.position_ids,
            use_cache=False,
        ).logits
        extra = spliced.embeds.shape[1] - spliced.text_at.shape[1]
        at_BT = spliced.text_at.clamp(min=0).clone()
        at_BT[:, 0] = extra  # the last media position (BOS itself where there is no medium)
        return logits.gather(1, at_BT[..., None].expand(-1, -1, logits.shape[-1]))

    def generate(
        self,
        prompt: Any,
        media: Any = (),
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | Sequence[int] = 0,
        stop: Sequence[str] = (),
        beams: int = 1,
        compile: bool = False,
        prefix: KVPrefix | None = None,
    ) -> Any:
        """Answer one prompt, or a batch of them, which gives the same answers.

        Args:
            prompt: a text; a conversation as a tuple of (role, text) turns; or a list of either.
            media: for one prompt its (modality, source) pairs; for a list of prompts a list of
                such lists. A source is anything :meth:`onellm.Modality.load` reads, or a
                signal tensor.
            max_new_tokens: at most this many tokens; EOS and stop strings end earlier.
            temperature: 0 is greedy.
            top_p: keep the smallest set of tokens with this much probability.
            seed: of the sampling. One number gives each sample of a batch a stream of its own; a
                list gives each the answer that it gets alone under its number.
            stop: further strings that end an answer.
            beams: follow this many answers at a time and give the likeliest; 1 is greedy.
            compile: run the step through ``torch.compile`` with a static cache: for GPUs, where
                the first answer takes a minute and the others are faster.
            prefix: of earlier turns of the same conversation, not run again; kept up to date.

        Returns:
            the answer, or a list of answers.

        Raises:
            BadInput: a medium cannot be read.
            ConfigError: settings that do not go together, or a prompt beyond the LLM's context.
        """
        from onellm.generation import Decoding, answer

        settings = Decoding(
            max_new_tokens, temperature, top_p, seed, tuple(stop), beams=beams, compile=compile
        )
        return answer(self, prompt, media, settings, prefix)

    def stream(
        self,
        prompt: Any,
        media: Any = (),
        *,
        prefix: KVPrefix | None = None,
        stop: Sequence[str] = (),
        **settings: Any,
    ) -> Iterator[str]:
        """Answer one prompt piece by piece; the pieces joined are :meth:`generate`'s answer.

        Args:
            prompt: a text, or a conversation as a tuple of turns.
            media: (modality, source) pairs.
            prefix: of earlier turns of the same conversation, not run again; kept up to date.
            stop: further strings that end an answer.
            **settings: as for :meth:`generate`.
        """
        from onellm.generation import Decoding, answer_in_pieces

        decoding = Decoding(stop=tuple(stop), **settings)
        return answer_in_pieces(self, prompt, media, decoding, prefix)

    # -- weights --------------------------------------------------------------------------

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

    @classmethod
    def from_official(
        cls,
        checkpoint: str | Path | Mapping[str, Tensor],
        params: Mapping[str, Any] | None = None,
        clip: Mapping[str, Any] | None = None,
        text: TextTokenizer | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        prompt_format: str = "published",
    ) -> OneLLM:
        """Load published weights; see :func:`onellm.official.load_official`."""
        from onellm.official import load_official

        options: dict[str, Any] = {"dtype": dtype, "device": device, "prompt_format": prompt_format}
        return load_official(checkpoint, params, clip, text, **options)

    @classmethod
    def from_parts(
        cls, llm: str | Path, encoder: str = "ViT-L-14/openai", **options: Any
    ) -> OneLLM:
        """An untrained model around an LLM and a vision tower; see :func:`onellm.parts.assemble`.

        Example:
            >>> model = OneLLM.from_parts("HuggingFaceTB/SmolLM2-135M-Instruct", "ViT-B-16/openai")
        """
        from onellm.parts import assemble

        return assemble(llm, encoder, **options)

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> OneLLM:
        """Load a saved model; see :func:`onellm.checkpoint.load_pretrained`."""
        from onellm.checkpoint import load_pretrained

        return load_pretrained(path_or_hub_id, device=device, dtype=dtype)

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write config, weights and tokenizer; see :func:`onellm.checkpoint.save_pretrained`."""
        from onellm.checkpoint import save_pretrained

        save_pretrained(self, folder, **options)

    def push_to_hub(self, repo_id: str, *, private: bool = False, **options: Any) -> None:
        """Upload what :meth:`save_pretrained` writes; see :func:`onellm.checkpoint.push_to_hub`."""
        from onellm.checkpoint import push_to_hub

        push_to_hub(self, repo_id, private=private, **options)

    def save_additions(
        self, folder: str | Path, modalities: Iterable[str] = (), *, lora: bool = False
    ) -> None:
        """Write modalities or a LoRA alone; see :func:`onellm.additions.save_additions`."""
        from onellm.additions import save_additions

        save_additions(self, folder, modalities, lora=lora)

    def with_additions(self, folder: str | Path, *, strict: bool = True) -> OneLLM:
        """This model and saved additions; see :func:`onellm.additions.load_additions`."""
        from onellm.additions import load_additions

        return load_additions(self, folder, strict=strict)
