"""KAdaptation: Kronecker-factored updates of query and value."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone
from vpeft_bench.methods.base import Category, MergeableModule, Method, add_in_float64, option
from vpeft_bench.methods.parts.kronecker import LowRankBlocks, kronecker_sum, require_divisible
from vpeft_bench.methods.registry import register


class FactoredRule(nn.Module):
    """A_i = a_i b_i for i = 1..n, each n x n and of rank one; one for the whole network."""

    def __init__(self, terms: int) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.empty(terms, terms, 1).uniform_(-0.01, 0.01))
        self.right = nn.Parameter(torch.empty(terms, 1, terms).uniform_(-0.01, 0.01))

    def forward(self) -> Tensor:
        """All A_i, ``(n, n, n)``."""
        return self.left @ self.right


class KroneckerUpdate(MergeableModule):
    """q + s x H_q + b, v + s x H_v + b with H = dropout(sum_i A_i (x) (u_i w_i)).

    Args:
        rules: the A_i of query and value, the very same modules in every block.
        width: D; x has this many channels, y three times as many.
    """

    adds = True

    def __init__(
        self,
        rules: tuple[FactoredRule, FactoredRule],
        width: int,
        rank: int,
        scale: float,
        dropout: float,
        zero: bool,
    ) -> None:
        super().__init__()
        self.query_rule, self.value_rule = rules
        terms = len(self.query_rule.left)
        part = width // terms
        self.query_blocks = LowRankBlocks(terms, part, part, rank, zero)
        self.value_blocks = LowRankBlocks(terms, part, part, rank, zero)
        self.bias = nn.Parameter(torch.zeros(width))
        self.dropout = nn.Dropout(dropout)
        self.scale = scale

    def updates(self) -> tuple[Tensor, Tensor]:
        """H_q and H_v, ``(D, D)`` each, applied from the right: x H."""
        query = kronecker_sum(self.query_rule(), self.query_blocks())
        value = kronecker_sum(self.value_rule(), self.value_blocks())
        return query, value

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x ``(..., D)``, y ``(..., 3D)``."""
        for_query, for_value = self.updates()
        q, k, v = y.chunk(3, dim=-1)
        q = q + self.scale * (x @ self.dropout(for_query)) + self.bias
        v = v + self.scale * (x @ self.dropout(for_value)) + self.bias
        return torch.cat([q.to(k.dtype), k, v.to(k.dtype)], dim=-1)

    def obstacle(self, leaf: nn.Module) -> str | None:
        """The bias b needs a bias to go into."""
        return None if getattr(leaf, "bias", None) is not None else "it has no bias for b"

    @torch.no_grad()
    def merge_into(self, leaf: nn.Module) -> None:
        """W_q <- W_q + s H_q^T and bias_q <- bias_q + b; the same for the value."""
        assert isinstance(leaf, nn.Linear)
        twin = copy.deepcopy(self).double()  # its Kronecker sums are float64, too
        for_query, for_value = twin.updates()
        nothing = torch.zeros_like(for_query)
        add_in_float64(leaf.weight, self.scale * torch.cat([for_query.T, nothing, for_value.T]))
        add_in_float64(leaf.bias, torch.cat([twin.bias, nothing[0], twin.bias]))


@register
@dataclass
class KAdaptation(Method):
    """q + s x H_q + b and v + s x H_v + b with H = sum_i A_i (x) (u_i w_i), A_i = a_i b_i.

    A_i is n x n and belongs to all blocks (query and value have one each), u_i is (D / n) x k and
    w_i k x (D / n); one bias per block serves query and value.
    """

    name = "kadaptation"
    title = "Parameter-efficient Model Adaptation for Vision Transformers"
    arxiv = "2203.16329"
    source = "Kronecker adaptation of query and value, as the authors' code sets it up"
    category = Category.REPARAMETERISATION
    idea = (
        "Query and value get a linear update that is a sum of Kronecker products of small matrices "
        "shared by all blocks and matrices of rank one. It folds into the weights after training."
    )
    deviations = (
        "One version of the authors' code multiplies the value's rule with the query's factors, so "
        "the value's own never train. Here they do.",
        "Another version starts both factors u and w at zero, where nothing but b ever receives a "
        "gradient. Here w alone is zero; init=pevit draws both at random, near the identity.",
        "The authors' attention reshapes the updates without moving the heads before the "
        "tokens, which mixes both, and adds the query's after the division by sqrt(d). Here they "
        "are added to the outputs of the query and value projections, as the paper writes them.",
        "The authors' classifier reads the features through a BatchNorm without affine parameters "
        "(eps 1e-5): head=batch_norm head.norm_eps=1e-5. By default the backbone's own linear "
        "reads them as they are.",
        "The published count includes CLIP's text tower; an image tower alone has 50,176.",
    )

    terms: int = option(32, "n, Kronecker products per update (authors: 32)", minimum=1)
    rank: int = option(1, "k, rank of each u_i w_i (authors: 1)", minimum=1)
    scale: float = option(160.0, "s (authors: 128 / 4 * 5)")
    dropout: float = option(0.5, "on the entries of H (authors: 0.5)", minimum=0.0, maximum=1.0)
    init: str = option(
        "standard", "standard: the identity; pevit: all random", choices=("standard", "pevit")
    )

    def check(self, backbone: Backbone) -> None:
        """As every method; and n must divide every width."""
        super().check(backbone)
        require_divisible(self.name, backbone, self.terms)

    def place(self, backbone: Backbone) -> None:
        """One update of query and value per block, and two rules for all of them."""
        rules = FactoredRule(self.terms), FactoredRule(self.terms)
        zero = self.init == "standard"
        for block in backbone.blocks:
            update = KroneckerUpdate(rules, block.width, self.rank, self.scale, self.dropout, zero)
            block.place("qkv", update)

    def parameter_count(self, backbone: Backbone) -> int:
        """4kD + D per block and 4n^2 once: 50,176 for ViT-B/16 at n = 32, k = 1."""
        return sum((4 * self.rank + 1) * b.width for b in backbone.blocks) + 4 * self.terms**2

    @property
    def identity_at_start(self) -> bool:
        """With w = 0."""
        return self.init == "standard"
