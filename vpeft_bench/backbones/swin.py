"""Swin Transformers (version 1): timm's ``SwinTransformer``."""

from __future__ import annotations

from typing import Any

from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone, Block, register_family
from vpeft_bench.backbones.sites import OpenedBlock, apply


class OpenedSwinBlock(OpenedBlock, SwinTransformerBlock):
    """timm's Swin block with its places open; window shift, mask and padding stay timm's."""

    def forward(self, x: Tensor) -> Tensor:
        """Feature map ``(B, H, W, D)`` to feature map; the MLP half runs on ``(B, H*W, D)``."""
        batch, height, width, channels = x.shape
        x = apply(self.stream_in, x)

        normed = apply(self.attn_in, self.norm1(x))
        branch = apply(self.attn_out, self._attn(normed))
        x = self.add_branch("attn", x, normed, self.drop_path1(branch))
        x = apply(self.stream_mid, x)

        x = x.reshape(batch, -1, channels)
        normed = apply(self.mlp_in, self.norm2(x))
        branch = apply(self.mlp_out, self.mlp(normed))
        x = self.add_branch("mlp", x, normed, self.drop_path2(branch))
        x = x.reshape(batch, height, width, channels)
        return apply(self.stream_out, x)


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
        opened_block_class=OpenedSwinBlock,
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
            width, heads = block.attn.qkv.in_features, block.attn.num_heads
            index = len(backbone.blocks)
            backbone.blocks.append(Block(index, path, block, width, heads, s, leaves, backbone))
    return backbone
