"""Swin Transformers, version 2: timm's ``SwinTransformerV2``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from timm.models.swin_transformer_v2 import (
    SwinTransformerV2,
    SwinTransformerV2Block,
    WindowAttention,
    checkpoint_filter_fn,
)
from torch import Tensor, nn

from vpeft_bench.backbones import operations
from vpeft_bench.backbones.block_map import Backbone, OpenedClasses
from vpeft_bench.backbones.sites import OpenedJoinedAttention, OpenedPostNormBlock
from vpeft_bench.backbones.windowed import OpenedWindowed, Windowed


class OpenedSwinV2Block(OpenedPostNormBlock, SwinTransformerV2Block):
    """timm's block with its places open; window shift, mask and padding stay timm's.

    All of it runs on the map ``(B, H, W, D)``; timm flattens it for the MLP, to the same result.
    """

    def attn_branch(self, normed: Tensor) -> Tensor:
        """Attention within shifted windows, ``(B, H, W, D)``."""
        return self._attn(normed)

    def mlp_branch(self, normed: Tensor) -> Tensor:
        """MLP, ``(B, H, W, D)``."""
        return cast(Tensor, self.mlp(normed))


class OpenedCosineAttention(OpenedJoinedAttention, WindowAttention):
    """timm's window attention with q, k, v within reach: the cosine of queries and keys."""

    fused_attn = False  # timm has no kernel for it

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Windows ``(B * windows, N, D)``; ``mask`` ``(windows, N, N)`` is added to the scores."""
        batch, tokens, _ = x.shape
        q, k, v = self.split_heads(self.projected(x), 3)
        biases = [self._position_bias(tokens)]
        if mask is not None:
            biases.append(mask[:, None].repeat(batch // len(mask), 1, 1, 1))
        out = self.attend(q, k, v, biases).transpose(1, 2).reshape(batch, tokens, -1)
        return cast(Tensor, self.proj_drop(self.proj(out)))

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Cosines, each head with its own learned scale."""
        cosine = nn.functional.normalize(q, dim=-1) @ nn.functional.normalize(k, dim=-1).mT
        return cosine * torch.clamp(self.logit_scale, max=math.log(1.0 / 0.01)).exp()

    def _position_bias(self, tokens: int) -> Tensor:
        """From coordinates through a small MLP, ``(1, heads, N, N)``."""
        index: Any = self.relative_position_index
        table = self.cpb_mlp(self.relative_coords_table).view(-1, self.num_heads)
        bias = table[index.view(-1)].view(tokens, tokens, -1).permute(2, 0, 1).contiguous()
        return (16 * torch.sigmoid(bias)).unsqueeze(0)


class OpenedSwinV2(OpenedWindowed, SwinTransformerV2):  # type: ignore[misc]  # takes no mask
    """timm's Swin V2 with something placed around its trunk."""


class SwinV2(Windowed):
    """Swin Transformers, version 2."""

    name = "swinv2"
    title = "Swin Transformer V2"
    models = (SwinTransformerV2,)
    modules = ("swin_transformer_v2",)
    norms_last = True
    opened = OpenedClasses(OpenedSwinV2, OpenedSwinV2Block, OpenedCosineAttention)

    def flops(self, backbone: Backbone, image_size: tuple[int, int]) -> int:
        """As of a Swin, and the MLPs that give the biases by position."""
        of_biases = 0
        for block in backbone.blocks:
            attention: Any = block.attention
            places = attention.relative_coords_table[..., 0].numel()
            of_biases += sum(operations.linear(layer, places) for layer in attention.cpb_mlp)
        return super().flops(backbone, image_size) + of_biases

    def to_timm(self, state: Mapping[str, Tensor], model: Any, **options: Any) -> Mapping[str, Any]:
        """The original checkpoints, and other sizes."""
        return checkpoint_filter_fn(dict(state), model, **options)  # type: ignore[no-any-return]


FAMILY = SwinV2()
