"""Parts of the two-stage detectors that work on single regions of a pyramid."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import box_area, roi_align

from vpeft_bench.heads.levels import LEVELS

BOX_PLACES, MASK_PLACES = 7, 14
"""A region is pooled to a square with this many places on a side."""

POSITIVE_SHARE = 0.25
"""Of the proposals of a picture that a stage is trained on, how many may be positive."""


class RegionPool(nn.Module):
    """RoIAlign (arXiv 1703.06870) on the first four levels of a pyramid.

    A region is read from the level on which it covers 14 to 28 places; that is the rule of the FPN
    paper (arXiv 1612.03144: 224 pixels at stride 16) for any strides. It knows nothing of the
    picture's size: in pictures of 64 pixels all objects are small, and read from the finest level.

    torchvision's guesses the strides once and for all from the first batch, and from its pictures
    without their padding: wrong where those are strips in a ViT's square. It also reads half a
    place off what a region covers, which matters where objects are few places large.

    Args:
        strides: pixels per place of each level.
        size: places of a pooled region, squared.
    """

    def __init__(self, strides: tuple[float, ...], size: int) -> None:
        super().__init__()
        self.strides = strides[:LEVELS]
        self.size = size

    def forward(
        self,
        features: dict[str, Tensor],
        boxes: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> Tensor:
        """Regions of all pictures to ``(regions, C, size, size)``.

        Args:
            features: the pyramid, "0", "1", ... from fine to coarse, ``(B, C, h, w)``.
            boxes: for each picture ``(n, 4)`` in its pixels.
            image_shapes: not needed; torchvision passes them.
        """
        together = torch.cat(boxes)
        places = box_area(together).sqrt() / self.strides[0]
        levels = (places / 14).log2().floor().clamp(0, LEVELS - 1)
        picture = torch.cat([x.new_full((len(x), 1), index) for index, x in enumerate(boxes)])
        regions = torch.cat((picture, together), dim=1)
        pooled = features["0"].new_zeros(
            (len(regions), features["0"].shape[1], self.size, self.size)
        )
        order, counts = levels.argsort(stable=True), levels.long().bincount(minlength=LEVELS)
        # The sizes are read at once: each reading waits for the device.
        by_level = order.split(counts.tolist())
        for level, (stride, chosen) in enumerate(zip(self.strides, by_level, strict=False)):
            pooled[chosen] = roi_align(
                features[str(level)],
                regions[chosen],
                self.size,
                spatial_scale=1 / stride,
                sampling_ratio=2,
                aligned=True,
            )
        return pooled


class Float32(nn.Module):
    """What the layer before it puts out, in float32; boxes are decoded in the type they come in."""

    def forward(self, outputs: Any) -> Any:
        """A tensor, or lists and tuples of such."""
        if isinstance(outputs, Tensor):
            return outputs.float()
        return [self(output) for output in outputs]


def box_head(kind: str, channels: int, hidden: int) -> nn.Module:
    """What reads a pooled region ``(n, channels, 7, 7)``; it gives ``(n, hidden)``.

    Args:
        kind: one of ``BOX_HEADS``.
        channels: of the pyramid, and of the convolutions.
        hidden: width of the linears.
    """
    pooled = (channels, BOX_PLACES, BOX_PLACES)
    head: nn.Module = (
        TwoMLPHead(channels * BOX_PLACES**2, hidden)
        if kind == "2fc"
        else FastRCNNConvFCHead(pooled, [channels] * 4, [hidden], norm_layer=nn.BatchNorm2d)
    )
    return head


def mask_head(channels: int) -> MaskRCNNHeads:
    """Four convolutions, as wide as the pyramid."""
    return MaskRCNNHeads(channels, (channels,) * 4, dilation=1)


def mask_predictor(channels: int, outputs: int) -> nn.Sequential:
    """A mask of twice the resolution for each of ``outputs`` labels."""
    return nn.Sequential(MaskRCNNPredictor(channels, channels, outputs), Float32())
