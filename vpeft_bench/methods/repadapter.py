"""RepAdapter: a linear bottleneck before the attention and the MLP, folded into them later."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone, Block
from vpeft_bench.errors import Problem, UnsupportedBackboneError
from vpeft_bench.methods.base import Category, MergeableModule, Method, add_in_float64, option
from vpeft_bench.methods.registry import register

LEAVES = {"attn_mlp": ("qkv", "fc1"), "attn": ("qkv",)}


class GroupedBottleneck(MergeableModule):
    """R(x) = x + s * (B dropout(A x + a) + b), B block-diagonal."""

    def __init__(
        self, width: int, bottleneck: int, groups: int, scale: float, dropout: float
    ) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.dropout = nn.Dropout(dropout)
        # The blocks of B above each other: group i of the output reads group i of the hidden units.
        self.up = nn.Parameter(torch.zeros(width, bottleneck // groups))
        self.bias = nn.Parameter(torch.zeros(width))
        self.groups = groups
        self.scale = scale
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def dense_up(self) -> Tensor:
        """B as one matrix ``(D, bottleneck)``."""
        dense: Tensor = torch.block_diag(*self.up.chunk(self.groups))
        return dense

    def forward(self, x: Tensor) -> Tensor:
        """Input ``(..., D)`` of the linear."""
        hidden = self.dropout(self.down(x))
        return x + self.scale * nn.functional.linear(hidden, self.dense_up(), self.bias)

    def obstacle(self, leaf: nn.Module) -> str | None:
        """What the biases add needs a bias to go into."""
        return None if getattr(leaf, "bias", None) is not None else "it has no bias"

    @torch.no_grad()
    def merge_into(self, leaf: nn.Module) -> None:
        """W <- W (I + s B A), bias <- bias + s W (B a + b)."""
        assert isinstance(leaf, nn.Linear)
        weight, up = leaf.weight.double(), self.scale * self.dense_up().double()
        constant = up @ self.down.bias.double() + self.scale * self.bias.double()
        add_in_float64(leaf.bias, weight @ constant)
        add_in_float64(leaf.weight, weight @ up @ self.down.weight.double())


@register
@dataclass
class RepAdapter(Method):
    """attn(R_a(norm1(x))) and mlp(R_m(norm2(x))), both R linear."""

    name = "repadapter"
    title = "Towards Efficient Visual Adaption via Structural Re-parameterization"
    arxiv = "2302.08106"
    source = "placement, grouping and defaults of the authors' code (luogen1996/RepAdapter)"
    category = Category.REPARAMETERISATION
    idea = (
        "A bottleneck without an activation, its up-projection in groups, stands before the "
        "attention and of the MLP of every block. Being linear, it is folded into the query-key-"
        "value linear and the first linear of the MLP after training."
    )
    deviations = (
        "The published 0.22M leaves out the biases, which the authors' code trains: 239,808 for "
        "ViT-B/16, of which 221,184 are weights.",
        "The scale is searched per task in 0.1, 0.5, 1, 5, 10; 1 is the default here. The authors' "
        "test script merges with scale 1 unless told otherwise; here the scale is merged.",
        "The authors' merging of an ungrouped adapter before the MLP fails; here it works.",
        "The authors' block leaves out LayerScale and draws both branches from one drop-path "
        "layer; here the block is timm's own.",
        "On a Swin the adapter reads what the linear reads, the windows: where they are padded, "
        "the padding is adapted as well, without which it could not be merged.",
    )

    placement: str = option(
        "attn_mlp",
        "attn_mlp: before both (the authors' repblock); attn: the attention only (repattn)",
        choices=LEAVES,
    )
    bottleneck: int = option(8, "h, hidden width (authors: 8)", minimum=1, search=(8, 16, 32))
    groups: int = option(2, "g, groups of the up-projection (authors: 2)", minimum=1)
    scale: float = option(
        1.0,
        "s; searched per task in 0.1 to 10 by the authors, 1 is ours",
        search=(0.1, 0.5, 1.0, 5.0, 10.0),
    )
    dropout: float = option(0.1, "on the hidden units (authors: 0.1)", minimum=0.0, maximum=1.0)

    def conflicts(self) -> Iterator[Problem]:
        """Groups that do not divide the hidden width."""
        if self.bottleneck % self.groups:
            yield Problem(
                f"method.groups={self.groups}",
                f"does not divide method.bottleneck={self.bottleneck}",
                f"method.groups={self._groups_of(self.bottleneck)}",
            )

    def check(self, backbone: Backbone) -> None:
        """As every method; and the groups must divide every block's width."""
        super().check(backbone)
        for width in (block.width for block in backbone.blocks):
            if width % self.groups:
                raise UnsupportedBackboneError(
                    f"method.groups={self.groups} does not divide the width {width} of a block "
                    f"(nearest that does: method.groups={self._groups_of(width)})"
                )

    def _groups_of(self, width: int) -> int:
        """The largest number of groups below the one asked for that divides ``width``."""
        return max(groups for groups in range(1, self.groups) if width % groups == 0)

    def place(self, backbone: Backbone) -> None:
        """One bottleneck on the input of each linear."""
        for site, block in self._sites(backbone):
            adapter = GroupedBottleneck(
                block.width, self.bottleneck, self.groups, self.scale, self.dropout
            )
            block.place(f"{site}.input", adapter)

    def _sites(self, backbone: Backbone) -> Iterator[tuple[str, Block]]:
        return ((site, block) for block in backbone.blocks for site in LEAVES[self.placement])

    def parameter_count(self, backbone: Backbone) -> int:
        """Dh + h + Dh/g + D per site: 239,808 for ViT-B/16 at h = 8, g = 2."""
        h, g = self.bottleneck, self.groups
        return sum(b.width * h + h + b.width * h // g + b.width for _, b in self._sites(backbone))
