"""LST: a ladder of small transformer blocks beside the frozen trunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone, Block
from vpeft_bench.backbones.sites import open_module
from vpeft_bench.backbones.trunk import OpenedModel, SideNetwork, TrunkOutput
from vpeft_bench.backbones.vit import OpenedViTAttention
from vpeft_bench.errors import UnsupportedBackboneError
from vpeft_bench.methods.base import Category, Length, Method, option
from vpeft_bench.methods.registry import register
from vpeft_bench.traits import Trait

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
            bias = weight.new_zeros(len(rows)) if bias is None else bias[rows]
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


class Ladder(SideNetwork):
    """s_i = SideBlock_i(g_i s_{i-1} + (1 - g_i) Dn_i x_i), s_0 = Dn_0 x_0; then Up LN(s_L)."""

    def __init__(
        self,
        width: int,
        blocks: list[nn.Module],
        bottleneck: int,
        temperature: float,
        side_norm: bool,
        projection_bias: bool,
    ) -> None:
        depth = len(blocks)
        super().__init__([f"tokens.{i}" for i in range(depth + 1)], frozen_blocks=depth - 1)
        self.temperature = temperature
        self.downs = nn.ModuleList(
            nn.Linear(width, bottleneck, projection_bias) for _ in range(depth + 1)
        )
        self.gates = nn.ParameterList(nn.Parameter(torch.zeros(1)) for _ in blocks)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(bottleneck) if side_norm else nn.Identity()
        self.up = nn.Linear(bottleneck, width, projection_bias)

    def side(self, features: dict[str, Tensor], model: OpenedModel) -> TrunkOutput:
        """The last stream, from the ladder alone."""
        tokens = [features[name] for name in self.reads]
        state, *rungs = (down(x) for down, x in zip(self.downs, tokens, strict=True))
        for rung, alpha, block in zip(rungs, self.gates, self.blocks, strict=True):
            gate = torch.sigmoid(alpha / self.temperature)
            state = block(rung + gate * (state - rung))
        return TrunkOutput([self.up(self.norm(state))])


@register
@dataclass
class LST(Method):
    """Blocks of width d' read every frozen block's tokens; their output replaces the backbone's."""

    name = "lst"
    title = "LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning"
    arxiv = "2206.06522"
    source = "section 3, carried over to a ViT; the ladder as in the authors' CLIP-ViL code"
    category = Category.SIDE
    idea = (
        "A ladder of small transformer blocks runs beside the frozen backbone and takes in, "
        "through gates, what every frozen block puts out. Only the ladder is trained, and its "
        "up-projected output goes into the backbone's final norm."
    )
    deviations = (
        "there is no official ViT version; the side blocks are pre-norm ViT blocks of width D/8, "
        "which gives the published 2.38M",
        "the CLIP-ViL code has neither biases on the projections nor a norm before the "
        "up-projection (projection_bias=false side_norm=false); both are the default here",
        "the official side layers start from the pruned backbone (init=pruned: by L1 norms, one "
        "choice of residual channels for all blocks, where the official chain makes a new one "
        "after every linear); whether the published rows did so is not known",
        "number of side heads: not stated, and not visible in the count; the backbone's here",
        "the official code can drop side layers; all are kept here",
    )
    needs = {
        Trait.ONE_RESOLUTION: "its ladder keeps one width and one resolution through all blocks",
    }
    not_mergeable = "the ladder is a network of its own, whose output replaces the backbone's"

    bottleneck: int | None = option(
        None, "d', width of the side blocks; null: D / 8 (authors: reduction 8)", minimum=1
    )
    heads: int | None = option(None, "heads of a side block; null: the backbone's", minimum=1)
    temperature: float = option(0.1, "T of the gates sigmoid(alpha / T) (authors: 0.1)")
    side_norm: bool = option(True, "a LayerNorm before the up-projection (CLIP-ViL: false)")
    projection_bias: bool = option(True, "biases of down and up projections (CLIP-ViL: false)")
    init: str = option(
        "standard",
        "side blocks: standard: truncated normal 0.02; pruned: from the backbone's own blocks",
        choices=("standard", "pruned"),
    )

    def _bottleneck(self, backbone: Backbone) -> int:
        return self.bottleneck or max(1, backbone.blocks[0].width // 8)

    def _heads(self, backbone: Backbone) -> int:
        return self.heads or backbone.blocks[0].heads

    def check(self, backbone: Backbone) -> None:
        """As every method; the width must split into heads, and pruning cannot add channels."""
        super().check(backbone)
        width, hidden = backbone.blocks[0].width, backbone.blocks[0].linear("fc1").out_features
        bottleneck, heads = self._bottleneck(backbone), self._heads(backbone)
        if bottleneck % heads:
            nearest = max(1, round(bottleneck / heads)) * heads
            raise UnsupportedBackboneError(
                f"method.bottleneck={bottleneck} does not split into {heads} heads "
                f"(nearest: method.bottleneck={nearest}, or set method.heads)"
            )
        if self.init == "pruned" and backbone.blocks[0].linear("fc2").in_features != hidden:
            raise UnsupportedBackboneError(
                "method.init=pruned: the backbone's MLPs have a gate, side blocks have none "
                "(init=standard has no such limit)"
            )
        narrower = bottleneck <= width and MLP_RATIO * bottleneck <= hidden
        fits = width % heads == 0 and narrower
        if self.init == "pruned" and not fits:
            raise UnsupportedBackboneError(
                f"method.init=pruned: side blocks of width {bottleneck} with {heads} heads cannot "
                f"be cut out of blocks of width {width} (init=standard has no such limit)"
            )

    def place(self, backbone: Backbone) -> None:
        """One ladder around the trunk."""
        bottleneck, heads = self._bottleneck(backbone), self._heads(backbone)
        blocks = [side_block(bottleneck, heads) for _ in backbone.blocks]
        if self.init == "pruned":
            prune_into(blocks, backbone, heads)
        ladder = Ladder(
            backbone.blocks[0].width,
            blocks,
            bottleneck,
            self.temperature,
            self.side_norm,
            self.projection_bias,
        )
        backbone.place_around(ladder)

    @property
    def lengths_known(self) -> frozenset[Length]:
        """Its ladder goes on with the stream of the first block."""
        return frozenset({Length.STREAM})

    def parameter_count(self, backbone: Backbone) -> int:
        """(12d'^2 + 13d' + 1)L + (L + 2)Dd' + (L + 1)d' + D + 2d': 2,376,492 for ViT-B/16."""
        width, d, depth = backbone.blocks[0].width, self._bottleneck(backbone), len(backbone.blocks)
        blocks = depth * (12 * d**2 + 13 * d + 1)
        biases = (depth + 1) * d + width if self.projection_bias else 0
        return blocks + (depth + 2) * width * d + biases + (2 * d if self.side_norm else 0)

    @property
    def identity_at_start(self) -> bool:
        """The ladder's output replaces the backbone's."""
        return False

    def first_changed_block(self, backbone: Backbone) -> int:
        """None of them."""
        return len(backbone.blocks)

    def reads(self, backbone: Backbone) -> tuple[str, ...]:
        """The tokens before the first block and after every block."""
        return tuple(f"tokens.{i}" for i in range(len(backbone.blocks) + 1))
