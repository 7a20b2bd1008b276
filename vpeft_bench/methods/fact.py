"""FacT: one factorised tensor updates the weights of all blocks; tensor-train or Tucker format."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vpeft_bench.methods.base import Category, option
from vpeft_bench.methods.parts.slice_cores import SharedCores, shared_cores
from vpeft_bench.methods.parts.slices import SlicedLinear, SliceMethod
from vpeft_bench.methods.registry import register

IDEA = (
    "All weights of all blocks are stacked into one tensor of D x D slices, and its update is "
    "factorised: two factors shared by every slice project to a small rank and back, {core} "
    "stands between them. The factor that projects back starts at zero, and after training the "
    "update is added to the weights."
)


class OwnCore(nn.Module):
    """Cores that belong to one linear alone: one each for q, k and v, one for any other."""

    def __init__(self, linear: SlicedLinear, rank: int) -> None:
        super().__init__()
        self.names = ("q", "k", "v") if linear.site == "qkv" else (linear.site,)
        rows, columns = linear.rows // len(self.names) * rank, linear.columns * rank
        self.sigma = nn.ParameterDict({name: torch.empty(rows, columns) for name in self.names})
        for sigma in self.sigma.values():
            nn.init.kaiming_uniform_(sigma, a=5**0.5)

    def forward(self) -> Tensor:
        """``(rows * r, columns * r)``."""
        return torch.cat([self.sigma[name] for name in self.names])


@dataclass
class FacT(SliceMethod):
    """What both formats share."""

    title = "FacT: Factor-Tuning for Lightweight Adaptation on Vision Transformer"
    arxiv = "2212.03145"
    category = Category.REPARAMETERISATION


@register
@dataclass
class FacTTT(FacT):
    """W_j <- W_j + s V Sigma_j U for each D x D slice j, with U and V shared (tensor-train).

    In a Swin the blocks of one width share U and V.
    """

    name = "fact_tt"
    source = "section 3.3, tensor-train format; the authors' code"
    idea = IDEA.format(core="and a small matrix of each slice's own")
    deviations = (
        "Rank (4, 8 or 16) and scale are chosen per task in the published VTAB rows; the defaults "
        "here are one choice for all.",
        "The published parameter number (0.07M) is that of the Tucker format.",
    )

    rank: int = option(16, "r (authors: 4, 8 or 16 per task)", minimum=1, search=(4, 8, 16, 32))

    def cores(self, linears: list[SlicedLinear]) -> list[nn.Module]:
        """Sigma_q, Sigma_k, Sigma_v, Sigma_o, Sigma_1 and Sigma_2 of every block."""
        return [OwnCore(linear, self.rank) for linear in linears]

    def core_count(self, slices: int) -> int:
        """r^2 per slice: 2Dr + 144 r^2 in all for ViT-B/16, 61,440 at rank 16."""
        return slices * self.rank**2


@register
@dataclass
class FacTTK(FacT):
    """As ``fact_tt`` with Sigma_j = sum_c C[:, :, c] P[c, j], C shared as well (Tucker).

    ``slice_order=petl_vit`` is the authors' code, for its checkpoints.
    """

    name = "fact_tk"
    source = "section 3.3, Tucker format; the authors' code"
    idea = IDEA.format(core="and a combination of small matrices, which are shared as well,")
    deviations = (
        "The authors' code reshapes the cores of the four fc1 (and fc2) slices without permuting "
        "them first: the slices mix their codes, and fc2 uses the cores transposed. Default: each "
        "slice has its own core, as in the equations; slice_order=petl_vit gives the code's order, "
        "in which the published rows were trained. Both have the same capacity.",
        "Rank (16 or 32) and scale are chosen per task in the published VTAB rows; their 0.07M is "
        "the mean over the tasks.",
    )

    rank: int = option(32, "r (authors: 16 or 32 per task)", minimum=1, search=(16, 32, 64))
    slice_order: str = option(
        "paper", "paper: a core per slice; petl_vit: see above", choices=("paper", "petl_vit")
    )

    def cores(self, linears: list[SlicedLinear]) -> list[nn.Module]:
        """Combinations of one core tensor, with a column of P per slice."""
        slices = sum(linear.slices for linear in linears)
        shared = SharedCores(self.rank, slices, full=True)
        return shared_cores(linears, shared, interleaved=self.slice_order == "petl_vit")

    def core_count(self, slices: int) -> int:
        """r per slice and r^3: 2Dr + 144r + r^3 in all for ViT-B/16, 86,528 at rank 32."""
        return slices * self.rank + self.rank**3
