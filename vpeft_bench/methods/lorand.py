"""LoRand: an adapter whose two projections are sums of low-rank branches."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vpeft_bench.backbones.block_map import Backbone
from vpeft_bench.methods.base import Category, Method, option
from vpeft_bench.methods.parts.multi_branch import MultiBranchBottleneck, bottleneck_count
from vpeft_bench.methods.registry import register

SITES = ("attn_added", "mlp_added")


class LoRandAdapter(MultiBranchBottleneck):
    """L(z) = z + U(GELU(Dn(z)))."""

    def forward(self, z: Tensor) -> Tensor:
        """Branch output ``(..., D)`` after drop-path, before the residual addition."""
        return z + super().forward(z)


@register
@dataclass
class LoRand(Method):
    """x <- x + L_a(attn(norm1(x))), then x <- x + L_m(mlp(norm2(x))).

    LoRand is ``branches=2 kernel_dim=8``, LoRand+ ``branches=4 kernel_dim=8`` and LoRand++
    ``branches=4 kernel_dim=16``.
    """

    name = "lorand"
    title = "1% VS 100%: Parameter-Efficient Low Rank Adapter for Dense Predictions"
    arxiv = None
    source = "CVPR 2023; module and placement of the first author's code (DongshuoYin/CoLin)"
    category = Category.ADDITION
    idea = (
        "Attention and MLP of every block are followed by an adapter of half the width. The weight "
        "of each of its projections is a sum of products of a tall, a small square and a wide "
        "matrix, and the two projections share the square ones."
    )
    deviations = (
        "The paper describes kernels shared by the two projections of an adapter (the default), "
        "the first author's code has separate ones (share_kernel=false); the published 1.20M for "
        "Swin-B fits both, 1,197,312 and 1,203,456.",
        "The published 1.31M for Swin-L does not fit half the width (1,792,896); closest is a "
        "hidden width of 64 with separate kernels, 1,304,832 (bottleneck=64 share_kernel=false).",
        "The first author's code sets 4 branches, which is LoRand+.",
        "It does not start as the identity: all factors start random.",
    )
    not_mergeable = "a GELU stands between its two projections"

    branches: int = option(2, "alpha, terms of each sum (LoRand: 2; + and ++: 4)", minimum=1)
    kernel_dim: int = option(8, "beta, size of the kernels (LoRand and +: 8; ++: 16)", minimum=1)
    bottleneck: int | None = option(
        None, "hidden width; null: half the block's (the authors' factor 2)", minimum=1
    )
    share_kernel: bool = option(
        True, "one set of kernels for down and up (paper); false: two (the first author's code)"
    )

    def place(self, backbone: Backbone) -> None:
        """Two adapters per block."""
        for block in backbone.blocks:
            for site in SITES:
                block.place(site, LoRandAdapter(*self._sizes(block.width)))

    def _sizes(self, width: int) -> tuple[int, int, int, int, bool]:
        hidden = self.bottleneck or width // 2
        return width, hidden, self.branches, self.kernel_dim, self.share_kernel

    def parameter_count(self, backbone: Backbone) -> int:
        """(2ab + 1)(D + h) + ab^2 per adapter: 1,197,312 for Swin-B at a = 2, b = 8, h = D/2."""
        return len(SITES) * sum(bottleneck_count(*self._sizes(b.width)) for b in backbone.blocks)

    @property
    def identity_at_start(self) -> bool:
        """Its up-projection starts random."""
        return False
