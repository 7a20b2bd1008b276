"""Convpass: convolutional bypasses beside attention and MLP."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone, Block
from vpeft_bench.methods.base import Category, Length, Method, option
from vpeft_bench.methods.parts.spatial import TokenGrid, require_grid
from vpeft_bench.methods.registry import register

SITES = {
    "attn_mlp": ("attn_parallel_normed", "mlp_parallel_normed"),
    "attn": ("attn_parallel_normed",),
}


class ConvBypass(nn.Module):
    """C(u) = s * (W_u dropout(phi(Conv3x3(phi(W_d u + b_d)))) + b_u), phi(z) = z sigmoid(1.702 z).

    A class or register token lies nowhere in the image: it is an image of its own, one pixel large,
    and sees the centre of the kernel only.
    """

    def __init__(
        self,
        width: int,
        bottleneck: int,
        grid: TokenGrid,
        scale: float,
        dropout: float,
        drop_path: float,
        conv_init: str,
    ) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.conv = nn.Conv2d(bottleneck, bottleneck, 3, padding=1)
        self.up = nn.Linear(bottleneck, width)
        self.dropout = nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path)
        self.grid = grid
        self.scale = scale
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.zeros_(self.up.weight)
        for layer in (self.down, self.conv, self.up):
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # all have a bias
        if conv_init == "identity":
            nn.init.dirac_(self.conv.weight)
        else:
            nn.init.xavier_uniform_(self.conv.weight)

    def forward(self, u: Tensor) -> Tensor:
        """Output of the norm, ``(B, N, D)`` or ``(B, H, W, D)``; the result is added beside."""
        prefix, image = self.grid.split(_quick_gelu(self.down(u)))
        prefix = nn.functional.linear(prefix, self.conv.weight[:, :, 1, 1], self.conv.bias)
        hidden = _quick_gelu(self.grid.join(prefix, self.conv(image)))
        branch: Tensor = self.drop_path(self.up(self.dropout(hidden)))
        return self.scale * branch


def _quick_gelu(z: Tensor) -> Tensor:
    return z * torch.sigmoid(1.702 * z)


@register
@dataclass
class Convpass(Method):
    """x <- x + drop_path(attn(u)) + C(u), u = norm1(x); likewise for the MLP and norm2.

    Both terms draw drop-path on their own. The authors tune ``scale`` per task in {0.01, 0.1, 1,
    10, 100}, and ``conv_init=xavier`` for 8 of the 19 tasks of VTAB-1k.
    """

    name = "convpass"
    title = "Convolutional Bypasses Are Better Vision Transformer Adapters"
    arxiv = "2207.07039"
    source = "order of operations and start of the authors' code"
    category = Category.ADDITION
    not_mergeable = "activations stand between its projections and its convolution"
    idea = (
        "A narrow 3x3 convolution between two projections runs beside attention and MLP, on the "
        "patch grid of the normed tokens. It brings the locality that a plain transformer lacks."
    )
    deviations = (
        "The authors' code fixes the 14 x 14 grid, width 768 and (with the identity start) a "
        "bottleneck of 8; here the grid is the backbone's own and any bottleneck works.",
        "The code applies dropout 0.1 to the hidden channels; it is kept.",
        "Register tokens, unknown to the authors, are treated as the class token is.",
        "The authors' trainer keeps the best test epoch (every 10th); that is no option here.",
    )

    bottleneck: int = option(
        8, "r, channels of the convolution (authors: 8)", minimum=1, search=(8, 16)
    )
    scale: float = option(
        1.0, "s (authors: per task, 0.01 to 100; 1 is ours)", search=(0.01, 0.1, 1.0, 10.0, 100.0)
    )
    placement: str = option(
        "attn_mlp", "attn_mlp: beside both; attn: Convpass-attn, beside attention", choices=SITES
    )
    dropout: float = option(0.1, "on the hidden channels (authors: 0.1)", minimum=0.0, maximum=1.0)
    conv_init: str = option(
        "identity",
        "start of the kernel: identity, or xavier (authors: per task)",
        choices=("identity", "xavier"),
    )

    def check(self, backbone: Backbone) -> None:
        """As every method; and the patches must form a grid."""
        super().check(backbone)
        require_grid(self.name, backbone)

    def place(self, backbone: Backbone) -> None:
        """One bypass per site of every block."""
        grid = TokenGrid.of(backbone)
        for block in backbone.blocks:
            for site in SITES[self.placement]:
                block.place(site, self._bypass(block, grid))

    def _bypass(self, block: Block, grid: TokenGrid) -> ConvBypass:
        return ConvBypass(
            block.width,
            self.bottleneck,
            grid,
            self.scale,
            self.dropout,
            block.drop_path,
            self.conv_init,
        )

    @property
    def lengths_known(self) -> frozenset[Length]:
        """It convolves over the tokens of the picture."""
        return frozenset({Length.BLOCK})

    def parameter_count(self, backbone: Backbone) -> int:
        """2Dr + r + D + 9r^2 + r per bypass: 327,552 for ViT-B/16 at r = 8, two per block."""
        r = self.bottleneck
        sizes = [2 * b.width * r + r + b.width + 9 * r * r + r for b in backbone.blocks]
        return len(SITES[self.placement]) * sum(sizes)
