"""SSF: scale and shift the features after every operation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone
from vpeft_bench.methods.base import Category, MergeableModule, Method, option
from vpeft_bench.methods.registry import register
from vpeft_bench.traits import Trait


class ScaleShift(MergeableModule):
    """gamma * y + beta per channel.

    Args:
        channels: channels of y.
        channel_last: y is ``(..., C)``; otherwise ``(B, C, H, W)``, after a convolution.
    """

    def __init__(self, channels: int, channel_last: bool, std: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(channels).normal_(1.0, std))
        self.shift = nn.Parameter(torch.empty(channels).normal_(0.0, std))
        self.shape = (-1,) if channel_last else (-1, 1, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Scale and shift the output y; the input x is not used."""
        return y * self.scale.view(self.shape) + self.shift.view(self.shape)

    def obstacle(self, leaf: nn.Module) -> str | None:
        """A shift needs a bias to go into."""
        return None if getattr(leaf, "bias", None) is not None else "it has no bias for the shift"

    @torch.no_grad()
    def merge_into(self, leaf: nn.Module) -> None:
        """W <- diag(gamma) W, b <- gamma b + beta; the same for a norm's weight and bias."""
        weight, bias = leaf.weight, leaf.bias
        assert isinstance(weight, nn.Parameter)
        assert isinstance(bias, nn.Parameter)
        scale, shift = self.scale.double(), self.shift.double()
        weight.copy_(weight.double() * scale.view(-1, *[1] * (weight.ndim - 1)))
        bias.copy_(bias.double() * scale + shift)


@register
@dataclass
class SSF(Method):
    """y <- gamma * y + beta after every linear, norm and convolution of embedding and blocks.

    The start is near the pretrained function, not at it: gamma ~ N(1, 0.02), beta ~ N(0, 0.02).
    """

    name = "ssf"
    title = "Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning"
    arxiv = "2210.08823"
    source = "equation 4; sites as in the authors' code"
    category = Category.REPARAMETERISATION
    idea = (
        "After every linear, norm and convolution of the frozen backbone, each channel is "
        "multiplied by a learned number and another one is added. Both can be folded into the "
        "layer before them."
    )
    deviations = (
        "The authors' code draws scale and shift around 1 and 0, so training starts near the "
        "pretrained model, not at it; init_std=0 starts at it.",
        "In a Swin patch merging has no pair: the authors' code writes one after its norm and "
        "never makes it, because a list of names is compared with a name. merge_norms=true has it "
        "(Swin-B: 274,432 parameters, not 267,264).",
        "The published VTAB-1k row (0.21M) leaves the head out; the FGVC row (0.39M) counts it.",
        "V-PETL Bench contains no SSF; its file of that name is a copy of shallow prompts.",
    )

    init_std: float = option(
        0.02, "spread of the initial scale and shift (authors' code)", minimum=0.0
    )
    merge_norms: bool = option(
        False,
        "a pair after the norms of a Swin's patch merging, too (authors' code: none)",
        neutral=True,
        only_on=(Trait.PATCH_MERGING,),
    )

    def place(self, backbone: Backbone) -> None:
        """One pair after every leaf."""
        for leaf in self._leaves(backbone):
            pair = ScaleShift(_channels(leaf), not isinstance(leaf, nn.Conv2d), self.init_std)
            backbone.place_on_leaf(leaf, pair)

    def parameter_count(self, backbone: Backbone) -> int:
        """22DL + 4D for a ViT: 205,824 for B/16; Swin-B: 267,264, with its patch norm."""
        return sum(2 * _channels(leaf) for leaf in self._leaves(backbone))

    def _leaves(self, backbone: Backbone) -> Iterator[nn.Module]:
        yield from backbone.patch_leaves
        for block in backbone.blocks:
            yield from block.leaves.values()
        if self.merge_norms:
            yield from backbone.merge_norms
        if not isinstance(backbone.final_norm, nn.Identity):
            yield backbone.final_norm

    @property
    def changes_embedding(self) -> bool:
        """There is a pair after the patch embedding."""
        return True

    @property
    def identity_at_start(self) -> bool:
        """Only without spread."""
        return self.init_std == 0


def _channels(leaf: nn.Module) -> int:
    weight = leaf.weight
    assert isinstance(weight, Tensor)
    return weight.shape[0]
