"""LST's side blocks: small ViT blocks, fresh or cut out of the backbone's own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone, Block
from vpeft_bench.backbones.sites import open_module
from vpeft_bench.backbones.vit import OpenedViTAttention

MLP_RATIO = 4
PATHS = {
    "norm1": "norm1",
    "qkv": "attn.qkv",
    "proj": "attn.proj",
    "norm2": "norm2",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}


def side_block(width: int, heads: int) -> nn.Module:
    """A pre-norm ViT block; weights truncated normal 0.02."""
    norm_layer: Any = partial(nn.LayerNorm, eps=1e-6)
    block = TimmBlock(width, heads, MLP_RATIO, qkv_bias=True, norm_layer=norm_layer)
    open_module(block.attn, OpenedViTAttention)  # the same operations, with a faster backward pass
    for module in block.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    return block


@torch.no_grad()
def prune_into(side_blocks: Sequence[nn.Module], backbone: Backbone, heads: int) -> None:
    """Fill side blocks with those channels of the backbone's blocks that have the largest L1 norms.

    The residual channels are the same in all blocks: those of the largest patch filters. Attention
    and hidden channels are chosen block by block, over the kept inputs; attention channels for
    query, key and value together, as many from every head. LayerScale goes into the weights.
    """
    filters: Any = backbone.patch_leaves[0].weight
    for side, block in zip(side_blocks, backbone.blocks, strict=True):
        small: dict[str, Any] = {n: side.get_submodule(path) for n, path in PATHS.items()}
        width = small["proj"].out_features
        residual = _largest(filters.flatten(1).abs().sum(1), width)
        of_head = _norms(block, "qkv", residual).view(3, heads, -1).sum(0)
        attention = torch.cat(
            [head * len(n) + _largest(n, width // heads) for head, n in enumerate(of_head)]
        )
        qkv = torch.cat([part * of_head.numel() + attention for part in range(3)])
        hidden = _largest(_norms(block, "fc1", residual), small["fc1"].out_features)
        for name, rows, columns in (
            ("norm1", residual, ...),
            ("qkv", qkv, residual),
            ("proj", residual, attention),
            ("norm2", residual, ...),
            ("fc1", hidden, residual),
            ("fc2", residual, hidden),
        ):
            leaf: Any = block.leaf(name)
            weight, bias = leaf.weight[rows][..., columns], getattr(leaf, "bias", None)
            bias = torch.zeros(len(rows)) if bias is None else bias[rows]
            if (gamma := block.layer_scale(name)) is not None:
                weight, bias = weight * gamma[rows].unsqueeze(1), bias * gamma[rows]
            small[name].weight.copy_(weight)
            small[name].bias.copy_(bias)


def _norms(block: Block, name: str, columns: Tensor) -> Tensor:
    """L1 norm of each row of a linear's weight, over ``columns``."""
    return block.linear(name).weight[:, columns].abs().sum(1)


def _largest(values: Tensor, count: int) -> Tensor:
    """Indices of the ``count`` largest values, in ascending order."""
    return values.topk(count).indices.sort().values
