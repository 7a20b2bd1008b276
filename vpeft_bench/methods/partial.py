"""Partial-k: only the last blocks learn."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from vpeft_bench.backbones.block_map import Backbone
from vpeft_bench.errors import UnsupportedBackboneError
from vpeft_bench.methods.base import Category, Method, adapted_blocks, option
from vpeft_bench.methods.registry import register


@register
@dataclass
class Partial(Method):
    """Train every parameter of the last k blocks, and on request the final norm.

    A Swin's patch merging stays frozen, also between two blocks that are trained.
    """

    name = "partial"
    title = "Partial fine-tuning (Partial-k)"
    arxiv = "2203.12119"
    source = "the baseline Partial-k of VPT; the single last block as in the published Swin rows"
    category = Category.PARTIAL
    idea = (
        "The last blocks are trained as a whole and everything below them stays frozen. What "
        "enters the first trained block is the same in every epoch."
    )
    deviations = (
        "VPT's code trains the norm after the last block as well (7,089,408 for ViT-B/16 at "
        "k = 1); the published Swin rows (12.60M, 28.34M) leave it frozen. Default: frozen; "
        "final_norm=true is VPT's rule.",
        "In a Swin, VPT counts k otherwise: its partial-2 is the whole last stage with its patch "
        "merging, its partial-4 two blocks more. Here k counts blocks.",
    )

    last_blocks: int = option(1, "k, blocks to train (published Swin rows: 1)", minimum=1)
    final_norm: bool = option(
        False, "also train the norm before the head (VPT: yes; published Swin rows: no)"
    )

    def check(self, backbone: Backbone) -> None:
        """As every method; and there must be as many blocks as are to be trained."""
        super().check(backbone)
        if self.last_blocks > len(backbone.blocks):
            raise UnsupportedBackboneError(
                f"method.last_blocks={self.last_blocks}: the backbone has {len(backbone.blocks)}"
            )

    def place(self, backbone: Backbone) -> None:
        """Nothing is placed."""

    def unfrozen(self, backbone: Backbone) -> Iterable[nn.Parameter]:
        """Everything in the last blocks, relative position biases included."""
        for block in adapted_blocks(backbone, self.last_blocks):
            yield from block.module.parameters()
        if self.final_norm:
            yield from backbone.final_norm.parameters()

    def parameter_count(self, backbone: Backbone) -> int:
        """12D^2 + 13D per block: 7,087,872 for ViT-B/16 at k = 1; a Swin adds its bias tables.

        Summed over the parameters there are: LayerScale and q/k norms add some.
        """
        return sum(parameter.numel() for parameter in set(self.unfrozen(backbone)))

    def first_changed_block(self, backbone: Backbone) -> int:
        """The first trained block."""
        return adapted_blocks(backbone, self.last_blocks)[0].index
