"""SSL and SSB: scale the input side, or both sides, of every weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import LINEARS, Backbone
from vpeft_bench.methods.base import Category, Method, WeightUpdate, option
from vpeft_bench.methods.registry import register


class ScaledWeight(WeightUpdate):
    """diag(s_out) W diag(s_in), or W diag(s_in) without ``out_features``."""

    def __init__(self, in_features: int, out_features: int | None) -> None:
        super().__init__()
        self.s_in = nn.Parameter(torch.ones(in_features))
        self.s_out = None if out_features is None else nn.Parameter(torch.ones(out_features))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight ``(out_features, in_features)`` that the linear uses."""
        weight = weight * self.s_in
        return weight if self.s_out is None else self.s_out.unsqueeze(1) * weight


@dataclass
class SubspaceScaling(Method):
    """What SSL and SSB share; unlike SSF, neither touches a bias, a norm or the patches."""

    title = (
        "See Further for Parameter Efficient Fine-tuning by Standing on the Shoulders of "
        "Decomposition"
    )
    arxiv = "2407.05417"
    category = Category.REPARAMETERISATION
    deviations = (
        "The authors' code replaces single linears of language models; which linears of a vision "
        "transformer are scaled is a choice made here (all four of a block).",
    )
    both_sides: ClassVar[bool]

    targets: list[str] = option(
        list(LINEARS), "linears to scale (all of a block is ours)", choices=LINEARS
    )

    def place(self, backbone: Backbone) -> None:
        """The scales of every targeted linear."""
        for block in backbone.blocks:
            for target in self.targets:
                linear = block.linear(target)
                out_features = linear.out_features if self.both_sides else None
                block.place(f"{target}.weight", ScaledWeight(linear.in_features, out_features))

    def parameter_count(self, backbone: Backbone) -> int:
        """7DL for the inputs and 9DL for the outputs; ViT-B/16: 64,512 (SSL), 147,456 (SSB)."""
        linears = [block.linear(target) for block in backbone.blocks for target in self.targets]
        return sum(each.in_features + self.both_sides * each.out_features for each in linears)


@register
@dataclass
class SSL(SubspaceScaling):
    """W diag(s) x + b on every linear of a block."""

    name = "ssl"
    source = "SSL of the authors' code (Chongjie-Si/Subspace-Tuning)"
    idea = (
        "Every input channel of a weight is multiplied by a learned number, which scales one of "
        "the two subspaces that the weight spans. The numbers start at one and are multiplied into "
        "the weight after training; its bias stays as it is."
    )
    both_sides = False


@register
@dataclass
class SSB(SubspaceScaling):
    """diag(s_out) W diag(s_in) x + b on every linear of a block."""

    name = "ssb"
    source = "SSB of the authors' code (Chongjie-Si/Subspace-Tuning)"
    idea = (
        "Every input and every output channel of a weight is multiplied by a learned number, which "
        "scales both subspaces that the weight spans. The numbers start at one and are multiplied "
        "into the weight after training; its bias stays as it is."
    )
    both_sides = True
