"""BAPAT: PATT's branch beside the attention and an adapter beside the MLP."""

from __future__ import annotations

from dataclasses import dataclass

from timm.layers.drop import DropPath
from torch import nn

from vpeft_bench.backbones.block_map import Backbone
from vpeft_bench.methods.adaptformer import ParallelBottleneck
from vpeft_bench.methods.base import option
from vpeft_bench.methods.patt import Patt
from vpeft_bench.methods.registry import register


@register
@dataclass
class Bapat(Patt):
    """As ``patt``, and x <- x + drop_path(mlp(u)) + drop_path(F(u)), u = norm2(x).

    F(u) = s_f (W_u ReLU(W_d u + b_d) + b_u) is AdaptFormer's branch on the normed stream; it
    draws drop-path on its own, at the block's rate.
    """

    name = "bapat"
    source = "both branches of the authors' code (bruceyo/V-PETL), for images"
    idea = (
        "PATT's tanh network adds to the keys and values of every block, and a ReLU bottleneck "
        "parallel to the MLP adds to what that puts out. Both are the paper's unified view: "
        "branches beside frozen parts, of the same input."
    )
    deviations = (
        *Patt.deviations,
        "The published 6.18M (Video Swin-B) is 6,201,088 here; without the attention branch's "
        "biases it would be 6,173,952. The published 2.06M of a ViT-B fits bottleneck=32 without "
        "biases; the code has them.",
        "In the authors' code the branch beside the MLP shares the draw of the MLP's drop-path; "
        "here it has one of its own, and on backbones with LayerScale it is not scaled by that.",
        "The authors' launcher freezes the freshly started head unless told otherwise; here the "
        "head is trained.",
    )

    ffn_bottleneck: int = option(64, "r, width beside the MLP (authors: 64)", minimum=1)
    ffn_scale: float = option(0.1, "s_f, of the branch beside the MLP (authors: 0.1)")

    def place(self, backbone: Backbone) -> None:
        """Both branches in every block."""
        super().place(backbone)
        for block in backbone.blocks:
            branch = ParallelBottleneck(
                block.width,
                self.ffn_bottleneck,
                self.ffn_scale,
                layer_norm=False,
                dropout=0.0,
                activation="relu",
                init="standard",
            )
            dropped = nn.Sequential(branch, DropPath(block.drop_path))
            block.place("mlp_parallel_normed", dropped)

    def parameter_count(self, backbone: Backbone) -> int:
        """PATT's and 2Dr + r + D per block: 6,201,088 for Swin-B at m = 128, r = 64."""
        r = self.ffn_bottleneck
        return super().parameter_count(backbone) + sum(
            2 * b.width * r + r + b.width for b in backbone.blocks
        )
