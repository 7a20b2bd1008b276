"""Structured tuning of some output rows of a linear: SPT's two forms."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

from vpeft_bench.methods.base import bottleneck_linears
from vpeft_bench.methods.parts.low_rank import LowRankUpdate

Rows = Mapping[str, tuple[int, int]]

SIZES = {
    "lora": lambda rank, inputs, outputs: rank * (inputs + outputs),
    "adapter": lambda rank, inputs, outputs: 2 * rank * outputs + rank + outputs,
}
"""Parameters of each form, for one matrix with so many input and output features."""


class SeriesAdapters(nn.Module):
    """y_t + drop_path(W_up GELU(W_down dropout(y_t))) on the output rows of each target t.

    Args:
        reads_input: the linear's input x, as wide as its output, takes the place of y_t in the
            second term.
    """

    def __init__(
        self, rows: Rows, rank: int, dropout: float, drop_path: float, reads_input: bool
    ) -> None:
        super().__init__()
        self.rows = dict(rows)
        self.reads_input = reads_input
        pairs = {t: bottleneck_linears(hi - lo, rank, "standard") for t, (lo, hi) in rows.items()}
        self.down = nn.ModuleDict({target: down for target, (down, _) in pairs.items()})
        self.up = nn.ModuleDict({target: up for target, (_, up) in pairs.items()})
        self.dropout = nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Input x ``(..., in_features)`` and output y ``(..., out_features)`` of the linear."""
        added = []
        for target, (low, high) in self.rows.items():
            read = x if self.reads_input else y[..., low:high]
            hidden = nn.functional.gelu(self.down[target](self.dropout(read)))
            branch = self.drop_path(self.up[target](hidden))
            added.append(nn.functional.pad(branch, (low, y.shape[-1] - high)))
        return y + torch.stack(added).sum(0)


def structured_module(
    form: str,
    leaf: nn.Linear,
    rows: Rows,
    rank: int,
    dropout: float,
    drop_path: float,
    reads_input: bool,
) -> nn.Module:
    """What is placed on ``leaf``: a low-rank update beside it (``lora``) or adapters behind it.

    Args:
        reads_input: an adapter reads the input of ``leaf``, not its output.
    """
    if form == "adapter":
        return SeriesAdapters(rows, rank, dropout, drop_path, reads_input)
    update = LowRankUpdate(leaf.in_features, leaf.out_features, rows, rank, 1.0, 0.0, "standard")
    # What a whole picture loses in x, it loses in B A x.
    update.dropout = nn.Sequential(nn.Dropout(dropout), DropPath(drop_path))
    return update
