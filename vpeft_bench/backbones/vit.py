"""Vision Transformers: timm's ``VisionTransformer`` (ViT, DeiT, DINOv2, CLIP and SigLIP towers)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from timm.layers.attention import Attention as TimmAttention
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone, OpenedClasses
from vpeft_bench.backbones.joined import JoinedLinear
from vpeft_bench.backbones.one_stage import (
    OneStage,
    OpenedOneStage,
    kind_of,
    leaves_of,
)
from vpeft_bench.backbones.sites import OpenedAttention, OpenedBlock
from vpeft_bench.errors import UnsupportedBackboneError
from vpeft_bench.traits import Trait


class OpenedViTBlock(OpenedBlock, TimmBlock):
    """timm's ViT block with its places open; without anything placed, the same operations."""

    def attn_branch(self, normed: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Attention and its LayerScale, ``(B, N, D)``."""
        return cast(Tensor, self.ls1(self.attn(normed, *args, **kwargs)))

    def mlp_branch(self, normed: Tensor) -> Tensor:
        """MLP and its LayerScale, ``(B, N, D)``."""
        return cast(Tensor, self.ls2(self.mlp(normed)))

    def queried(self, p: Tensor, x: Tensor) -> Tensor:
        """What the attention adds to queries p ``(B, T, D)`` that read the tokens x."""
        read = self.attn.query(self.norm1(p), self.norm1(x))  # type: ignore[operator]  # opened
        return cast(Tensor, self.drop_path1(self.ls1(read)))


class OpenedViTAttention(OpenedAttention, TimmAttention):
    """timm's attention with q, k, v within reach; the kernel stays fused."""

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Tokens ``(B, N, D)``; ``attn_mask`` is added to the scores."""
        if is_causal:
            tokens = x.shape[1]
            future = x.new_full((tokens, tokens), -torch.inf).triu(1)
            attn_mask = future if attn_mask is None else future + attn_mask
        q, k, v = self.split_heads(self.qkv(x), 3)
        biases = [] if attn_mask is None else [attn_mask]
        return self._project(self.attend(self.q_norm(q), self.k_norm(k), v, biases), x)

    def query(self, queries: Tensor, x: Tensor) -> Tensor:
        """What ``queries`` ``(B, T, D)`` read from the tokens x, with the weights as they are."""
        weight, bias = self.qkv.weight, self.qkv.bias
        inner = len(weight) // 3
        q_bias, kv_bias = (None, None) if bias is None else (bias[:inner], bias[inner:])
        (q,) = self.split_heads(nn.functional.linear(queries, weight[:inner], q_bias), 1)
        k, v = self.split_heads(nn.functional.linear(x, weight[inner:], kv_bias), 2)
        return self._project(self.attend(self.q_norm(q), self.k_norm(k), v, []), queries)

    def _project(self, out: Tensor, x: Tensor) -> Tensor:
        """From the heads ``(B, heads, N, d)`` to the branch; x is what the queries came from."""
        out = self.norm(out.transpose(1, 2).flatten(2))
        if getattr(self, "gate", None) is not None:  # absent in older versions of timm
            out = out * self.gate(x).sigmoid()  # type: ignore[misc]  # it is not None
        return cast(Tensor, self.proj_drop(self.proj(out)))


class OpenedViT(OpenedOneStage, VisionTransformer):  # type: ignore[misc]  # takes no mask
    """timm's ViT with something placed around its trunk."""

    def embed(self, images: Tensor) -> Tensor:
        """Class and register tokens, patches and positions, ``(B, N, D)``."""
        x = self._pos_embed(self.patch_embed(images))
        return cast(Tensor, self.norm_pre(self.patch_drop(x)))


class ViT(OneStage):
    """Vision Transformers."""

    name = "vit"
    title = "Vision Transformer (ViT, DeiT, DINOv2, CLIP, SigLIP)"
    models = (VisionTransformer,)
    modules: ClassVar[tuple[str, ...]] = ("vision_transformer", "demo_vit")
    traits = OneStage.traits | {Trait.FREE_TOKENS}
    shown: ClassVar[tuple[str, str] | None] = ("ViT-B/16", "vit_base_patch16_224")
    small: ClassVar[tuple[str, Mapping[str, Any]] | None] = (
        "vit_tiny_patch16_224",
        {"img_size": 64},
    )
    opened = OpenedClasses(OpenedViT, OpenedViTBlock, OpenedViTAttention)

    def map(self, model: Any) -> Backbone:
        """Block map of a timm ``VisionTransformer``.

        Raises:
            UnsupportedBackboneError: patches or blocks of another kind (a convolutional stem;
                parallel or post-norm blocks, an MLP with separate gates).
        """
        backbone = self.without_blocks(model, self.opened)
        for index, block in enumerate(model.blocks):
            leaves = leaves_of(block) if type(block) is TimmBlock else None
            if leaves is None or any(isinstance(leaf, JoinedLinear) for leaf in leaves.values()):
                raise UnsupportedBackboneError(
                    f"blocks.{index} is {kind_of(block)}; the ViT block map covers timm's pre-norm "
                    "Block with fused qkv and an MLP of two linears"
                )
            backbone.add_block(f"blocks.{index}", leaves)
        return backbone

    def prepare(self, model: Any) -> None:
        """Lay patches out as rows of channels.

        timm's are a transposed view of the convolution's output. Where no class token is put before
        them, the residual stream would keep that layout, and every norm would copy it.
        """
        if model.num_prefix_tokens == 0:
            model.patch_embed.register_forward_hook(_contiguous)

    def to_timm(self, state: Mapping[str, Tensor], model: Any, **options: Any) -> Mapping[str, Any]:
        """The original JAX checkpoints, DINOv2, CLIP, and other sizes."""
        return checkpoint_filter_fn(dict(state), model, **options)  # type: ignore[no-any-return]


FAMILY = ViT()


def _contiguous(module: nn.Module, inputs: object, patches: Tensor) -> Tensor:
    return patches.contiguous()
