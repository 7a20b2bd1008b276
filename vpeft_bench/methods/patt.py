"""PATT: an adapter parallel to the attention's query, key and value projections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone, Block
from vpeft_bench.methods.base import Category, Method, option
from vpeft_bench.methods.registry import register

MODES = ("kv", "qv", "qk", "qkv")


class ParallelAttention(nn.Module):
    """[c_k; c_v] = W_b tanh(W_a x + b_a) + b_b; k <- k + s c_k, v <- v + s c_v.

    Args:
        width: D, channels of x and of each of q, k, v.
        mode: what the branch is added to, in this order.
        bias: both linears have one.
    """

    def __init__(self, width: int, bottleneck: int, mode: str, scale: float, bias: bool) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck, bias)
        self.up = nn.Linear(bottleneck, len(mode) * width, bias)
        self.mode = mode
        self.scale = scale

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Input ``(..., D)`` and output ``(..., 3D)`` of the qkv linear."""
        branch = self.scale * self.up(torch.tanh(self.down(x)))
        parts = dict(zip("qkv", y.chunk(3, dim=-1), strict=True))
        for part, added in zip(self.mode, branch.chunk(len(self.mode), dim=-1), strict=True):
            parts[part] = parts[part] + added
        return torch.cat([parts[part] for part in "qkv"], dim=-1)


@register
@dataclass
class Patt(Method):
    """softmax(q (k + s c_k)^T / sqrt(d)) (v + s c_v), [c_k; c_v] = W_b tanh(W_a x + b_a) + b_b.

    The attention branch alone; ``bapat`` adds the one beside the MLP.
    """

    name = "patt"
    title = "Towards a Unified View on Visual Parameter-Efficient Transfer Learning"
    arxiv = "2210.00788"
    source = "parallel attention of the authors' code (bruceyo/V-PETL), for images"
    category = Category.UNIFIED
    idea = (
        "A two-layer network with a tanh reads what the attention reads, and what it gives is "
        "added to the keys and values of every block. It is prefix tuning seen as an adapter "
        "parallel to the attention."
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "The authors' command sets a bottleneck of 128, scale 0.8 and keys and values (the default "
        "here); their code's own defaults are 64, 0.2 and a mode that does not exist.",
        "The authors' code takes no softmax with the mode qk, or with a mode that does not exist; "
        "here every mode has it.",
        "The up-projection starts as any linear of PyTorch does, as in the authors' code: the "
        "model does not start as the pretrained one.",
    )
    not_mergeable = "a tanh stands between its two projections"

    bottleneck: int = option(128, "m, width of the attention branch (authors: 128)", minimum=1)
    scale: float = option(0.8, "s of the attention branch (authors: 0.8)")
    mode: str = option("kv", "what the branch is added to (authors: kv)", choices=MODES)

    def place(self, backbone: Backbone) -> None:
        """One branch on the qkv linear of every block, with a bias where that has one."""
        for block in backbone.blocks:
            branch = ParallelAttention(
                block.width, self.bottleneck, self.mode, self.scale, _biased(block)
            )
            block.place("qkv", branch)

    def parameter_count(self, backbone: Backbone) -> int:
        """3Dm + m + 2D per block for keys and values: 4,647,424 for Swin-B at m = 128."""
        m, parts = self.bottleneck, len(self.mode)
        return sum(
            (1 + parts) * b.width * m + _biased(b) * (m + parts * b.width) for b in backbone.blocks
        )

    @property
    def identity_at_start(self) -> bool:
        """Its up-projection starts random."""
        return False


def _biased(block: Block) -> bool:
    return block.linear("qkv").bias is not None
