"""Swin Transformers (version 1): timm's ``SwinTransformer``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

from timm.models.swin_transformer import (
    SwinTransformer,
    SwinTransformerBlock,
    WindowAttention,
    checkpoint_filter_fn,
)
from torch import Tensor

from vpeft_bench.backbones.block_map import OpenedClasses
from vpeft_bench.backbones.sites import OpenedAttention, OpenedBlock
from vpeft_bench.backbones.windowed import OpenedWindowed, Windowed


class OpenedSwinBlock(OpenedBlock, SwinTransformerBlock):
    """timm's Swin block with its places open; window shift, mask and padding stay timm's.

    All of it runs on the map ``(B, H, W, D)``; timm flattens it for the MLP, to the same result.
    """

    def attn_branch(self, normed: Tensor) -> Tensor:
        """Attention within shifted windows, ``(B, H, W, D)``."""
        return cast(Tensor, self._attn(normed))

    def mlp_branch(self, normed: Tensor) -> Tensor:
        """MLP, ``(B, H, W, D)``."""
        return cast(Tensor, self.mlp(normed))


class OpenedWindowAttention(OpenedAttention, WindowAttention):
    """timm's window attention with q, k, v within reach."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Windows ``(B * windows, N, D)``; ``mask`` ``(windows, N, N)`` is added to the scores."""
        batch, tokens, _ = x.shape
        q, k, v = self.split_heads(self.qkv(x), 3)
        biases = [self._get_rel_pos_bias()]
        if mask is not None:
            biases.append(mask[:, None].repeat(batch // len(mask), 1, 1, 1))
        out = self.attend(q, k, v, biases)
        out = out.transpose(1, 2).reshape(batch, tokens, -1)
        return cast(Tensor, self.proj_drop(self.proj(out)))


class OpenedSwin(OpenedWindowed, SwinTransformer):  # type: ignore[misc]  # takes no mask
    """timm's Swin with something placed around its trunk."""


class Swin(Windowed):
    """Swin Transformers, version 1."""

    name = "swin"
    title = "Swin Transformer"
    models = (SwinTransformer,)
    modules = ("swin_transformer",)
    shown = ("Swin-B", "swin_base_patch4_window7_224")
    small: ClassVar = (
        "swin_tiny_patch4_window7_224",
        {
            "img_size": 32,
            "patch_size": 4,
            "window_size": 4,
            "embed_dim": 128,
            "depths": (2, 2),
            "num_heads": (4, 8),
            "drop_path_rate": 0.0,
        },
    )
    opened = OpenedClasses(OpenedSwin, OpenedSwinBlock, OpenedWindowAttention)

    def to_timm(self, state: Mapping[str, Tensor], model: Any, **options: Any) -> Mapping[str, Any]:
        """The original checkpoints, and other sizes."""
        return checkpoint_filter_fn(dict(state), model, **options)  # type: ignore[no-any-return]


FAMILY = Swin()
