"""PETAL's mode approximation: a CP decomposition of the update of all weights."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from vpeft_bench.methods.base import Category, option
from vpeft_bench.methods.parts.slice_cores import SharedCores, shared_cores
from vpeft_bench.methods.parts.slices import SlicedLinear, SliceMethod
from vpeft_bench.methods.registry import register


@register
@dataclass
class CP(SliceMethod):
    """W_j <- W_j + s sum_r lambda_r P[r, j] v_r u_r^T for each D x D slice j.

    ``core=full`` is what the authors' code trains: Tucker format, with a core of R x R x R.
    """

    name = "cp"
    title = "Parameter-efficient Tuning of Large-scale Multimodal Foundation Model (Aurora, PETAL)"
    arxiv = "2305.08381"
    source = "mode approximation (section 3); slices as in FacT, on one vision tower"
    category = Category.REPARAMETERISATION
    idea = (
        "The weights of all blocks are stacked into one tensor of D x D slices, whose update is a "
        "sum of a few rank-one tensors: two vectors shared by every slice, and a weight for each "
        "slice. One of the vectors starts at zero, and after training the update is added to the "
        "weights."
    )
    deviations = (
        "The paper's formula is a CP decomposition (107,584 parameters at R = 64); the authors' "
        "code puts a full R x R x R core in the place of lambda (369,664), that is FacT's Tucker "
        "format with its mixed MLP slices. Default: core=diag, the formula; core=full is the code, "
        "whose results are the published ones.",
        "The start of lambda is not in the code; ones here.",
        "The published model adapts a vision and a text tower and adds modules between them; here "
        "is its adaptation of one vision tower.",
    )

    rank: int = option(64, "R, the number of modes (authors: 64)", minimum=1)
    scale: float = option(1.0, "s (authors' code: 1)")
    core: str = option("diag", "diag: the paper; full: the code", choices=("diag", "full"))

    def cores(self, linears: list[SlicedLinear]) -> list[nn.Module]:
        """diag(lambda * P[:, j]) of every slice, or a combination of the slabs of a full core."""
        full = self.core == "full"
        shared = SharedCores(self.rank, sum(linear.slices for linear in linears), full)
        parts = shared_cores(linears, shared, interleaved=full)
        if full:
            _start_by_block(shared, linears)
        return parts

    def core_count(self, slices: int) -> int:
        """R per slice and R, or R^3: (2D + 144 + 1)R in all for ViT-B/16, 107,584 at R = 64."""
        return slices * self.rank + (self.rank if self.core == "diag" else self.rank**3)


def _start_by_block(shared: SharedCores, linears: list[SlicedLinear]) -> None:
    """Xavier-uniform for a block's attention and MLP each: the code keeps P in such pieces."""
    sizes: dict[tuple[int, bool], int] = {}
    for linear in linears:
        piece = (linear.block.index, linear.site in ("fc1", "fc2"))
        sizes[piece] = sizes.get(piece, 0) + linear.slices
    for columns in shared.P.data.split(list(sizes.values()), dim=1):
        nn.init.xavier_uniform_(columns)
