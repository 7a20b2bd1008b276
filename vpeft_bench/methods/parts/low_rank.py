"""Low-rank updates of a linear: LoRA beside it, DoRA on its weight."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vpeft_bench.methods.base import MergeableModule, WeightUpdate, add_in_float64


class LowRank(MergeableModule):
    """A_t and B_t for each target t, a range of output rows of a linear.

    Args:
        in_features, out_features: width of the linear's input and output.
        rows: for each target the half-open range of output features that it updates.
        init: ``standard`` (A Kaiming-uniform, B zero) or ``vpb`` (both truncated normal 0.02).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rows: Mapping[str, tuple[int, int]],
        rank: int,
        scale: float,
        init: str = "standard",
    ) -> None:
        super().__init__()
        self.rows = dict(rows)
        self.out_features = out_features
        self.scale = scale
        self.A = nn.ParameterDict({t: torch.empty(rank, in_features) for t in rows})
        self.B = nn.ParameterDict({t: torch.zeros(hi - lo, rank) for t, (lo, hi) in rows.items()})
        for target in rows:
            if init == "vpb":
                nn.init.trunc_normal_(self.A[target], std=0.02)
                nn.init.trunc_normal_(self.B[target], std=0.02)
            else:
                nn.init.kaiming_uniform_(self.A[target], a=5**0.5)

    def down(self) -> Tensor:
        """All A_t stacked: ``(T * rank, in_features)``."""
        return torch.cat([self.A[target] for target in self.rows])

    def up(self) -> Tensor:
        """All B_t as one matrix ``(out_features, T * rank)``, zero outside each target's rows.

        One product then updates every target, whatever rows they take.
        """
        return torch.cat([self.in_rows(target, self.B[target]) for target in self.rows], dim=1)

    def in_rows(self, target: str, values: Tensor) -> Tensor:
        """``values`` of a target's rows, zero in all other output rows."""
        low, high = self.rows[target]
        shape = (0,) * 2 * (values.ndim - 1)
        return nn.functional.pad(values, (*shape, low, self.out_features - high))


class LowRankUpdate(LowRank):
    """y + s * B_t A_t dropout(x) on the output rows of each target t."""

    adds = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rows: Mapping[str, tuple[int, int]],
        rank: int,
        scale: float,
        dropout: float,
        init: str,
    ) -> None:
        super().__init__(in_features, out_features, rows, rank, scale, init)
        self.dropout: nn.Module = nn.Dropout(dropout)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x ``(..., in_features)``, y ``(..., out_features)``."""
        hidden = nn.functional.linear(self.dropout(x), self.down())
        # One product that adds to y: the update is never written by itself.
        up = (self.scale * self.up()).T
        return torch.addmm(y.flatten(0, -2), hidden.flatten(0, -2), up).view_as(y)

    def merge_into(self, leaf: nn.Module) -> None:
        """W <- W + s B A."""
        assert isinstance(leaf, nn.Linear)
        add_in_float64(leaf.weight, self.scale * self.up().double() @ self.down().double())


class DecomposedUpdate(LowRank, WeightUpdate):
    """m * (W + s B A) / ||W + s B A|| on the rows of each target; the norm is that of a row.

    The magnitude m starts as the norm of the pretrained rows, so that with B = 0 every row is
    divided by exactly what it is multiplied with. No gradient passes through the norm.

    Args:
        weight: the pretrained weight, ``(out_features, in_features)``.
    """

    untouched: Tensor

    def __init__(
        self, weight: Tensor, rows: Mapping[str, tuple[int, int]], rank: int, scale: float
    ) -> None:
        super().__init__(weight.shape[1], weight.shape[0], rows, rank, scale)
        norms = _row_norms(weight.detach())
        self.magnitude = nn.ParameterDict({t: norms[lo:hi].clone() for t, (lo, hi) in rows.items()})
        touched = sum(self.in_rows(t, torch.ones(hi - lo)) for t, (lo, hi) in rows.items())
        self.register_buffer("untouched", 1 - torch.as_tensor(touched), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight ``(out_features, in_features)`` that the linear uses."""
        direction = weight + self.scale * self.up().to(weight) @ self.down().to(weight)
        norms = _row_norms(direction.detach())
        factor = self.untouched
        for target, (low, high) in self.rows.items():
            factor = factor + self.in_rows(target, self.magnitude[target] / norms[low:high])
        return factor.unsqueeze(1) * direction


def _row_norms(weight: Tensor) -> Tensor:
    """Norm of each row; a row of zeros counts as tiny, so that it can be divided by."""
    norms: Tensor = torch.linalg.vector_norm(weight, dim=1)
    return norms.clamp_min(torch.finfo(weight.dtype).tiny)
