"""The model: tokenizers, shared encoder, projector, splice and LLM in one module.

It knows nothing of ranks, logging or training; files only through :mod:`onellm.checkpoint`.

Shape legend: B batch, Q queries, D width, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from onellm.encoded import EncodedMedia
from onellm.media_path import MediaPath, OneLLMConfig
from onellm.prompts import get_format
from onellm.splice import Insertion, Spliced, splice
from onellm.text import TextTokenizer

if TYPE_CHECKING:
    from onellm.kvcache import KVPrefix

Media = Sequence[tuple[str, Any]]


class OneLLM(MediaPath):
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
        get_format(config.prompt_format)
        super().__init__(config, llm)
        self.text = text
        # One entry per finished stage: its name and the parameters that it trained.
        self.history: list[dict[str, Any]] = []
        self.encoded = EncodedMedia()

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
        bits: int = 0,
    ) -> OneLLM:
        """Load a saved model; see :func:`onellm.checkpoint.load_pretrained`."""
        from onellm.checkpoint import load_pretrained

        return load_pretrained(path_or_hub_id, device=device, dtype=dtype, bits=bits)

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
