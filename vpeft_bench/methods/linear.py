"""Linear probing: the whole backbone stays frozen, only the head learns."""

from __future__ import annotations

from dataclasses import dataclass

from vpeft_bench.backbones.block_map import Backbone
from vpeft_bench.methods.base import Category, Method
from vpeft_bench.methods.registry import register


@register
@dataclass
class Linear(Method):
    """Train the head on frozen features."""

    name = "linear"
    title = "Linear probing"
    arxiv = None
    source = "the classical baseline; the row 'Linear probing' of arXiv 2402.02242"
    category = Category.PARTIAL
    idea = (
        "The backbone stays frozen and only the classifier learns. Features that are computed "
        "once serve every epoch."
    )
    deviations = (
        "V-PETL Bench keeps drop-path 0.1 active in the frozen trunk while it trains, so its "
        "features differ from epoch to epoch; here drop-path is a setting of the backbone, not "
        "of the method.",
    )

    def place(self, backbone: Backbone) -> None:
        """Nothing is placed."""

    def parameter_count(self, backbone: Backbone) -> int:
        """0."""
        return 0

    def first_changed_block(self, backbone: Backbone) -> int:
        """No block changes."""
        return len(backbone.blocks)
