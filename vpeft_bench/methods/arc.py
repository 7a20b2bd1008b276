"""ARC: linear adapters whose projections are shared by all blocks and re-scaled by each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone
from vpeft_bench.methods.base import Category, MergeableModule, Method, add_in_float64, option
from vpeft_bench.methods.registry import register

LEAVES = {"attn_mlp": ("qkv", "fc1"), "attn": ("qkv",)}


class Projection(nn.Module):
    """P, from width to bottleneck; its transpose projects back."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.P = nn.Parameter(torch.empty(width, bottleneck))
        nn.init.xavier_uniform_(self.P)

    def forward(self) -> Tensor:
        """P ``(D, d')``."""
        return self.P


class Recomposed(MergeableModule):
    """x + dropout(x P diag(c)) P^T + b.

    Args:
        shared: the projection of all blocks.
        random: start c Xavier-uniform instead of at zero.
    """

    def __init__(self, shared: Projection, dropout: float, random: bool) -> None:
        super().__init__()
        width, bottleneck = shared.P.shape
        self.shared = shared
        self.c = nn.Parameter(torch.zeros(bottleneck))
        self.b = nn.Parameter(torch.zeros(width))
        self.dropout = nn.Dropout(dropout)
        if random:
            nn.init.xavier_uniform_(self.c.data.unsqueeze(0))

    def forward(self, x: Tensor) -> Tensor:
        """``(..., D)``."""
        P: Tensor = self.shared()
        hidden: Tensor = self.dropout(x @ (P * self.c))
        return x + hidden @ P.T + self.b

    def obstacle(self, leaf: nn.Module) -> str | None:
        """What b adds needs a bias to go into."""
        return None if getattr(leaf, "bias", None) is not None else "it has no bias"

    @torch.no_grad()
    def merge_into(self, leaf: nn.Module) -> None:
        """W <- W (I + P diag(c) P^T), bias <- bias + W b."""
        assert isinstance(leaf, nn.Linear)
        P, weight = self.shared().double(), leaf.weight.double()
        add_in_float64(leaf.bias, weight @ self.b.double())
        add_in_float64(leaf.weight, weight @ (P * self.c.double()) @ P.T)


@register
@dataclass
class ARC(Method):
    """attn(A(norm1(x))) and mlp(A'(norm2(x))) with A(x) = x + x P diag(c) P^T + b.

    P is one matrix for the attention of all blocks and one for all MLPs (in a Swin: of one width);
    c and b are each block's own.
    """

    name = "arc"
    title = "Efficient Adaptation of Large Vision Transformer via Adapter Re-Composing"
    arxiv = "2310.06234"
    source = "section 3; placement and defaults of the authors' ViT code (DavidYanAnDe/ARC)"
    category = Category.REPARAMETERISATION
    idea = (
        "A bottleneck without an activation, whose up-projection is its down-projection "
        "transposed, stands before the attention and the MLP; all blocks share it and only "
        "re-scale its hidden units. Being linear, it is folded into the next linear after "
        "training."
    )
    deviations = (
        "Of two versions of the authors' ViT code one starts all coefficients c at zero, the other "
        "those of the MLP Xavier-uniform, as its Swin code does. Default: zero, the pretrained "
        "model; init=xavier is the other start.",
        "The authors' Swin code puts the MLP's adapter on the residual stream before norm2, "
        "not after the norm as in the paper and the ViT code, and cannot be merged then. Default: "
        "after the norm; mlp_site=stream is the Swin code, which the published Swin rows used.",
    )

    bottleneck: int = option(50, "d', hidden units of the adapter (authors: 50)", minimum=1)
    dropout: float = option(
        0.1, "dropout on the hidden units (authors: 0.1)", minimum=0.0, maximum=1.0
    )
    placement: str = option(
        "attn_mlp", "before attention and MLP (authors), or attention", choices=LEAVES
    )
    mlp_site: str = option(
        "norm", "after norm2 (paper), or on the residual stream", choices=("norm", "stream")
    )
    init: str = option(
        "zero", "zero: c = 0; xavier: random c before the MLP", choices=("zero", "xavier")
    )

    @property
    def merge_refusal(self) -> str | None:
        """On the residual stream the adapter changes the shortcut, too."""
        if self.mlp_site == "stream" and "fc1" in LEAVES[self.placement]:
            return "with mlp_site=stream the shortcut beside the MLP passes through the adapter"
        return None

    def place(self, backbone: Backbone) -> None:
        """One adapter per block and leaf, around the projection of its width."""
        projections: dict[tuple[int, str], Projection] = {}
        for block in backbone.blocks:
            for leaf in LEAVES[self.placement]:
                key = (block.width, leaf)
                shared = projections.setdefault(key, Projection(block.width, self.bottleneck))
                random = self.init == "xavier" and leaf == "fc1"
                on_stream = self.mlp_site == "stream" and leaf == "fc1"
                site = "stream_mid" if on_stream else f"{leaf}.input"
                block.place(site, Recomposed(shared, self.dropout, random))

    def parameter_count(self, backbone: Backbone) -> int:
        """2Dd' + 2L(d' + D): 96,432 for ViT-B/16 at d' = 50; 48,216 before attention only."""
        widths = [block.width for block in backbone.blocks]
        shared = self.bottleneck * sum(set(widths))
        own = sum(self.bottleneck + width for width in widths)
        return len(LEAVES[self.placement]) * (shared + own)

    @property
    def identity_at_start(self) -> bool:
        """With c = 0."""
        return self.init == "zero" or self.placement == "attn"
