"""LN-Tune: only the normalisation layers learn."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from vpeft_bench.backbones.block_map import Backbone
from vpeft_bench.methods.base import Category, Method
from vpeft_bench.methods.registry import register


@register
@dataclass
class LNTune(Method):
    """Train weight and bias of every norm: norm1, norm2, final, patch and merging norms."""

    name = "ln_tune"
    title = "Strong Baselines for Parameter-Efficient Few-Shot Fine-tuning"
    arxiv = "2304.01917"
    source = "section 3.1, 'LN-Tune'"
    category = Category.PARTIAL
    idea = (
        "Only scale and shift of the normalisation layers are trained, in place. All other "
        "weights stay frozen and nothing is added to the model."
    )
    deviations = (
        "The published Swin rows (0.06M, 0.09M) include the norms of patch embedding and patch "
        "merging and the final norm besides those of the blocks, and so does the default. A "
        "detector has a norm per output in place of the final norm; it belongs to the detector.",
    )

    @property
    def changes_embedding(self) -> bool:
        """Swin has a norm on its patches, CLIP one before its blocks."""
        return True

    def reads(self, backbone: Backbone) -> tuple[str, ...]:
        """The tokens, where no norm stands before the first block; the images elsewhere."""
        return read_below_norms(backbone)

    def place(self, backbone: Backbone) -> None:
        """Nothing is placed."""

    def unfrozen(self, backbone: Backbone) -> Iterable[nn.Parameter]:
        """Weight and bias of every norm outside the head."""
        return norm_parameters(backbone)

    def parameter_count(self, backbone: Backbone) -> int:
        """2D(2L+1) for a ViT: 38,400 for B/16; a Swin adds its patch and merging norms.

        Summed over the norms there are: CLIP has one before its blocks, others on q and k.
        """
        return sum(parameter.numel() for parameter in self.unfrozen(backbone))


def norm_parameters(backbone: Backbone) -> list[nn.Parameter]:
    """Weight and bias of every norm outside the head."""
    return [parameter for norm in backbone.norms() for parameter in norm.parameters()]


def read_below_norms(backbone: Backbone) -> tuple[str, ...]:
    """The frozen features that training reads where every norm is trained."""
    ahead = backbone.norms()[0] is not backbone.blocks[0].leaf("norm1")
    return ("images",) if ahead else ("tokens.0",)
