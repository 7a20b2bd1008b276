"""LoRA: a low-rank update beside a frozen linear; rsLoRA's scale and DoRA's magnitude."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt

from torch import nn

from vpeft_bench.backbones.block_map import Backbone, Block
from vpeft_bench.errors import Problem
from vpeft_bench.methods.base import Category, Method, option
from vpeft_bench.methods.parts.low_rank import DecomposedUpdate, LowRankUpdate
from vpeft_bench.methods.registry import register

PARTS_OF_QKV = ("q", "k", "v")


@register
@dataclass
class LoRA(Method):
    """W x + s B A x on the chosen linears, with s = alpha / rank.

    ``rslora`` makes it s = alpha / sqrt(rank) (arXiv 2312.03732). ``dora`` learns a magnitude m for
    every updated row beside its direction (arXiv 2402.09353): the weight in use is
    m (W + s B A) / ||W + s B A||, row by row.
    """

    name = "lora"
    title = "LoRA: Low-Rank Adaptation of Large Language Models"
    arxiv = "2106.09685"
    source = "equation 3; query and value as in V-PETL Bench; rsLoRA 2312.03732, DoRA 2402.09353"
    category = Category.REPARAMETERISATION
    idea = (
        "A product of two thin matrices is added to a frozen weight, one projecting the input down "
        "to a small rank and one projecting it up again. The second starts at zero, and after "
        "training the product is added to the weight, so that inference costs nothing more."
    )
    deviations = (
        "V-PETL Bench's modules would start B_q random and both A_v and B_v at zero, and its model "
        "constructor then overwrites all four with a truncated normal of 0.02, so that training "
        "does not start at the pretrained model. Default: A Kaiming-uniform, B zero; init=vpb "
        "gives the constructor's start, which the published VTAB and FGVC rows used.",
        "The published VTAB row counts rank 8 without the head (0.29M), the FGVC row rank 16 with "
        "the head (0.77M), although its script asks for rank 8.",
        "The published Swin rows use rank=64 alpha=1; 3.03M and 4.57M are printed for what are "
        "3,080,192 and 4,620,288 parameters.",
        "DoRA's paper writes one magnitude per column of a d x k weight, its authors' code has one "
        "per output row; here it is per output row.",
    )

    rank: int = option(
        8, "r, the rank of the update (V-PETL Bench: 8)", minimum=1, search=(1, 8, 16, 32)
    )
    alpha: float | None = option(
        None, "scale is alpha / rank; null means alpha = rank, scale 1 (V-PETL Bench)", minimum=0.0
    )
    targets: list[str] = option(
        ["q", "v"],
        "linears to update; q, k, v have a pair A, B each, qkv shares one A",
        choices=(*PARTS_OF_QKV, "qkv", "proj", "fc1", "fc2"),
    )
    dropout: float = option(0.0, "dropout on the input of A", minimum=0.0, maximum=1.0)
    init: str = option(
        "standard", "standard: B = 0; vpb: all truncated normal 0.02", choices=("standard", "vpb")
    )
    rslora: bool = option(False, "scale is alpha / sqrt(rank) (rsLoRA); needs alpha (LoRA: off)")
    dora: bool = option(False, "learn the rows' magnitudes as well (DoRA) (LoRA: off)")

    def conflicts(self) -> Iterator[Problem]:
        """What rsLoRA and DoRA leave no meaning for."""
        if self.rslora and self.alpha is None:
            yield Problem(
                "method.rslora=true",
                "without alpha the scale is 1, whatever the rank",
                f"method.alpha={self.rank}",
            )
        if not self.dora:
            return
        if self.dropout:
            yield Problem(
                f"method.dropout={self.dropout:g}",
                "DoRA updates the weight, which has no input to drop",
                "method.dropout=0",
            )
        if self.init != "standard":
            yield Problem(
                f"method.init={self.init}",
                "DoRA starts at the pretrained weight, with B = 0",
                "method.init=standard",
            )
        if "qkv" in self.targets and set(PARTS_OF_QKV) & set(self.targets):
            yield Problem(
                f"method.targets={self.targets}",
                "under DoRA a row has one magnitude, and qkv has the rows of q, k and v",
                "method.targets=[qkv] or method.targets=[q,k,v]",
            )

    def place(self, backbone: Backbone) -> None:
        """One update per targeted linear of every block."""
        for block in backbone.blocks:
            for site, rows in self._rows(block).items():
                linear = block.linear(site)
                if self.dora:
                    decomposed = DecomposedUpdate(linear.weight, rows, self.rank, self.scale)
                    block.place(f"{site}.weight", decomposed)
                else:
                    block.place(site, self._update(linear, rows))

    @property
    def scale(self) -> float:
        """s, the factor of B A."""
        if self.alpha is None:
            return 1.0
        return self.alpha / (sqrt(self.rank) if self.rslora else self.rank)

    def _update(self, linear: nn.Linear, rows: dict[str, tuple[int, int]]) -> LowRankUpdate:
        sizes = (linear.in_features, linear.out_features)
        return LowRankUpdate(*sizes, rows, self.rank, self.scale, self.dropout, self.init)

    def _rows(self, block: Block) -> dict[str, dict[str, tuple[int, int]]]:
        """For each linear that is targeted: target -> range of its output features."""
        sites: dict[str, dict[str, tuple[int, int]]] = {}
        for target in self.targets:
            site = "qkv" if target in PARTS_OF_QKV else target
            low, high = 0, block.linear(site).out_features
            if target in PARTS_OF_QKV:
                part = high // 3
                low = PARTS_OF_QKV.index(target) * part
                high = low + part
            sites.setdefault(site, {})[target] = (low, high)
        return sites

    def parameter_count(self, backbone: Backbone) -> int:
        """rank * (in + out) per target: 4DrL for q and v; DoRA adds a magnitude per output row."""
        return sum(
            self.rank * (block.linear(site).in_features + high - low) + self.dora * (high - low)
            for block in backbone.blocks
            for site, rows in self._rows(block).items()
            for low, high in rows.values()
        )

    @property
    def identity_at_start(self) -> bool:
        """With B = 0."""
        return self.init == "standard"
