"""Vision Transformers: timm's ``VisionTransformer`` (ViT, DeiT, DINOv2, CLIP and SigLIP towers)."""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.layers.attention import Attention as TimmAttention
from timm.layers.patch_embed import PatchEmbed
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import (
    LINEARS,
    Backbone,
    Block,
    OpenedClasses,
    register_family,
)
from vpeft_bench.backbones.sites import OpenedAttention, OpenedBlock
from vpeft_bench.backbones.trunk import OpenedModel, Stage
from vpeft_bench.errors import UnsupportedBackboneError


class OpenedViTBlock(OpenedBlock, TimmBlock):
    """timm's ViT block with its places open; without anything placed, the same operations."""

    def attn_branch(self, normed: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Attention and its LayerScale, ``(B, N, D)``."""
        return cast(Tensor, self.ls1(self.attn(normed, *args, **kwargs)))

    def mlp_branch(self, normed: Tensor) -> Tensor:
        """MLP and its LayerScale, ``(B, N, D)``."""
        return cast(Tensor, self.ls2(self.mlp(normed)))


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


class OpenedViT(OpenedModel, VisionTransformer):  # type: ignore[misc]  # takes no mask
    """timm's ViT with something placed around its trunk."""

    def embed(self, images: Tensor) -> Tensor:
        """Class and register tokens, patches and positions, ``(B, N, D)``."""
        x = self._pos_embed(self.patch_embed(images))
        return cast(Tensor, self.norm_pre(self.patch_drop(x)))

    def stages(self) -> list[Stage]:
        """One stage; all blocks have one resolution."""
        return [Stage(nn.Identity(), list(self.blocks))]  # type: ignore[arg-type]  # all are opened

    def pooled(self, stream: Tensor) -> Tensor:
        """Final norm, pooling, norm behind the pooling, ``(B, D)``."""
        return cast(Tensor, self.fc_norm(self.pool(self.norm(stream))))

    def classify(self, features: Tensor) -> Tensor:
        """Dropout and the linear head."""
        return cast(Tensor, self.head(self.head_drop(features)))

    def intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """As timm's; ``stop_early`` saves nothing, since the last stream may depend on all."""
        streams = self.around(x).streams
        taken, _ = feature_take_indices(len(streams), indices)
        chosen = [self.norm(streams[i]) if norm else streams[i] for i in taken]
        prefixes = [stream[:, : self.num_prefix_tokens] for stream in chosen]
        maps = [stream[:, self.num_prefix_tokens :] for stream in chosen]
        if output_fmt == "NCHW":
            height, width = self.patch_embed.dynamic_feat_size(x.shape[-2:])
            maps = [m.transpose(1, 2).unflatten(2, (height, width)).contiguous() for m in maps]
        intermediates = (
            list(zip(maps, prefixes, strict=True))
            if return_prefix_tokens and prefixes[0].numel()
            else maps
        )
        return intermediates if intermediates_only else (self.norm(streams[-1]), intermediates)


@register_family(VisionTransformer)
def map_vit(model: Any) -> Backbone:
    """Block map of a timm ``VisionTransformer``.

    Raises:
        UnsupportedBackboneError: patches or blocks of another kind (a convolutional stem; parallel
            or post-norm blocks, an MLP with separate gates).
    """
    patch_embed = model.patch_embed
    if type(patch_embed) is not PatchEmbed:
        raise UnsupportedBackboneError(
            f"patch_embed is a {type(patch_embed).__name__}; the ViT block map covers plain "
            "patches (one convolution), not hybrids with a convolutional stem"
        )
    patch_leaves: list[nn.Module] = [patch_embed.proj]
    if not isinstance(patch_embed.norm, nn.Identity):
        patch_leaves.append(patch_embed.norm)
    backbone = Backbone(
        model,
        family="vit",
        opened=OpenedClasses(OpenedViT, OpenedViTBlock, OpenedViTAttention),
        patch_leaves=patch_leaves,
        final_norm=model.fc_norm if isinstance(model.norm, nn.Identity) else model.norm,
        merge_norms=[],
        prefix_tokens=model.num_prefix_tokens,
    )
    for index, block in enumerate(model.blocks):
        leaves = _leaves(block)
        if leaves is None:
            raise UnsupportedBackboneError(
                f"blocks.{index} is {_kind(block)}; the ViT block map covers timm's pre-norm Block "
                "with fused qkv and an MLP of two linears"
            )
        width, path = leaves["qkv"].in_features, f"blocks.{index}"
        backbone.blocks.append(Block(index, path, block, block.attn, width, 0, leaves, backbone))
    return backbone


def _kind(block: nn.Module) -> str:
    parts = [f"{n}: {type(m).__name__}" for n, m in block.named_children() if n in ("attn", "mlp")]
    return f"{type(block).__name__}({', '.join(parts)})"


def _leaves(block: Any) -> dict[str, Any] | None:
    if type(block) is not TimmBlock:
        return None
    leaves = {
        "norm1": block.norm1,
        "qkv": getattr(block.attn, "qkv", None),
        "proj": getattr(block.attn, "proj", None),
        "norm2": block.norm2,
        "fc1": getattr(block.mlp, "fc1", None),
        "fc2": getattr(block.mlp, "fc2", None),
    }
    return leaves if all(isinstance(leaves[name], nn.Linear) for name in LINEARS) else None
