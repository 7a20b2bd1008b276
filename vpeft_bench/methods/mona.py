"""Mona: a bottleneck with depthwise convolutions of three sizes, on the stream itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone, Block
from vpeft_bench.methods.base import Category, Length, Method, option
from vpeft_bench.methods.parts.spatial import TokenGrid, require_grid
from vpeft_bench.methods.registry import register

KERNELS = (3, 5, 7)
SITES = ("stream_mid", "stream_out")


class MultiCognitive(nn.Module):
    """x + W_2 dropout(GELU(M(W_1 (g * LN(x) + g_x * x) + b_1))) + b_2 on the map of tokens.

    M(h) = h' + C(h') with h' = h + the mean of three depthwise convolutions of h; C is 1 x 1.
    """

    def __init__(self, width: int, bottleneck: int, dropout: float, grid: TokenGrid) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.norm_scale = nn.Parameter(torch.full((width,), 1e-6))
        self.stream_scale = nn.Parameter(torch.ones(width))
        self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        self.depthwise = nn.ModuleList(
            nn.Conv2d(bottleneck, bottleneck, kernel, padding=kernel // 2, groups=bottleneck)
            for kernel in KERNELS
        )
        self.pointwise = nn.Conv2d(bottleneck, bottleneck, 1)
        self.dropout = nn.Dropout(dropout)
        self.grid = grid
        for linear in (self.down, self.up):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def convolve(self, h: Tensor) -> Tensor:
        """M on a map ``(B, bottleneck, h, w)``."""
        h = h + torch.stack([convolution(h) for convolution in self.depthwise]).mean(0)
        mixed: Tensor = self.pointwise(h)
        return h + mixed

    def forward(self, x: Tensor) -> Tensor:
        """Residual stream, ``(B, N, D)`` or ``(B, H, W, D)``; prefix tokens pass unchanged."""
        prefix, image = self.grid.split(x)
        patches = image.permute(0, 2, 3, 1)
        scaled = self.norm_scale * self.norm(patches) + self.stream_scale * patches
        hidden = self.convolve(self.down(scaled).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        patches = patches + self.up(self.dropout(nn.functional.gelu(hidden)))
        return self.grid.join(prefix, patches.permute(0, 3, 1, 2))


@register
@dataclass
class Mona(Method):
    """x <- Mona_1(x + attn(norm1(x))), then x <- Mona_2(x + mlp(norm2(x)))."""

    name = "mona"
    title = "5%>100%: Breaking Performance Shackles of Full Fine-Tuning on Visual Recognition Tasks"
    arxiv = "2408.08345"
    source = "module, placement and defaults of the authors' code (Leiyi-Hu/mona)"
    category = Category.ADDITION
    idea = (
        "After each of a block's two residual additions the whole stream passes a bottleneck in "
        "which depthwise convolutions of sizes 3, 5 and 7 look at the tokens as an image. A second "
        "path of normalised input, scaled by almost nothing at first, lets it choose what it reads."
    )
    deviations = (
        "The published 4.16M (Swin-B) and 5.08M (Swin-L) fit no width of this module; the authors' "
        "own log prints 5,267,712 for Swin-L, which is our count (Swin-B: 3,667,456).",
        "It does not start as the identity: the authors' framework sets both linears to a "
        "truncated normal 0.02, the up-projection too.",
        "Defined on Swin by the authors. On a ViT class and register tokens bypass it, and a last "
        "block whose patches the classifier never reads (class token pooling) gets no modules: "
        "they could not learn.",
        "The authors' code ignores its option for the width, which is always 64.",
    )
    not_mergeable = "a GELU stands between its two projections"

    bottleneck: int = option(64, "hidden width (authors: 64)", minimum=1)
    dropout: float = option(0.1, "on the hidden units (authors: 0.1)", minimum=0.0, maximum=1.0)

    def check(self, backbone: Backbone) -> None:
        """As every method; and the tokens must form a grid."""
        super().check(backbone)
        require_grid(self.name, backbone)

    def place(self, backbone: Backbone) -> None:
        """Two modules on the stream of every block."""
        grid = TokenGrid.of(backbone)
        for block in _read_blocks(backbone):
            for site in SITES:
                block.place(site, MultiCognitive(block.width, self.bottleneck, self.dropout, grid))

    @property
    def lengths_known(self) -> frozenset[Length]:
        """It convolves over the tokens of the picture."""
        return frozenset({Length.BLOCK})

    def parameter_count(self, backbone: Backbone) -> int:
        """5D + 2Dr + r and the convolutions, twice a block: 3,667,456 for Swin-B at r = 64."""
        r = self.bottleneck
        convolutions = sum(r * (kernel**2 + 1) for kernel in KERNELS) + r * (r + 1)
        return len(SITES) * sum(
            5 * b.width + 2 * b.width * r + r + convolutions for b in _read_blocks(backbone)
        )

    @property
    def identity_at_start(self) -> bool:
        """Its up-projection starts random."""
        return False


def _read_blocks(backbone: Backbone) -> list[Block]:
    """All blocks but a last one of whose output only the class token is read."""
    return backbone.blocks[:-1] if backbone.reads_prefix_only else backbone.blocks
