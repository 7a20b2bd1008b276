"""Full fine-tuning: everything learns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from vpeft_bench.backbones.block_map import Backbone
from vpeft_bench.methods.base import Category, Method
from vpeft_bench.methods.registry import register


@register
@dataclass
class Full(Method):
    """Train every parameter of the backbone."""

    name = "full"
    title = "Full fine-tuning"
    arxiv = None
    source = "the classical baseline; the row 'Full fine-tuning' of arXiv 2402.02242"
    category = Category.PARTIAL
    idea = (
        "Every parameter of the backbone is trained, together with the head. It is the most "
        "expensive way to fine-tune and the one that all others are measured against."
    )
    deviations = (
        "The published Swin-L count (198.58M) is 3.6M above timm's Swin-L; where the rest comes "
        "from is unknown.",
    )

    def place(self, backbone: Backbone) -> None:
        """Nothing is placed."""

    def unfrozen(self, backbone: Backbone) -> Iterable[nn.Parameter]:
        """Every parameter outside the head."""
        return [parameter for _, parameter in backbone.named_parameters()]

    def parameter_count(self, backbone: Backbone) -> int:
        """The size of the backbone: 85,798,656 for ViT-B/16 at 224 px."""
        return sum(parameter.numel() for _, parameter in backbone.named_parameters())

    @property
    def changes_embedding(self) -> bool:
        """The patch embedding is trained as well."""
        return True
