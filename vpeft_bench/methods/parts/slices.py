"""All weights as one stack of D x D slices, updated through shared factors: FacT and PETAL.

In a block of width D, qkv is three slices on top of each other (q, k, v), proj is one, fc1 four on
top of each other and fc2 four beside each other: twelve in all. With a hidden width that is no
multiple of D the last slice is used in part.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import LINEARS, Backbone, Block
from vpeft_bench.methods.base import MergeableModule, Method, add_in_float64, option


@dataclass(frozen=True)
class SlicedLinear:
    """A linear of a block, seen as ``rows`` times ``columns`` slices of D x D."""

    block: Block
    site: str
    rows: int
    columns: int

    @property
    def slices(self) -> int:
        """How many there are."""
        return self.rows * self.columns


def sliced_linears(backbone: Backbone) -> dict[int, list[SlicedLinear]]:
    """The linears of all blocks in order, by width; a ViT has one width, a Swin one per stage."""
    by_width: dict[int, list[SlicedLinear]] = {}
    for block in backbone.blocks:
        for site in LINEARS:
            linear, width = block.linear(site), block.width
            rows, columns = -(-linear.out_features // width), -(-linear.in_features // width)
            by_width.setdefault(width, []).append(SlicedLinear(block, site, rows, columns))
    return by_width


class Projections(nn.Module):
    """U, from width to rank, and V, from rank to width; V starts at zero."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.U = nn.Parameter(torch.empty(rank, width))
        self.V = nn.Parameter(torch.zeros(width, rank))
        nn.init.kaiming_uniform_(self.U, a=5**0.5)

    def forward(self) -> tuple[Tensor, Tensor]:
        """U ``(r, D)`` and V ``(D, r)``."""
        return self.U, self.V


class SliceUpdate(MergeableModule):
    """y + s V dropout(S U x) for every slice of a linear, S being that slice's core.

    Args:
        shared: U and V.
        core: called without arguments, gives the cores of all slices as one matrix, arranged as the
            slices are: ``(rows * r, columns * r)``.
    """

    adds = True

    def __init__(
        self,
        shared: Projections,
        core: nn.Module,
        linear: SlicedLinear,
        scale: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.shared = shared
        self.core = core
        self.dropout = nn.Dropout(dropout)
        self.rows, self.columns = linear.rows, linear.columns
        self.scale = scale

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x ``(..., columns * D)``, y ``(..., rows * D)``."""
        U, V = self.shared()
        if missing := self.columns * U.shape[1] - x.shape[-1]:
            x = nn.functional.pad(x, (0, missing))
        code = nn.functional.linear(x.unflatten(-1, (self.columns, -1)), U).flatten(-2)
        code = self.dropout(nn.functional.linear(code, self.core()))
        code = code.unflatten(-1, (self.rows, -1))
        update = nn.functional.linear(code, self.scale * V).flatten(-2)
        return y + update[..., : y.shape[-1]]

    def merge_into(self, leaf: nn.Module) -> None:
        """Every slice: W <- W + s V S U."""
        assert isinstance(leaf, nn.Linear)
        U, V = (factor.double() for factor in self.shared())
        core = self.core().double().unflatten(1, (self.columns, -1)).unflatten(0, (self.rows, -1))
        update = torch.einsum("da,iajb,be->idje", V, core, U).flatten(2).flatten(0, 1)
        add_in_float64(leaf.weight, self.scale * update[: leaf.out_features, : leaf.in_features])


@dataclass
class SliceMethod(Method):
    """What FacT and PETAL share: one U and V per width, and a core for every slice."""

    rank: int = option(16, "r, the size of the cores", minimum=1)
    scale: float = option(
        1.0,
        "s; the authors choose 0.01, 0.1, 1, 10 or 100 per task, 1 is the middle",
        search=(0.01, 0.1, 1.0, 10.0, 100.0),
    )
    dropout: float = option(
        0.1, "dropout between core and V (authors' code: 0.1)", minimum=0.0, maximum=1.0
    )

    def cores(self, linears: list[SlicedLinear]) -> list[nn.Module]:
        """A core (see :class:`SliceUpdate`) for each of the linears of one width."""
        raise NotImplementedError

    def core_count(self, slices: int) -> int:
        """Parameters of the cores of ``slices`` slices."""
        raise NotImplementedError

    def place(self, backbone: Backbone) -> None:
        """One update per linear of every block."""
        for width, linears in sliced_linears(backbone).items():
            shared = Projections(width, self.rank)
            for linear, core in zip(linears, self.cores(linears), strict=True):
                update = SliceUpdate(shared, core, linear, self.scale, self.dropout)
                linear.block.place(linear.site, update)

    def parameter_count(self, backbone: Backbone) -> int:
        """2Dr for U and V, and the cores of the 12L slices; summed over the widths of a Swin."""
        return sum(
            2 * width * self.rank + self.core_count(sum(linear.slices for linear in linears))
            for width, linears in sliced_linears(backbone).items()
        )
