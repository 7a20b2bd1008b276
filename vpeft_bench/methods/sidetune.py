"""Side-Tuning: a small convolutional network beside the frozen backbone."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone
from vpeft_bench.backbones.trunk import OpenedModel, SideNetwork, TrunkOutput
from vpeft_bench.methods.base import Category, Method, option
from vpeft_bench.methods.registry import register

# Channels, stride and padding of the four 3x3 convolutions ("fcn4").
CONVOLUTIONS = ((16, 1, 1), (16, 2, 0), (32, 2, 0), (64, 1, 0))
READS = ("images", "features")


class ConvolutionalSide(SideNetwork):
    """sigmoid(a) f + (1 - sigmoid(a)) S(image), with f the backbone's pooled features."""

    def __init__(self, width: int, blocks: int, alpha: float) -> None:
        super().__init__(READS, frozen_blocks=blocks)
        self.alpha = nn.Parameter(torch.tensor([alpha]))
        layers: list[nn.Module] = []
        channels = 3
        for out, stride, padding in CONVOLUTIONS:
            layers += [
                nn.Conv2d(channels, out, 3, stride, padding, bias=False),
                nn.GroupNorm(2, out),
                nn.ReLU(),
            ]
            channels = out
        self.convolutions = nn.Sequential(*layers)
        self.out = nn.Linear(channels, width)

    def side(self, features: dict[str, Tensor], model: OpenedModel) -> TrunkOutput:
        """Mix the frozen features ``(B, D)`` with those of the side network."""
        gate = self.alpha.sigmoid()
        own = self.out(self.convolutions(features["images"]).mean(dim=(2, 3)))
        return TrunkOutput([], gate * features["features"] + (1 - gate) * own)


@register
@dataclass
class SideTuning(Method):
    """f = sigmoid(a) f_backbone(x) + (1 - sigmoid(a)) S(x), with S four 3x3 convolutions."""

    name = "sidetune"
    title = "Side-Tuning: A Baseline for Network Adaptation via Additive Side Networks"
    arxiv = "1912.13503"
    source = "alpha blending of section 3; the side network fcn4 of modelscope's SideTune"
    category = Category.SIDE
    idea = (
        "A small convolutional network reads the image beside the frozen backbone. "
        "A learned gate blends its features with the backbone's before the head."
    )
    deviations = (
        "the paper leaves the side network open; modelscope's fcn4 (four 3x3 convolutions, "
        "GroupNorm, ReLU) is the one here",
        "alpha=0 starts half way between backbone and an untrained side network, not at the "
        "frozen model",
        "no published row of the benchmark's tables lists it",
    )
    not_dense = "its side network gives one vector per picture, for a classifier"
    not_mergeable = "the side network reads the image, not the backbone's activations"

    alpha: float = option(0.0, "a at the start: the gate is sigmoid(a) (modelscope: 0)")

    def place(self, backbone: Backbone) -> None:
        """One network around the trunk."""
        blocks = backbone.blocks
        backbone.place_around(ConvolutionalSide(blocks[-1].width, len(blocks), self.alpha))

    def parameter_count(self, backbone: Backbone) -> int:
        """26,032 + 65D + 1: 75,953 for ViT-B/16."""
        channels = [3, *(out for out, _, _ in CONVOLUTIONS)]
        convolutions = sum(9 * c * out + 2 * out for c, out in pairwise(channels))
        return convolutions + (channels[-1] + 1) * backbone.blocks[-1].width + 1

    @property
    def identity_at_start(self) -> bool:
        """The untrained side network has a part in the features from the start."""
        return False

    def first_changed_block(self, backbone: Backbone) -> int:
        """None of them."""
        return len(backbone.blocks)

    def reads(self, backbone: Backbone) -> tuple[str, ...]:
        """The image, and the one vector of the frozen backbone."""
        return READS
