"""Swin Transformers (version 1): timm's ``SwinTransformer``."""

from __future__ import annotations

import itertools
from typing import Any, cast

from timm.models._features import feature_take_indices
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock, WindowAttention
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone, Block, OpenedClasses, register_family
from vpeft_bench.backbones.sites import OpenedAttention, OpenedBlock
from vpeft_bench.backbones.trunk import OpenedModel, Stage


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


class OpenedSwin(OpenedModel, SwinTransformer):  # type: ignore[misc]  # takes no mask
    """timm's Swin with something placed around its trunk."""

    def embed(self, images: Tensor) -> Tensor:
        """Patches, ``(B, H, W, D)``."""
        return cast(Tensor, self.patch_embed(images))

    def stages(self) -> list[Stage]:
        """One stage per resolution, each with the patch merging in front of it."""
        layers: Any = self.layers
        return [Stage(stage.downsample, list(stage.blocks)) for stage in layers]

    def pooled(self, stream: Tensor) -> Tensor:
        """Final norm and pooling, ``(B, D)``."""
        return cast(Tensor, self.head.global_pool(self.norm(stream)))

    def classify(self, features: Tensor) -> Tensor:
        """Dropout and the linear head."""
        return cast(Tensor, self.head.fc(self.head.drop(features)))

    def intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """As timm's; ``stop_early`` saves nothing, since the last stream may depend on all."""
        streams = self.around(x).streams
        last_of_stage = itertools.accumulate(len(stage.blocks) for stage in self.stages())
        outputs = [streams[blocks - 1] for blocks in last_of_stage]
        last = outputs[-1] if intermediates_only and not norm else self.norm(outputs[-1])
        if norm:
            outputs[-1] = last
        taken, _ = feature_take_indices(len(outputs), indices)
        maps = [outputs[i].permute(0, 3, 1, 2).contiguous() for i in taken]
        return maps if intermediates_only else (last, maps)


@register_family(SwinTransformer)
def map_swin(model: Any) -> Backbone:
    """Block map of a timm ``SwinTransformer``; blocks are counted over all stages."""
    merges = [stage.downsample for stage in model.layers]
    patch_embed = model.patch_embed
    patch_leaves = [patch_embed.proj]
    if not isinstance(patch_embed.norm, nn.Identity):
        patch_leaves.append(patch_embed.norm)
    backbone = Backbone(
        model,
        family="swin",
        opened=OpenedClasses(OpenedSwin, OpenedSwinBlock, OpenedWindowAttention),
        patch_leaves=patch_leaves,
        final_norm=model.norm,
        merge_norms=[merge.norm for merge in merges if not isinstance(merge, nn.Identity)],
        prefix_tokens=0,
    )
    for s, stage in enumerate(model.layers):
        for b, block in enumerate(stage.blocks):
            leaves = {
                "norm1": block.norm1,
                "qkv": block.attn.qkv,
                "proj": block.attn.proj,
                "norm2": block.norm2,
                "fc1": block.mlp.fc1,
                "fc2": block.mlp.fc2,
            }
            path = f"layers.{s}.blocks.{b}"
            width, index = block.attn.qkv.in_features, len(backbone.blocks)
            backbone.blocks.append(
                Block(index, path, block, block.attn, width, s, leaves, backbone)
            )
    return backbone
