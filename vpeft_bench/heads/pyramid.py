"""The feature pyramid of a detector, and the anchors on it."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from vpeft_bench.backbones.features import StageFeatures
from vpeft_bench.heads.levels import LEVELS, Levels

ASPECT_RATIOS = (0.5, 1.0, 2.0)


class Pyramid(nn.Module):
    """Maps of one width, named "0", "1", ... from fine to coarse.

    The stages of a Swin are joined from the top down (FPN, arXiv 1612.03144); the levels of a ViT
    all come from its last map already, and ViTDet (arXiv 2203.16527) joins them no further.

    Two-stage detectors read four levels and every other place of the fourth. RetinaNet (arXiv
    1708.02002) leaves out the finest level and goes on with two convolutions of stride 2 on the
    backbone's last map.

    Args:
        features: the backbone.
        channels: width of every map.
        two_stage: as just said.

    Attributes:
        strides: pixels of the image per place of each map.
        out_channels: ``channels``, under the name by which torchvision asks for it.
    """

    def __init__(self, features: StageFeatures, channels: int, two_stage: bool) -> None:
        super().__init__()
        self.levels = Levels(features, channels, skip=0 if two_stage else 1)
        self.out_channels = channels
        widths, last = self.levels.widths, self.levels.strides[-1]
        from_stages = len(features.widths) == LEVELS
        self.top_down = FeaturePyramidNetwork(list(widths), channels) if from_stages else None
        if two_stage:
            self.coarser: LastLevelMaxPool | LastLevelP6P7 = LastLevelMaxPool()
            self.strides = (*self.levels.strides, 2 * last)
        else:
            self.coarser = LastLevelP6P7(widths[-1], channels)
            self.coarser.use_P5 = False  # torchvision decides it by comparing widths
            self.strides = (*self.levels.strides, 2 * last, 4 * last)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Normalised images ``(B, 3, H, W)`` to float32 maps ``(B, channels, h, w)``.

        Half precision ends here: torchvision places anchors and boxes in the type of the maps, and
        bfloat16 holds no odd pixel beyond 256.
        """
        inputs = self.levels(images)
        maps = list(inputs)
        if self.top_down is not None:
            named = OrderedDict((str(index), x) for index, x in enumerate(inputs))
            maps = list(self.top_down(named).values())
        # A CPU's bfloat16 weight gradient of a convolution of stride 2 is garbage on a map of one
        # place (oneDNN, seen with torch 2.14); on maps this small float32 costs nothing.
        with torch.autocast(images.device.type, enabled=False):
            full = [x.float() for x in inputs]
            maps, _ = self.coarser([x.float() for x in maps], full, [])
        return OrderedDict((str(index), x) for index, x in enumerate(maps))


class LevelAnchors(AnchorGenerator):
    """Anchors of three aspect ratios around the places of every level.

    torchvision's generator takes the strides from the sizes of image and maps, which is wrong where
    a map's last row or column is only partly covered.

    Args:
        strides: pixels per place of each level.
        scale: side of the smallest anchor, in strides of its level.
        sizes: number of sizes of the anchors, equal factors apart within a doubling.
    """

    def __init__(self, strides: tuple[float, ...], scale: float, sizes: int = 1) -> None:
        super().__init__(
            tuple(
                tuple(scale * stride * 2 ** (step / sizes) for step in range(sizes))
                for stride in strides
            ),
            (ASPECT_RATIOS,) * len(strides),
        )
        self.strides = strides

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """For every picture, all levels' anchors ``(n, 4)``."""
        self.set_cell_anchors(torch.float32, feature_maps[0].device)
        sizes = [list(x.shape[-2:]) for x in feature_maps]
        levels: Any = self.grid_anchors(sizes, [[stride, stride] for stride in self.strides])
        return [torch.cat(levels)] * len(image_list.image_sizes)
