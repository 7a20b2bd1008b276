"""LAST: a chain of low-rank attention modules beside the frozen trunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone
from vpeft_bench.backbones.trunk import OpenedModel, SideNetwork, TrunkOutput
from vpeft_bench.errors import UnsupportedBackboneError
from vpeft_bench.methods.base import Category, Length, Method, option
from vpeft_bench.methods.registry import register
from vpeft_bench.traits import Trait


class LowRankAttention(nn.Module):
    """softmax(Q K^T / sqrt(r)) V A_o, with [Q, K, V] = LN(x) [A_q, A_k, A_v]; one head."""

    def __init__(self, width: int, rank: int, bias: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, rank, bias) for _ in range(3))
        self.out = nn.Linear(rank, width, bias)
        nn.init.zeros_(self.out.weight)
        for linear in (self.q, self.k, self.v, self.out):
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """What the module adds to the tokens x ``(B, N, D)``."""
        # One product for all three, which reads x once and has one gradient for it.
        weight = torch.cat([self.q.weight, self.k.weight, self.v.weight])
        bias = None if self.q.bias is None else torch.cat([self.q.bias, self.k.bias, self.v.bias])
        qkv = nn.functional.linear(self.norm(x), weight, bias)
        q, k, v = qkv.unsqueeze(1).chunk(3, dim=-1)
        read = nn.functional.scaled_dot_product_attention(q, k, v)
        added: Tensor = self.out(read.squeeze(1))
        return added


class AttentionChain(SideNetwork):
    """u_i = F_i(u_{i-1} + z_{i-1}); what goes on is z_m + (u_m - sum_{i<m} z_i).

    The task's own part ``u_i - sum_{j<i} z_j`` is what the modules added so far. That is
    kept instead: a difference of two large sums has rounding errors and is no exact zero at the
    start.
    """

    def __init__(
        self, width: int, blocks: int, gap: int, repeats: int, rank: int, bias: bool
    ) -> None:
        super().__init__([f"tokens.{i}" for i in range(0, blocks + 1, gap)], blocks - 1)
        self.groups = nn.ModuleList(
            nn.ModuleList(LowRankAttention(width, rank, bias) for _ in range(repeats))
            for _ in range(blocks // gap)
        )

    def side(self, features: dict[str, Tensor], model: OpenedModel) -> TrunkOutput:
        """The last stream, with the task's own part."""
        *inputs, last = (features[name] for name in self.reads)
        frozen = own = torch.zeros_like(last)
        for z, modules in zip(inputs, self.groups, strict=True):
            frozen = frozen + z
            for module in cast(nn.ModuleList, modules):
                own = own + module(frozen + own)
        return TrunkOutput([last + own])


@register
@dataclass
class LAST(Method):
    """Classify norm(z_m + u_m - sum_{i<m} z_i), with u_i = F_i(u_{i-1} + z_{i-1}) and u_0 = 0."""

    name = "last"
    title = "Low-rank Attention Side-Tuning for Parameter-Efficient Fine-Tuning"
    arxiv = "2402.04009"
    source = "the abstract and summaries of the paper; there is no public code"
    category = Category.SIDE
    idea = (
        "A chain of low-rank self-attention modules reads the outputs of the frozen backbone's "
        "blocks. What the chain adds on its way is put on the frozen output before the norm."
    )
    deviations = (
        "no code is public: start, recipe and how the output is combined are our reading; A_o = 0 "
        "starts at the frozen model, and z_m is added to the bias-corrected output",
        "the tables' 0.66M is 12 modules with biases plus the mean VTAB head (bias=true: 618,048 + "
        "38,045) or 13 modules without; it cannot be decided, and the default is 12 without "
        "(608,256)",
    )
    needs = {
        Trait.ONE_RESOLUTION: (
            "its side stream keeps one width and one resolution through all blocks"
        ),
    }
    not_mergeable = "its modules attend to the frozen tokens, beside the backbone"

    rank: int = option(16, "r, width of query, key and value (from memory: 16)", minimum=1)
    gap: int = option(1, "g, blocks per group; one module chain reads each group", minimum=1)
    repeats: int = option(1, "T, attention modules per group (from memory: 1)", minimum=1)
    bias: bool = option(False, "biases on the four projections (the paper's count is ambiguous)")

    def check(self, backbone: Backbone) -> None:
        """As every method; and the groups must come out even."""
        super().check(backbone)
        depth = len(backbone.blocks)
        if depth % self.gap:
            valid = [gap for gap in range(1, depth + 1) if depth % gap == 0]
            raise UnsupportedBackboneError(
                f"method.gap={self.gap}: the backbone's {depth} blocks form no whole groups "
                f"(valid: {', '.join(map(str, valid))})"
            )

    def place(self, backbone: Backbone) -> None:
        """One chain around the trunk."""
        width, blocks = backbone.blocks[0].width, len(backbone.blocks)
        chain = AttentionChain(width, blocks, self.gap, self.repeats, self.rank, self.bias)
        backbone.place_around(chain)

    @property
    def lengths_known(self) -> frozenset[Length]:
        """Its chain goes on with the stream of the last block."""
        return frozenset({Length.STREAM})

    def parameter_count(self, backbone: Backbone) -> int:
        """4Dr + 2D (+ 3r + D with biases) per module: 608,256 for ViT-B/16 at r = 16."""
        width, r = backbone.blocks[0].width, self.rank
        module = 4 * width * r + 2 * width + (3 * r + width if self.bias else 0)
        return len(backbone.blocks) // self.gap * self.repeats * module

    def first_changed_block(self, backbone: Backbone) -> int:
        """None of them."""
        return len(backbone.blocks)

    def reads(self, backbone: Backbone) -> tuple[str, ...]:
        """The tokens before every group, and after the last."""
        return tuple(f"tokens.{i}" for i in range(0, len(backbone.blocks) + 1, self.gap))
