"""BitFit: only the bias terms learn."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from vpeft_bench.backbones.block_map import Backbone
from vpeft_bench.methods.base import Category, Method, option
from vpeft_bench.methods.registry import register


@register
@dataclass
class BitFit(Method):
    """b <- b + delta b for every bias of the backbone.

    In a Swin the published rows also train the relative position bias tables (their rule is the
    substring "bias" in a name); they are therefore included by default and can be left out.
    """

    name = "bitfit"
    title = "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked LMs"
    arxiv = "2106.10199"
    source = "section 3; applied to every bias of the backbone as in V-PETL Bench"
    category = Category.PARTIAL
    idea = (
        "Only the bias vectors of the pretrained network are trained, in place. Every weight "
        "matrix stays frozen and nothing is added to the model."
    )
    deviations = (
        "V-PETL Bench trains each parameter with 'bias' in its name, which in a Swin includes "
        "the relative position bias tables; so do the published Swin rows (0.20M, 0.30M) and the "
        "default here. relative_position_bias=false trains bias vectors alone.",
    )

    relative_position_bias: bool = option(
        True, "also train Swin's relative position bias tables, as the published Swin rows do"
    )

    @property
    def changes_embedding(self) -> bool:
        """The patch embedding is trained as well."""
        return True

    def place(self, backbone: Backbone) -> None:
        """Nothing is placed."""

    def unfrozen(self, backbone: Backbone) -> Iterable[nn.Parameter]:
        """The ``bias`` of every layer, and the tables where asked for."""
        for _, bias in backbone.biases():
            yield bias
        if self.relative_position_bias:
            yield from backbone.position_tables()

    def parameter_count(self, backbone: Backbone) -> int:
        """2D + 11DL for a ViT (102,912 for B/16); a Swin's 11 sum(D_l) + norms + tables.

        Summed over the biases there are: CLIP's patches have none, q/k norms and pooling add some.
        """
        return sum(parameter.numel() for parameter in set(self.unfrozen(backbone)))
