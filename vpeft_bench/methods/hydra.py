"""Hydra: a low-rank branch beside a linear and another one after it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone
from vpeft_bench.methods.base import Category, MergeableModule, Method, add_in_float64, option
from vpeft_bench.methods.registry import register

LEAVES = ("proj", "fc2")


class LowRankBranch(nn.Module):
    """U dropout(A x + a) + u."""

    def __init__(self, in_features: int, out_features: int, rank: int, dropout: float) -> None:
        super().__init__()
        self.down = nn.Linear(in_features, rank)
        self.dropout = nn.Dropout(dropout)
        self.up = nn.Linear(rank, out_features)
        nn.init.xavier_uniform_(self.down.weight)
        for zeros in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zeros)

    def forward(self, x: Tensor) -> Tensor:
        """x ``(..., in_features)`` to ``(..., out_features)``."""
        branch: Tensor = self.up(self.dropout(self.down(x)))
        return branch

    def as_matrix(self) -> tuple[Tensor, Tensor]:
        """The whole branch as one weight U A and one bias U a + u, in float64."""
        up = self.up.weight.double()
        return up @ self.down.weight.double(), up @ self.down.bias.double() + self.up.bias.double()


class ParallelAndSequential(MergeableModule):
    """y + s * parallel(x) + s * sequential(y)."""

    def __init__(self, leaf: nn.Linear, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.parallel = LowRankBranch(leaf.in_features, leaf.out_features, rank, dropout)
        self.sequential = LowRankBranch(leaf.out_features, leaf.out_features, rank, dropout)
        self.scale = scale

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Input and output of the linear."""
        out: Tensor = y + self.scale * (self.parallel(x) + self.sequential(y))
        return out

    def obstacle(self, leaf: nn.Module) -> str | None:
        """What the biases add needs a bias to go into."""
        return None if getattr(leaf, "bias", None) is not None else "it has no bias"

    @torch.no_grad()
    def merge_into(self, leaf: nn.Module) -> None:
        """W <- W + s (P + S W), b <- b + s (p + S b + q), of the branches' weights and biases."""
        assert isinstance(leaf, nn.Linear)
        P, p = self.parallel.as_matrix()
        S, q = self.sequential.as_matrix()
        add_in_float64(leaf.weight, self.scale * (P + S @ leaf.weight.double()))
        add_in_float64(leaf.bias, self.scale * (p + S @ leaf.bias.double() + q))


@register
@dataclass
class HydraAdapter(Method):
    """out = y + s * (U_p (A_p x + a_p) + u_p) + s * (U_s (A_s y + a_s) + u_s), y = W x + b."""

    name = "hydra"
    title = "Hydra: Multi-head Low-rank Adaptation for Parameter Efficient Fine-tuning"
    arxiv = "2309.06922"
    source = "branches, sites and rank of the authors' code (extremebird/Hydra, vtab1k)"
    category = Category.REPARAMETERISATION
    idea = (
        "The output projection of the attention and the second linear of the MLP get two low-rank "
        "branches: one beside the linear reads its input, one after it reads its output. Both are "
        "linear and are folded into the weight after training."
    )
    deviations = (
        "The published 0.28M is 239,712 for ViT-B/16 and the mean VTAB-1k head.",
        "The authors' merging writes the weights of the second MLP linear into the attention's "
        "projection; here each linear is merged with its own.",
        "The authors' cosine schedule is 500 epochs long while 100 are trained; a recipe may ask "
        "for that, the method does not.",
        "Scale (0.1 to 4.5) and dropout (0 to 0.2) are chosen per task by the authors.",
    )

    rank: int = option(2, "r of every branch (authors: 2)", minimum=1)
    scale: float = option(
        1.0,
        "s; chosen per task in 0.1 to 4.5 by the authors, 1 is ours",
        search=(0.1, 0.5, 1.0, 2.0, 4.5),
    )
    dropout: float = option(
        0.0, "on the hidden units; 0 to 0.2 per task, 0 is ours", minimum=0.0, maximum=1.0
    )

    def place(self, backbone: Backbone) -> None:
        """Both branches on both linears of every block."""
        for block in backbone.blocks:
            for site in LEAVES:
                module = ParallelAndSequential(
                    block.linear(site), self.rank, self.scale, self.dropout
                )
                block.place(site, module)

    def parameter_count(self, backbone: Backbone) -> int:
        """r(in + out) + r + out beside and 2r out + r + out after: 239,712 for ViT-B/16."""
        r = self.rank
        linears = [block.linear(site) for block in backbone.blocks for site in LEAVES]
        return sum(
            r * (y.in_features + 3 * y.out_features + 2) + 2 * y.out_features for y in linears
        )
