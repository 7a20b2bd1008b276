"""Cores of the slices of all weights, combined from shared tensors: Tucker and CP format."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vpeft_bench.methods.parts.slices import SlicedLinear


class SharedCores(nn.Module):
    """Cores of all slices of one width, each a combination that the slice's column of P weighs.

    Args:
        slices: columns of P.
        full: S_j = sum_c C[:, :, c] P[c, j] with C of r x r x r (Tucker), transposed since C is
            written for row vectors; otherwise S_j = diag(lambda * P[:, j]) (CP).
    """

    def __init__(self, rank: int, slices: int, full: bool) -> None:
        super().__init__()
        self.P = nn.Parameter(torch.empty(rank, slices))
        self.C = nn.Parameter(torch.empty(rank, rank, rank) if full else torch.ones(rank))
        nn.init.xavier_uniform_(self.P)
        if full:
            nn.init.xavier_uniform_(self.C)

    def forward(self, first: int, count: int) -> Tensor:
        """The cores of ``count`` slices from ``first`` on, ``(count, r, r)``."""
        P = self.P[:, first : first + count]
        if self.C.ndim == 1:
            return torch.diag_embed(self.C * P.T)
        return torch.einsum("abc,cj->jba", self.C, P)


class SharedCore(nn.Module):
    """The cores of one linear, taken from :class:`SharedCores`.

    Args:
        first: column of P of its first slice.
        interleaved: the MLP's slices alternate within the code instead of following each other, as
            a reshape without a permutation leaves them in the reference code.
    """

    def __init__(
        self, shared: SharedCores, linear: SlicedLinear, first: int, interleaved: bool
    ) -> None:
        super().__init__()
        self.shared = shared
        self.first = first
        self.rows, self.columns = linear.rows, linear.columns
        self.interleaved = interleaved and linear.site in ("fc1", "fc2")

    def forward(self) -> Tensor:
        """``(rows * r, columns * r)``."""
        cores: Tensor = self.shared(self.first, self.rows * self.columns)
        if self.interleaved:
            if self.columns == 1:
                return cores.transpose(0, 1).flatten(0, 1)
            return cores.permute(2, 1, 0).flatten(1)
        cores = cores.unflatten(0, (self.rows, self.columns))
        return cores.transpose(1, 2).flatten(2).flatten(0, 1)


def shared_cores(
    linears: list[SlicedLinear], cores: SharedCores, interleaved: bool
) -> list[nn.Module]:
    """Each linear's part of ``cores``, in the order of the linears."""
    parts: list[nn.Module] = []
    first = 0
    for linear in linears:
        parts.append(SharedCore(cores, linear, first, interleaved))
        first += linear.slices
    return parts
