"""From a backbone's feature maps to four levels, at a quarter to a 32nd of the image's size."""

from __future__ import annotations

from math import log2

from torch import Tensor, nn
from torchvision.ops import Permute

from vpeft_bench.backbones.features import StageFeatures

LEVELS = 4
FIRST_STRIDE = 4


class Levels(nn.Module):
    """Four feature maps, each half as large as the one before.

    Args:
        features: the backbone.
        channels: width of the levels that are made from a single map.
        skip: how many of the finest levels are left out.

    Attributes:
        widths: channels of each level.
        strides: pixels of the image per place of each level; not always whole (3.5, 7, 14, 28 for
            patches of 14 pixels).
    """

    def __init__(self, features: StageFeatures, channels: int, skip: int = 0) -> None:
        super().__init__()
        self.features = features
        if len(features.widths) == LEVELS:
            self.widths: tuple[int, ...] = features.widths[skip:]
            self.strides: tuple[float, ...] = features.strides[skip:]
            self.branches = nn.ModuleList(ChannelNorm(width) for width in self.widths)
        else:
            (width,), (stride,) = features.widths, features.strides
            first = round(log2(stride / FIRST_STRIDE))
            doublings = range(first, first - LEVELS, -1)[skip:]
            self.widths = (channels,) * len(doublings)
            self.strides = tuple(stride / 2**n for n in doublings)
            self.branches = nn.ModuleList(rescaled(width, channels, n) for n in doublings)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images ``(B, 3, H, W)`` to maps ``(B, width, H / stride, W / stride)``."""
        maps = self.features(images)
        count = len(self.branches)
        maps = maps * count if len(maps) == 1 else maps[-count:]
        return [branch(x) for branch, x in zip(self.branches, maps, strict=True)]


class ChannelNorm(nn.Sequential):
    """LayerNorm over the channels of every place of a map ``(B, C, H, W)``."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            Permute([0, 2, 3, 1]), nn.LayerNorm(channels, eps=1e-6), Permute([0, 3, 1, 2])
        )


def rescaled(width: int, channels: int, doublings: int) -> nn.Sequential:
    """One level of the simple feature pyramid of ViTDet (arXiv 2203.16527, section 3).

    Args:
        width: channels of the map that comes in.
        channels: channels of the level.
        doublings: how often the resolution doubles; halvings where it is negative.
    """
    layers: list[nn.Module] = []
    for step in range(doublings):
        if step:
            layers += [ChannelNorm(width), nn.GELU()]
        layers.append(nn.ConvTranspose2d(width, width // 2, 2, stride=2))
        width //= 2
    layers += [nn.MaxPool2d(2) for _ in range(-doublings)]
    return nn.Sequential(
        *layers,
        nn.Conv2d(width, channels, 1, bias=False),
        ChannelNorm(channels),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        ChannelNorm(channels),
    )
