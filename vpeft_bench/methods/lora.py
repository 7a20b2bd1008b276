"""LoRA: a low-rank update beside a frozen linear."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone, Block
from vpeft_bench.methods.base import Category, MergeableModule, Method, add_in_float64, option
from vpeft_bench.methods.registry import register

PARTS_OF_QKV = ("q", "k", "v")


class LowRankUpdate(MergeableModule):
    """y + s * B_t A_t x on the output rows of each target t.

    Args:
        in_features: width of x.
        rows: for each target the half-open range of output features that it updates.
        out_features: width of y.
    """

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
        super().__init__()
        self.rows = dict(rows)
        self.out_features = out_features
        self.scale = scale
        self.dropout = nn.Dropout(dropout)
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
        columns = [
            nn.functional.pad(self.B[target], (0, 0, lo, self.out_features - hi))
            for target, (lo, hi) in self.rows.items()
        ]
        return torch.cat(columns, dim=1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x ``(..., in_features)``, y ``(..., out_features)``."""
        hidden = nn.functional.linear(self.dropout(x), self.down())
        return y + nn.functional.linear(hidden, self.scale * self.up())

    def merge_into(self, leaf: nn.Module) -> None:
        """W <- W + s B A."""
        assert isinstance(leaf, nn.Linear)
        add_in_float64(leaf.weight, self.scale * self.up().double() @ self.down().double())


@register
@dataclass
class LoRA(Method):
    """W x + (alpha / rank) B A x on the chosen linears.

    Deviations offered as options: ``init=vpb`` starts all four matrices from a truncated normal, as
    V-PETL Bench's constructor leaves them; the model then does not start as the pretrained one.
    """

    name = "lora"
    title = "LoRA: Low-Rank Adaptation of Large Language Models"
    arxiv = "2106.09685"
    source = "equation 3; query and value as in V-PETL Bench"
    category = Category.REPARAMETERISATION
    idea = (
        "Beside a frozen linear runs the product of two narrow matrices, the second of which "
        "starts at zero. The product can be added to the frozen weight after training."
    )
    deviations = (
        "V-PETL Bench's constructor resets every linear behind LoRA's own initialisation: all "
        "matrices start from a truncated normal (0.02), and training does not start at the "
        "pretrained model. The default is B = 0; init=vpb gives the other.",
        "V-PETL Bench's own initialisation, which that reset hides, zeroes A and B of the value "
        "branch, so that neither would ever learn; it is not offered.",
        "V-PETL Bench has no alpha, which is alpha=null (scale 1). NOAH's LoRA baseline is "
        "targets=[qkv] dropout=0.1.",
        "The published VTAB-1k row (0.29M) is rank=8; the FGVC row (0.77M) is rank=16 with the "
        "mean head, although the released FGVC script has rank 8.",
        "The published Swin rows (3.03M, 4.57M) are 0.05M short of rank=64 on q and v, which "
        "their code trains with alpha=1; the difference is unexplained.",
    )

    rank: int = option(8, "r, the rank of the update (V-PETL Bench: 8)", minimum=1)
    alpha: float | None = option(
        None, "scale is alpha / rank; null means alpha = rank, scale 1 (V-PETL Bench)", minimum=0.0
    )
    targets: list[str] = option(
        ["q", "v"],
        "linears to update; q, k, v have a pair A, B each, qkv shares one A",
        choices=("q", "k", "v", "qkv", "proj", "fc1", "fc2"),
    )
    dropout: float = option(0.0, "dropout on the input of A", minimum=0.0, maximum=1.0)
    init: str = option(
        "standard", "standard: B = 0; vpb: all truncated normal 0.02", choices=("standard", "vpb")
    )

    def place(self, backbone: Backbone) -> None:
        """One update per targeted linear of every block."""
        scale = 1.0 if self.alpha is None else self.alpha / self.rank
        for block in backbone.blocks:
            for site, rows in self._rows(block).items():
                linear = block.linear(site)
                update = LowRankUpdate(
                    linear.in_features,
                    linear.out_features,
                    rows,
                    self.rank,
                    scale,
                    self.dropout,
                    self.init,
                )
                block.place(site, update)

    def _rows(self, block: Block) -> dict[str, dict[str, tuple[int, int]]]:
        """For each linear that is targeted: target -> range of its output features."""
        sites: dict[str, dict[str, tuple[int, int]]] = {}
        for target in self.targets:
            site = "qkv" if target in PARTS_OF_QKV else target
            out_features = block.linear(site).out_features
            low, high = 0, out_features
            if target in PARTS_OF_QKV:
                part = out_features // 3
                low = PARTS_OF_QKV.index(target) * part
                high = low + part
            sites.setdefault(site, {})[target] = (low, high)
        return sites

    def parameter_count(self, backbone: Backbone) -> int:
        """rank * (in + out) per target: 4DrL for q and v; 294,912 for ViT-B/16 at rank 8."""
        return sum(
            self.rank * (block.linear(site).in_features + high - low)
            for block in backbone.blocks
            for site, rows in self._rows(block).items()
            for low, high in rows.values()
        )

    @property
    def identity_at_start(self) -> bool:
        """With B = 0."""
        return self.init == "standard"
