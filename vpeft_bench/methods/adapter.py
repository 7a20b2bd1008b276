"""Adapter: a bottleneck with a skip after the MLP (and the attention)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone
from vpeft_bench.errors import UnsupportedBackboneError
from vpeft_bench.methods.base import Category, Method, adapted_blocks, bottleneck_linears, option
from vpeft_bench.methods.registry import register

SITES = {"pfeiffer": ("mlp_out",), "houlsby": ("attn_out", "mlp_out")}


class Bottleneck(nn.Module):
    """A(z) = z + W_u GELU(W_d z + b_d) + b_u."""

    def __init__(self, width: int, bottleneck: int, init: str) -> None:
        super().__init__()
        self.down, self.up = bottleneck_linears(width, bottleneck, init)

    def forward(self, z: Tensor) -> Tensor:
        """Branch output ``(..., D)``, before drop-path and the residual addition."""
        branch: Tensor = self.up(nn.functional.gelu(self.down(z)))
        return z + branch


@register
@dataclass
class Adapter(Method):
    """x <- x + drop_path(A(mlp(norm2(x)))), and likewise for the attention in Houlsby's placement.

    ``init=vpb`` is what V-PETL Bench trains (truncated normal, not the identity); ``init=vpt`` is
    KMnP/vpt's all-zero start, in which nothing but the up bias ever receives a gradient.
    """

    name = "adapter"
    title = "Parameter-Efficient Transfer Learning for NLP; AdapterFusion (Pfeiffer's placement)"
    arxiv = "1902.00751"
    source = "section 2 of 1902.00751; placement of 2005.00247 by default"
    category = Category.ADDITION
    idea = (
        "A narrow two-layer network with a GELU and a skip of its own stands after the MLP of "
        "every block, before the residual addition. In Houlsby's placement another one "
        "stands after the attention."
    )
    deviations = (
        "V-PETL Bench's constructor resets every linear after the adapter's own initialisation, "
        "so training does not start at the pretrained model: init=vpb. The default starts at it.",
        "KMnP/vpt zeroes all four tensors (init=vpt). All gradients but that of the up bias then "
        "stay zero for ever: its Adapter baseline trains one bias vector per block.",
        "V-PETL Bench's topN=96 is a reduction factor, so 768 // 96 = 8 is the bottleneck; the "
        "SCT repository, with the same option, reduces by 768 // 96 and has a bottleneck of 96.",
        "The published VTAB-1k row (0.16M) is bottleneck=8; the FGVC row (0.41M) is "
        "bottleneck=12 with the mean head, which the released script does not run; the Swin rows "
        "(3.11M, 4.66M) are placement=houlsby bottleneck=64.",
    )
    not_mergeable = "a GELU stands between its two projections"

    bottleneck: int = option(
        8,
        "width r of the bottleneck (V-PETL Bench on VTAB: 8)",
        minimum=1,
        search=(4, 8, 16, 32, 64),
    )
    placement: str = option(
        "pfeiffer", "pfeiffer: after the MLP; houlsby: also the attention", choices=SITES
    )
    last_blocks: int | None = option(None, "adapt only the last k blocks; null: all", minimum=1)
    init: str = option(
        "standard",
        "standard: zero up-projection; vpb: truncated normal; vpt: all zero (see deviations)",
        choices=("standard", "vpb", "vpt"),
    )

    def check(self, backbone: Backbone) -> None:
        """As every method; and there must be as many blocks as are to be adapted."""
        super().check(backbone)
        if self.last_blocks is not None and self.last_blocks > len(backbone.blocks):
            raise UnsupportedBackboneError(
                f"method.last_blocks={self.last_blocks}: the backbone has {len(backbone.blocks)}"
            )

    def place(self, backbone: Backbone) -> None:
        """One bottleneck per site of every adapted block."""
        for block in adapted_blocks(backbone, self.last_blocks):
            for site in SITES[self.placement]:
                block.place(site, Bottleneck(block.width, self.bottleneck, self.init))

    def parameter_count(self, backbone: Backbone) -> int:
        """2Dr + r + D per site: 156,768 for ViT-B/16 at r = 8 in Pfeiffer's placement."""
        r = self.bottleneck
        blocks = adapted_blocks(backbone, self.last_blocks)
        return len(SITES[self.placement]) * sum(2 * b.width * r + r + b.width for b in blocks)

    @property
    def identity_at_start(self) -> bool:
        """With a zero up-projection."""
        return self.init != "vpb"

    def first_changed_block(self, backbone: Backbone) -> int:
        """The first adapted block."""
        return adapted_blocks(backbone, self.last_blocks)[0].index
