"""The shared encoder: open_clip's vision transformer, driven on token sequences.

Its parameters are frozen by default, but nothing here runs under ``no_grad``: gradients flow
*through* it to the trained tokenizers (paper §3.2, spec §1.4).

Shape legend: B batch, L tokens, N = L + 1 with the class token, D width, H heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from onellm.config import StrictModel
from onellm.errors import ConfigError
from onellm.light import quick_gelu
from onellm.sequence import TokenSeq

if TYPE_CHECKING:
    from open_clip.transformer import VisionTransformer


class EncoderConfig(StrictModel):
    """Sizes of the vision tower; the defaults are OpenAI's CLIP ViT-L/14.

    Attributes:
        image_size: side of its square pictures, pixels.
        patch_size: side of a patch, pixels.
        width: D.
        layers: number of blocks.
        heads: attention heads per block.
        mlp_ratio: hidden width of the feed-forward part over D.
        output_dim: width of CLIP's visual projection, kept but not used here.
        quick_gelu: OpenAI's x·σ(1.702x) in place of GELU; their weights need it.
        select_layer: how many blocks to run; -1 all, -2 all but the last, …
        select: which tokens to hand on.
        post_norm: where CLIP's final LayerNorm applies: nowhere, on the class token alone
            (``pooled``), or on all tokens as published.
    """

    image_size: int = 224
    patch_size: int = 14
    width: int = 1024
    layers: int = 24
    heads: int = 16
    mlp_ratio: float = 4.0
    output_dim: int = 768
    quick_gelu: bool = True
    select_layer: int = -1
    select: Literal["cls", "patch", "all"] = "all"
    post_norm: Literal["none", "pooled", "all"] = "all"


class PatchTokenizer(nn.Module):
    """The encoder's own patch convolution as a tokenizer: (B, 3, S, S) → (B, L, D).

    It holds the convolution by reference only, so that its weight has one name in a checkpoint.

    Args:
        conv: the tower's ``conv1``.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self._conv = [conv]  # inside a list: not a submodule

    def forward(self, picture_BCHW: Tensor) -> Tensor:
        """Cut pictures into patch tokens, row by row.

        Args:
            picture_BCHW: CLIP-normalised pictures.
        """
        patch_BDhw = self._conv[0](picture_BCHW)
        return patch_BDhw.flatten(2).transpose(1, 2)


class Encoder(nn.Module):
    """Runs any modality's tokens through the shared transformer.

    Args:
        config: sizes and what to read out.
        visual: an existing open_clip tower of those sizes; a new one is built if left out.
    """

    def __init__(self, config: EncoderConfig, visual: VisionTransformer | None = None) -> None:
        super().__init__()
        self.config = config
        self.visual = visual if visual is not None else build_visual(config)
        depth = len(self.visual.transformer.resblocks)
        layers = config.select_layer
        self.depth = depth + 1 + layers if layers < 0 else layers
        if not 1 <= self.depth <= depth:
            raise ConfigError(f"encoder.select_layer {layers} is outside 1 to {depth} blocks")
        for block in self.visual.transformer.resblocks:
            if type(block.attn) is nn.MultiheadAttention:
                block.attn.__class__ = SelfAttention
        self.requires_grad_(False)

    @property
    def patch_tokenizer(self) -> PatchTokenizer:
        """The tokenizer of every modality that is made of pictures."""
        return PatchTokenizer(self.visual.conv1)

    def forward(self, tokens: TokenSeq, positions_ND: Tensor | None = None) -> TokenSeq:
        """Encode a batch of token sequences.

        Args:
            tokens: (B, L, D) without a class token; the class token is added here.
            positions_ND: position table (L + 1, D); the tower's own if left out.

        Returns:
            (B, L + 1, D) for ``select="all"``, (B, L, D) for ``"patch"``, (B, 1, D) for ``"cls"``.

        Raises:
            ConfigError: the table's length is not L + 1.
        """
        visual = self.visual
        positions = visual.positional_embedding if positions_ND is None else positions_ND
        batch, length, _ = tokens.x_BND.shape
        if positions.shape[0] != length + 1:
            raise ConfigError(
                f"{tokens.modality}: {length} tokens and a class token do not fit a position "
                f"table of {positions.shape[0]} rows"
            )
        cls_B1D = visual.class_embedding.expand(batch, 1, -1)
        x_BND = torch.cat([cls_B1D.to(tokens.x_BND.dtype), tokens.x_BND], dim=1)
        x_BND = visual.ln_pre(x_BND + positions.to(x_BND.dtype))
        mask_BN = torch.cat([tokens.mask_BN.new_ones(batch, 1), tokens.mask_BN], dim=1)
        x_BND = self._blocks(x_BND, self._attention_mask(mask_BN, x_BND.dtype))
        return self._select(x_BND, mask_BN, tokens)

    def _blocks(self, x_BND: Tensor, mask: Tensor | None) -> Tensor:
        """The tower's blocks in the memory layout they were built for.

        open_clip changed that layout once (sequence-first to batch-first); assuming it made the
        published model mix samples instead of tokens, without an error (spec §0.11).
        """
        transformer = self.visual.transformer
        batch_first = getattr(transformer, "batch_first", False)
        x = x_BND if batch_first else x_BND.transpose(0, 1).contiguous()
        for block in transformer.resblocks[: self.depth]:
            x = block(x, attn_mask=mask)
        return x if batch_first else x.transpose(0, 1)

    def _attention_mask(self, mask_BN: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Additive mask (B·H, N, N) that hides padding, or None where there is none."""
        if bool(mask_BN.all()):
            return None
        batch, length = mask_BN.shape
        bias_BN = torch.zeros(mask_BN.shape, dtype=dtype, device=mask_BN.device)
        bias_BN = bias_BN.masked_fill(~mask_BN, float("-inf"))
        heads = self.config.heads
        bias = bias_BN[:, None, None, :].expand(batch, heads, length, length)
        return bias.reshape(batch * heads, length, length)

    def _select(self, x_BND: Tensor, mask_BN: Tensor, tokens: TokenSeq) -> TokenSeq:
        """Final LayerNorm and choice of tokens, as the configuration says."""
        post, select = self.config.post_norm, self.config.select
        if post == "all":
            x_BND = self.visual.ln_post(x_BND)
        elif post == "pooled":
            x_BND = torch.cat([self.visual.ln_post(x_BND[:, :1]), x_BND[:, 1:]], dim=1)
        keep = {"all": slice(None), "cls": slice(0, 1), "patch": slice(1, None)}[select]
        return TokenSeq(x_BND[:, keep], mask_BN[:, keep], tokens.grid, tokens.modality)


def build_visual(config: EncoderConfig) -> VisionTransformer:
    """Build open_clip's vision tower with random weights."""
    # Importing open_clip takes seconds; sizes are read, and files checked, without a tower.
    from open_clip.transformer import VisionTransformer

    return VisionTransformer(
        image_size=config.image_size,
        patch_size=config.patch_size,
        width=config.width,
        layers=config.layers,
        heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        output_dim=config.output_dim,
        act_layer=LightQuickGELU if config.quick_gelu else nn.GELU,
    )


class SelfAttention(nn.MultiheadAttention):
    """PyTorch's attention of a sequence to itself, without copies between its layouts.

    PyTorch turns (B, N, D) into (N, B, D) and back, and copies queries, keys and values apart.
    Laid over a module's class, so that its parameters and their names stay.
    """

    def forward(self, query: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """Attention.

        Args:
            query: (B, N, D), or (N, B, D) for a tower of that layout; keys and values as well.
            *args: keys and values.
            **kwargs: ``attn_mask``, additive, (B·H, N, N), or (N, N) for all.
        """
        x_BND = query if self.batch_first else query.transpose(0, 1)
        qkv_BNE = functional.linear(x_BND, self.in_proj_weight, self.in_proj_bias)
        qkv_BN3HK = qkv_BNE.unflatten(-1, (3, self.num_heads, self.head_dim))
        query, key, value = qkv_BN3HK.permute(2, 0, 3, 1, 4)
        mask = kwargs.get("attn_mask")
        if mask is not None and mask.ndim == 3:
            mask = mask.unflatten(0, (-1, self.num_heads))
        mixed_BHNK = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        out_BND = self.out_proj(mixed_BHNK.transpose(1, 2).flatten(2))
        return out_BND if self.batch_first else out_BND.transpose(0, 1), None


class LightQuickGELU(nn.Module):
    """x·σ(1.702x), as open_clip's QuickGELU, of which only x is kept for the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        """The activation."""
        return quick_gelu(x)
