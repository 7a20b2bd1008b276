"""Compacter: adapters whose weights are sums of Kronecker products with one shared rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone, Block
from vpeft_bench.errors import Problem
from vpeft_bench.methods.adapter import SITES
from vpeft_bench.methods.base import Category, Method, option
from vpeft_bench.methods.ln_tune import norm_parameters, read_below_norms
from vpeft_bench.methods.parts.kronecker import LowRankBlocks, kronecker_sum, require_divisible
from vpeft_bench.methods.registry import register

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": nn.functional.gelu,
    "gelu_tanh": partial(nn.functional.gelu, approximate="tanh"),
}


class Rule(nn.Module):
    """A_1 ... A_n, n x n each, normal with deviation ``std``; one for the whole network."""

    def __init__(self, terms: int, std: float) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(terms, terms, terms).normal_(std=std))


class HypercomplexLinear(nn.Module):
    """x H + b with H = sum_i A_i (x) (s_i t_i).

    Args:
        rule: the A_i; the very same module in every layer.
        zero: the layer starts as zero.
    """

    def __init__(self, rule: Rule, width: int, out: int, rank: int, zero: bool) -> None:
        super().__init__()
        terms = len(rule.A)
        self.rule = rule
        self.blocks = LowRankBlocks(terms, width // terms, out // terms, rank, zero)
        self.bias = nn.Parameter(torch.zeros(out))

    def forward(self, x: Tensor) -> Tensor:
        """``(..., width)`` to ``(..., out)``."""
        return nn.functional.linear(x, kronecker_sum(self.rule.A, self.blocks()).T, self.bias)


class HypercomplexBottleneck(nn.Module):
    """A(z) = z + up(GELU(down(z)))."""

    def __init__(self, down: HypercomplexLinear, up: HypercomplexLinear, activation: str) -> None:
        super().__init__()
        self.down, self.up = down, up
        self.activation = ACTIVATIONS[activation]

    def forward(self, z: Tensor) -> Tensor:
        """Branch output ``(..., D)``, before drop-path and the residual addition."""
        branch: Tensor = self.up(self.activation(self.down(z)))
        return z + branch


@register
@dataclass
class Compacter(Method):
    """z <- z + up(GELU(down(z))), each W = sum_i A_i (x) (s_i t_i) with the A_i of all layers.

    A_i is n x n, s_i (D / n) x k and t_i k x (r / n). ``placement=pfeiffer`` is Compacter++.
    """

    name = "compacter"
    title = "Compacter: Efficient Low-Rank Hypercomplex Adapter Layers"
    arxiv = "2106.04647"
    source = "low-rank parameterized hypercomplex multiplication layers in Houlsby's adapters"
    category = Category.ADDITION
    not_mergeable = "a GELU stands between its two projections"
    idea = (
        "The projections of an adapter are sums of Kronecker products of small matrices and "
        "matrices of rank one. The small ones are shared by all adapters of the network."
    )
    deviations = (
        "The method comes from language models; the width of 48 with n = 4 in a ViT is ours.",
        "The reference starts every factor at random, so its adapters start near the identity and "
        "not at it: init=compacter. By default the last factor of the up-projection is zero.",
        "The published rows (T5) used the authors' compacter.json, which trains every LayerNorm of "
        "the network besides, starts the shared factors at a deviation of 1e-4 and has the tanh "
        "form of GELU: unfreeze_layer_norms=true phm_init_range=1e-4 activation=gelu_tanh. The "
        "defaults are those of the authors' classes, with the exact GELU.",
    )

    bottleneck: int = option(48, "r, width of the bottleneck (ours: D / 16)", minimum=1)
    terms: int = option(4, "n, Kronecker products per weight (paper: 4)", minimum=1)
    rank: int = option(1, "k, rank of each s_i t_i (paper: 1)", minimum=1)
    placement: str = option(
        "houlsby", "houlsby: after attention and MLP; pfeiffer: after the MLP", choices=SITES
    )
    init: str = option(
        "standard",
        "standard: the identity; compacter: all random",
        choices=("standard", "compacter"),
    )
    activation: str = option(
        "gelu", "exact GELU, or its tanh form (authors' configuration)", choices=ACTIVATIONS
    )
    phm_init_range: float = option(
        0.01, "deviation of the A_i at the start (authors' configuration: 1e-4)", minimum=1e-12
    )
    unfreeze_layer_norms: bool = option(
        False, "train every norm of the backbone, too (authors' configuration)"
    )

    def conflicts(self) -> Iterator[Problem]:
        """A bottleneck that cannot be cut into n parts."""
        if self.bottleneck % self.terms:
            yield Problem(
                f"method.bottleneck={self.bottleneck}",
                f"is no multiple of method.terms={self.terms}",
                f"method.bottleneck={(self.bottleneck // self.terms + 1) * self.terms}",
            )

    def check(self, backbone: Backbone) -> None:
        """As every method; and n must divide every width."""
        super().check(backbone)
        require_divisible(self.name, backbone, self.terms)

    def place(self, backbone: Backbone) -> None:
        """One bottleneck per site of every block, and one rule for all of them."""
        rule = Rule(self.terms, self.phm_init_range)
        for block in backbone.blocks:
            for site in SITES[self.placement]:
                block.place(site, self._bottleneck(block, rule))

    def _bottleneck(self, block: Block, rule: Rule) -> HypercomplexBottleneck:
        width, hidden = block.width, self.bottleneck
        return HypercomplexBottleneck(
            HypercomplexLinear(rule, width, hidden, self.rank, zero=False),
            HypercomplexLinear(rule, hidden, width, self.rank, zero=self.init == "standard"),
            self.activation,
        )

    def unfrozen(self, backbone: Backbone) -> list[nn.Parameter]:
        """The norms of the backbone, where they are asked for."""
        return norm_parameters(backbone) if self.unfreeze_layer_norms else []

    def parameter_count(self, backbone: Backbone) -> int:
        """2k(D + r) + D + r per site and n^3 once: 58,816 for ViT-B/16 at r = 48, n = 4, k = 1.

        The norms of ViT-B/16 add 38,400.
        """
        sizes = [(2 * self.rank + 1) * (b.width + self.bottleneck) for b in backbone.blocks]
        norms = sum(parameter.numel() for parameter in self.unfrozen(backbone))
        return len(SITES[self.placement]) * sum(sizes) + self.terms**3 + norms

    @property
    def changes_embedding(self) -> bool:
        """With its norms: a Swin has one on its patches, CLIP one before its blocks."""
        return self.unfreeze_layer_norms

    def reads(self, backbone: Backbone) -> tuple[str, ...]:
        """As every method; with trained norms the images, where one stands below the blocks."""
        return read_below_norms(backbone) if self.unfreeze_layer_norms else super().reads(backbone)

    @property
    def identity_at_start(self) -> bool:
        """With a zero factor in the up-projection."""
        return self.init == "standard"
