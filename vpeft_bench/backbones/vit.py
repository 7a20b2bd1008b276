"""Vision Transformers: timm's ``VisionTransformer`` (ViT, DeiT, DINOv2, CLIP and SigLIP towers)."""

from __future__ import annotations

from typing import Any

from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import LINEARS, Backbone, Block, register_family
from vpeft_bench.backbones.sites import OpenedBlock, apply
from vpeft_bench.errors import UnsupportedBackboneError


class OpenedViTBlock(OpenedBlock, TimmBlock):
    """timm's ViT block with its places open; without anything placed, the same operations."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Tokens ``(B, N, D)`` to tokens; further arguments (mask) go to the attention."""
        x = apply(self.stream_in, x)

        normed = apply(self.attn_in, self.norm1(x))
        branch = apply(self.attn_out, self.ls1(self.attn(normed, *args, **kwargs)))
        x = self.add_branch("attn", x, normed, self.drop_path1(branch))
        x = apply(self.stream_mid, x)

        normed = apply(self.mlp_in, self.norm2(x))
        branch = apply(self.mlp_out, self.ls2(self.mlp(normed)))
        x = self.add_branch("mlp", x, normed, self.drop_path2(branch))
        return apply(self.stream_out, x)


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
        opened_block_class=OpenedViTBlock,
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
        width, heads = leaves["qkv"].in_features, block.attn.num_heads
        backbone.blocks.append(
            Block(index, f"blocks.{index}", block, width, heads, 0, leaves, backbone)
        )
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
