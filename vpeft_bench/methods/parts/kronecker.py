"""Sums of Kronecker products, for methods that share a small rule over the whole network."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone
from vpeft_bench.errors import UnsupportedBackboneError


def kronecker_sum(a: Tensor, b: Tensor) -> Tensor:
    """sum_i A_i (x) B_i: ``(n, p, q)`` and ``(n, r, s)`` to ``(p * r, q * s)``."""
    return torch.einsum("npq,nrs->prqs", a, b).flatten(2).flatten(0, 1)


class LowRankBlocks(nn.Module):
    """B_i = u_i w_i for i = 1..n, each ``(rows, columns)`` and of rank k.

    Every factor starts Glorot-uniform with gain sqrt(2), as in the reference codes of both methods.

    Args:
        zero: all w_i start as zero, and with them every B_i.
    """

    def __init__(self, terms: int, rows: int, columns: int, rank: int, zero: bool) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.empty(terms, rows, rank))
        self.right = nn.Parameter(torch.zeros(terms, rank, columns))
        for factors in (self.left,) if zero else (self.left, self.right):
            for factor in factors.detach():
                nn.init.xavier_uniform_(factor, gain=sqrt(2))

    def forward(self) -> Tensor:
        """All B_i, ``(n, rows, columns)``."""
        return self.left @ self.right


def require_divisible(method: str, backbone: Backbone, terms: int) -> None:
    """Refuse a backbone whose widths are no multiples of n, for :meth:`Method.check`.

    Raises:
        UnsupportedBackboneError: names the width and the largest n that would do.
    """
    for block in backbone.blocks:
        if block.width % terms:
            fits = max(n for n in range(1, terms) if all(b.width % n == 0 for b in backbone.blocks))
            raise UnsupportedBackboneError(
                f"method.terms={terms}: {method} cuts every width into as many equal parts, and "
                f"{block.path} is {block.width} wide (method.terms={fits} fits every block)"
            )
