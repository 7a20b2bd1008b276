"""Projections put together from several low-rank branches, and the bottleneck made of two."""

from __future__ import annotations

from functools import reduce
from operator import add

import torch
from torch import Tensor, nn


class MultiBranchLinear(nn.Module):
    """A linear whose weight is W^T = sum_i P_i K_i Q_i.

    Args:
        in_features, out_features: widths of input and output.
        branches: how many terms the sum has.
        kernel_dim: size of the square kernels K_i.
        kernels: K_1, K_2, ... of another projection, to share them; None for kernels of its own.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        branches: int,
        kernel_dim: int,
        kernels: nn.ParameterList | None = None,
    ) -> None:
        super().__init__()
        self.P = _factors(branches, in_features, kernel_dim)
        self.K = _factors(branches, kernel_dim, kernel_dim) if kernels is None else kernels
        self.Q = _factors(branches, kernel_dim, out_features)
        bound = in_features**-0.5
        self.bias = nn.Parameter(torch.empty(out_features).uniform_(-bound, bound))

    def weight(self) -> Tensor:
        """W, ``(out_features, in_features)``."""
        terms = [p @ k @ q for p, k, q in zip(self.P, self.K, self.Q, strict=True)]
        total: Tensor = reduce(add, terms)
        return total.T

    def forward(self, x: Tensor) -> Tensor:
        """x ``(..., in_features)`` to ``(..., out_features)``."""
        return nn.functional.linear(x, self.weight(), self.bias)


class MultiBranchBottleneck(nn.Module):
    """A(z) = U(GELU(Dn(z))), both projections a :class:`MultiBranchLinear`.

    Args:
        width, hidden: of the stream, and between the projections.
        branches, kernel_dim: of both projections.
        share_kernel: the projections have one set of kernels between them.
    """

    def __init__(
        self, width: int, hidden: int, branches: int, kernel_dim: int, share_kernel: bool
    ) -> None:
        super().__init__()
        self.down = MultiBranchLinear(width, hidden, branches, kernel_dim)
        kernels = self.down.K if share_kernel else None
        self.up = MultiBranchLinear(hidden, width, branches, kernel_dim, kernels)

    def forward(self, z: Tensor) -> Tensor:
        """z ``(..., D)`` to what is added to it."""
        branch: Tensor = self.up(nn.functional.gelu(self.down(z)))
        return branch


def bottleneck_count(
    width: int, hidden: int, branches: int, kernel_dim: int, share_kernel: bool
) -> int:
    """Of a :class:`MultiBranchBottleneck`: (2ab + 1)(D + h) and ab^2 per set of kernels."""
    kernels = (1 if share_kernel else 2) * branches * kernel_dim**2
    return (2 * branches * kernel_dim + 1) * (width + hidden) + kernels


def _factors(branches: int, rows: int, columns: int) -> nn.ParameterList:
    """One matrix per branch, Kaiming-uniform."""
    factors = nn.ParameterList(torch.empty(rows, columns) for _ in range(branches))
    for factor in factors:
        nn.init.kaiming_uniform_(factor, a=5**0.5)
    return factors
