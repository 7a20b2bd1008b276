"""Segmentation decoders: from feature maps to scores at the resolution of the first of them.

UPerNet is written here and not taken from ``segmentation-models-pytorch``: that one always has
BatchNorm after the pooled maps, so cannot train on one picture; it leaves out the convolutions of
the pyramid's levels and the auxiliary head; and it wants the maps of an encoder of its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from vpeft_bench.config.sections import HeadNorm

POOLED_SIDES = (1, 2, 3, 6)
MOST_GROUPS = 32
FEWEST_CHANNELS_PER_GROUP = 16


class UPerNet(nn.Module):
    """UPerNet (arXiv 1807.10221): pooled pyramid, top-down pathway, fusion of all levels.

    Args:
        widths: channels of the maps that come in, finest first.
        hidden: channels of every convolution in the decoder (published: 512).
        num_classes: K.
        norm: see :func:`normalisation`. With ``group`` a picture is scored alike whatever else is
            in its batch, and a batch may be one picture; the published recipes have ``batch``.
        dropout: share of the channels that is dropped before the classifier.
    """

    def __init__(
        self, widths: Sequence[int], hidden: int, num_classes: int, norm: HeadNorm, dropout: float
    ) -> None:
        super().__init__()
        *finer, last = widths
        self.pooled = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), convolution(last, hidden, 1, norm))
            for side in POOLED_SIDES
        )
        self.context = convolution(last + len(POOLED_SIDES) * hidden, hidden, 3, norm)
        self.laterals = nn.ModuleList(convolution(width, hidden, 1, norm) for width in finer)
        self.outputs = nn.ModuleList(convolution(hidden, hidden, 3, norm) for _ in finer)
        self.fusion = convolution(len(widths) * hidden, hidden, 3, norm)
        self.classifier = classifier(hidden, num_classes, dropout)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps ``(B, C_i, H_i, W_i)`` to scores ``(B, K, H_0, W_0)``."""
        *finer, last = maps
        pooled = [resized(branch(last), last) for branch in self.pooled]
        summed = [self.context(torch.cat([last, *pooled], dim=1))]
        for lateral, x in zip(reversed(self.laterals), reversed(finer), strict=True):
            x = lateral(x)
            summed.insert(0, x + resized(summed[0], x))
        levels = [output(x) for output, x in zip(self.outputs, summed[:-1], strict=True)]
        levels.append(summed[-1])
        fused = self.fusion(torch.cat([resized(level, levels[0]) for level in levels], dim=1))
        scores: Tensor = self.classifier(fused)
        return scores


class SemanticFPN(nn.Module):
    """The semantic branch of Panoptic FPN (arXiv 1901.02446, section 3) on a feature pyramid.

    Args:
        widths: channels of the maps that come in, finest first.
        channels: of the feature pyramid (published: 256).
        hidden: channels of the branch (published: 128).
        num_classes: K.
        norm: see :func:`normalisation`.
        dropout: share of the channels that is dropped before the classifier.
    """

    def __init__(
        self,
        widths: Sequence[int],
        channels: int,
        hidden: int,
        num_classes: int,
        norm: HeadNorm,
        dropout: float,
    ) -> None:
        super().__init__()
        self.pyramid = FeaturePyramidNetwork(list(widths), channels)
        self.branches = nn.ModuleList(
            nn.ModuleList(
                convolution(channels if step == 0 else hidden, hidden, 3, norm)
                for step in range(max(level, 1))
            )
            for level in range(len(widths))
        )
        self.classifier = classifier(hidden, num_classes, dropout)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps ``(B, C_i, H_i, W_i)`` to scores ``(B, K, H_0, W_0)``."""
        named = OrderedDict((str(level), x) for level, x in enumerate(maps))
        branched = []
        for level, x in enumerate(self.pyramid(named).values()):
            for step, convolved in enumerate(cast(nn.ModuleList, self.branches[level])):
                x = resized(convolved(x), maps[max(level - step - 1, 0)])
            branched.append(x)
        scores: Tensor = self.classifier(torch.stack(branched).sum(dim=0))
        return scores


class LinearDecoder(nn.Module):
    """A linear classifier of every place, on the concatenation of the maps.

    On a Vision Transformer's one map it is the linear head of Segmenter (arXiv 2105.05633) and
    DINOv2 (arXiv 2304.07193, there after a BatchNorm). Several maps are brought to the
    resolution of the first. As that is linear too, each map is classified at its own resolution and
    the scores are brought there and added: the same numbers for less memory.

    Args:
        widths: channels of the maps that come in, finest first.
        num_classes: K.
        dropout: share of the channels that is dropped before the classifier.
    """

    def __init__(self, widths: Sequence[int], num_classes: int, dropout: float) -> None:
        super().__init__()
        self.classifiers = nn.ModuleList(
            classifier(width, num_classes, dropout, bias=index == 0)
            for index, width in enumerate(widths)
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps ``(B, C_i, H_i, W_i)`` to scores ``(B, K, H_0, W_0)``."""
        scores = [linear(x) for linear, x in zip(self.classifiers, maps, strict=True)]
        return torch.stack([resized(x, scores[0]) for x in scores]).sum(dim=0)


class AuxiliaryFCN(nn.Module):
    """One convolution and a classifier on one map: the second loss of the UPerNet recipes.

    Args:
        level: index of the map.
        width: its channels.
        hidden: channels of the convolution (published: 256).
        num_classes: K.
        norm: see :func:`normalisation`.
        dropout: share of the channels that is dropped before the classifier.
    """

    def __init__(
        self, level: int, width: int, hidden: int, num_classes: int, norm: HeadNorm, dropout: float
    ) -> None:
        super().__init__()
        self.level = level
        self.convolution = convolution(width, hidden, 3, norm)
        self.classifier = classifier(hidden, num_classes, dropout)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps ``(B, C_i, H_i, W_i)`` to scores ``(B, K, H_level, W_level)``."""
        scores: Tensor = self.classifier(self.convolution(maps[self.level]))
        return scores


def convolution(width: int, channels: int, kernel: int, norm: HeadNorm) -> nn.Sequential:
    """Convolution at the same resolution, normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(width, channels, kernel, padding=kernel // 2, bias=False),
        normalisation(channels, norm),
        nn.ReLU(inplace=True),
    )


def normalisation(channels: int, norm: HeadNorm) -> nn.Module:
    """BatchNorm, or GroupNorm of at most 32 groups of at least 16 channels (arXiv 1803.08494).

    Smaller groups would leave nothing of the maps that are pooled to one place: there a group is
    normalised over its channels alone, and of two channels only the sign of a difference remains.
    """
    if norm is HeadNorm.batch:
        return nn.BatchNorm2d(channels)
    most = max(1, min(MOST_GROUPS, channels // FEWEST_CHANNELS_PER_GROUP))
    groups = next(groups for groups in range(most, 0, -1) if channels % groups == 0)
    return nn.GroupNorm(groups, channels)


def classifier(width: int, num_classes: int, dropout: float, bias: bool = True) -> nn.Sequential:
    """Dropout of whole channels and a 1x1 convolution to the classes."""
    last = nn.Conv2d(width, num_classes, 1, bias=bias)
    nn.init.normal_(last.weight, std=0.01)
    if last.bias is not None:
        nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Dropout2d(dropout), last)


def resized(x: Tensor, like: Tensor) -> Tensor:
    """``x`` at the height and width of ``like``, bilinear."""
    if x.shape[-2:] == like.shape[-2:]:
        return x
    larger = F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
    return larger.to(x.dtype)  # CUDA's autocast makes it float32, twice the memory
