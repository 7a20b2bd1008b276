"""AdaptFormer: a scaled bottleneck parallel to the MLP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone
from vpeft_bench.methods.base import Category, Method, bottleneck_linears, option
from vpeft_bench.methods.registry import register

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": nn.functional.relu,
    "gelu": nn.functional.gelu,
}


class ParallelBottleneck(nn.Module):
    """A(x) = s * (W_u dropout(act(W_d LN?(x) + b_d)) + b_u)."""

    def __init__(
        self,
        width: int,
        bottleneck: int,
        scale: float,
        layer_norm: bool,
        dropout: float,
        activation: str,
        init: str,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if layer_norm else None
        self.down, self.up = bottleneck_linears(width, bottleneck, init)
        self.activation = ACTIVATIONS[activation]
        self.dropout = nn.Dropout(dropout)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Residual stream before norm2, ``(..., D)``; the result is added beside the MLP."""
        if self.norm is not None:
            x = self.norm(x)
        branch: Tensor = self.up(self.dropout(self.activation(self.down(x))))
        return self.scale * branch


@register
@dataclass
class AdaptFormer(Method):
    """x <- x + drop_path(mlp(norm2(x))) + A(x).

    V-PETL Bench runs ``bottleneck=8 scale=1.0 layer_norm=in init=vpb``; the dense-prediction rows
    ``activation=gelu``.
    """

    name = "adaptformer"
    title = "AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition"
    arxiv = "2205.13535"
    source = "equations 3 and 4; defaults of the authors' launcher"
    category = Category.ADDITION
    idea = (
        "A narrow two-layer network with a ReLU runs parallel to the MLP of every block, and its "
        "scaled output is added to the residual stream. It reads the stream before the "
        "MLP's norm."
    )
    deviations = (
        "V-PETL Bench runs its constructor's defaults, which the authors' launcher overrides: a "
        "LayerNorm of its own and scale 1, here bottleneck=8 layer_norm=in scale=1.0. It also "
        "resets the initialisation (init=vpb). The default is the authors'.",
        "The published VTAB-1k row (0.16M) leaves out the LayerNorm that the code trains; the "
        "FGVC row (0.46M) fits no natural setting.",
        "The authors' recipe puts a BatchNorm without affine parameters (eps 1e-6) before the "
        "linear head: head=batch_norm. By default the backbone's own linear reads the features as "
        "they are.",
        "The dense-prediction code has one branch per block with a GELU (activation=gelu); the "
        "published Swin rows (3.11M, 4.66M) are twice its size and equal those of Adapter, from "
        "which they seem to be copied.",
    )
    not_mergeable = "an activation stands between its two projections"

    bottleneck: int = option(
        64, "width of the bottleneck (authors: 64)", minimum=1, search=(4, 16, 32, 64)
    )
    scale: float = option(0.1, "s (authors: 0.1; V-PETL Bench: 1.0)", search=(0.05, 0.1, 0.2, 1.0))
    layer_norm: str = option("none", "in: a LayerNorm of its own first", choices=("none", "in"))
    dropout: float = option(0.1, "on the hidden units (authors: 0.1)", minimum=0.0, maximum=1.0)
    activation: str = option("relu", "relu (authors) or gelu (Swin rows)", choices=ACTIVATIONS)
    init: str = option(
        "standard",
        "standard: zero up-projection; vpb: truncated normal (see deviations)",
        choices=("standard", "vpb"),
    )

    def place(self, backbone: Backbone) -> None:
        """One branch parallel to every MLP."""
        for block in backbone.blocks:
            branch = ParallelBottleneck(
                block.width,
                self.bottleneck,
                self.scale,
                self.layer_norm == "in",
                self.dropout,
                self.activation,
                self.init,
            )
            block.place("mlp_parallel", branch)

    def parameter_count(self, backbone: Backbone) -> int:
        """2Dr + r + D per block (+ 2D with LN): 1,189,632 for ViT-B/16 at r = 64."""
        r, norm = self.bottleneck, 2 if self.layer_norm == "in" else 0
        return sum(2 * b.width * r + r + (1 + norm) * b.width for b in backbone.blocks)

    @property
    def identity_at_start(self) -> bool:
        """With a zero up-projection."""
        return self.init != "vpb"
