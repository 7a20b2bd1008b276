"""Detectors: torchvision's, on the feature maps of a backbone that carries a method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from vpeft_bench.backbones.features import StageFeatures
from vpeft_bench.config.sections import HeadConfig, InputConfig
from vpeft_bench.errors import ConfigError
from vpeft_bench.heads.cascade import CascadeHeads, Stage
from vpeft_bench.heads.names import HEADS, of_task
from vpeft_bench.heads.names import masks as masks_of
from vpeft_bench.heads.pyramid import ASPECT_RATIOS, LevelAnchors, Pyramid
from vpeft_bench.heads.regions import (
    BOX_PLACES,
    MASK_PLACES,
    POSITIVE_SHARE,
    Float32,
    RegionPool,
    box_head,
    mask_head,
    mask_predictor,
)
from vpeft_bench.heads.resizing import Resizing

RETINANET_SIZES = 3
"""Anchor sizes per level (arXiv 1708.02002)."""


class Detector(nn.Module):
    """A detector on pictures of any size, in their own pixels; labels count from 0.

    Attributes:
        model: torchvision's detector.
        predicts_masks: beside boxes.
    """

    def __init__(self, model: GeneralizedRCNN | RetinaNet, predicts_masks: bool) -> None:
        super().__init__()
        self.model = model
        self.predicts_masks = predicts_masks
        # torchvision's two-stage detectors keep label 0 for the background; RetinaNet has none.
        self._first_label = 0 if isinstance(model, RetinaNet) else 1

    def predictors(self) -> list[nn.Module]:
        """The modules whose outputs are decoded into boxes, classes and masks."""
        found: list[nn.Module] = []
        for module in self.model.modules():
            if isinstance(module, Float32 | RetinaNetHead):
                found.append(module)
            elif isinstance(module, Stage):
                found += [module.classifier, module.regressor]
        return found

    def losses(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The terms of the training loss, in training mode.

        Args:
            images: uint8 ``(3, h, w)``.
            targets: for each, ``boxes`` ``(n, 4)`` as x0 y0 x1 y1, ``labels`` ``(n,)`` and, where
                masks are predicted, ``masks`` ``(n, h, w)`` uint8; other entries are not looked at.
                Pictures without objects are background all over.
        """
        names = ("boxes", "masks") if self.predicts_masks else ("boxes",)
        shifted = [
            {name: target[name] for name in names}
            | {"labels": target["labels"] + self._first_label}
            for target in targets
        ]
        losses: dict[str, Tensor] = self.model(_as_fractions(images), shifted)
        return losses

    def detect(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Detections of each picture, the surest first, in evaluation mode.

        Args:
            images: uint8 ``(3, h, w)``.

        Returns:
            ``boxes`` ``(n, 4)`` float32 in pixels of the picture as it came, ``scores``, ``labels``
            and, where masks are predicted, ``masks`` ``(n, h, w)`` bool.
        """
        found: list[dict[str, Tensor]] = self.model(_as_fractions(images))
        return [d | {"labels": d["labels"] - self._first_label} for d in found]


def build_detector(
    head: HeadConfig,
    sizes: InputConfig,
    features: StageFeatures,
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    square: int | None = None,
) -> Detector:
    """A detector with fresh weights around ``features``.

    Args:
        head: which one, and its sizes.
        sizes: at which pictures enter the backbone.
        features: the backbone; everything in the detector but ``features.model`` is head.
        num_classes: without background.
        mean: of the backbone's preprocessing, for pixels from 0 to 1.
        std: as ``mean``.
        square: side of the square that a ViT was built for, pixels; None for a Swin.

    Raises:
        ConfigError: there is no such detector.
    """
    if head.name not in of_task("detection"):
        raise ConfigError([HEADS.unknown(head.name, of_task("detection"))])
    one_stage = head.name == "retinanet"
    pyramid = Pyramid(features, head.channels, two_stage=not one_stage)
    resizing = Resizing(sizes, square, mean, std)
    if one_stage:
        model = _retinanet(head, pyramid, num_classes)
        model.transform = resizing
    else:
        regions = _region_heads(head, pyramid, num_classes + 1)
        model = GeneralizedRCNN(pyramid, _proposals(head, pyramid), regions, resizing)
    return Detector(model, predicts_masks=masks_of(head.name))


class _Float32RetinaNetHead(RetinaNetHead):
    """torchvision's, with outputs in float32 (see :class:`Float32`) and He's initialisation.

    The paper draws all weights with deviation 0.01. Each of the four convolutions of a tower then
    halves the signal at 256 channels and quarters it at 64, where hundreds of steps teach it
    nothing. The last layers, which set the prior, stay as in the paper.
    """

    def __init__(self, channels: int, anchors: int, num_classes: int) -> None:
        super().__init__(channels, anchors, num_classes)
        for tower in (self.classification_head.conv, self.regression_head.conv):
            for layer in tower.modules():
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, x: list[Tensor]) -> dict[str, Tensor]:
        return {name: output.float() for name, output in super().forward(x).items()}


def _retinanet(head: HeadConfig, pyramid: Pyramid, num_classes: int) -> RetinaNet:
    """RetinaNet (arXiv 1708.02002) with torchvision's settings."""
    anchors = LevelAnchors(pyramid.strides, head.anchor_scale, RETINANET_SIZES)
    (per_place,) = set(anchors.num_anchors_per_location())
    return RetinaNet(
        pyramid,
        num_classes,
        anchor_generator=anchors,
        head=_Float32RetinaNetHead(head.channels, per_place, num_classes),
        score_thresh=head.score_threshold,
        nms_thresh=head.nms_iou,
        detections_per_img=head.max_detections,
    )


def _proposals(head: HeadConfig, pyramid: Pyramid) -> RegionProposalNetwork:
    """The region proposal network (arXiv 1506.01497) with torchvision's settings."""
    best = {"training": 2000, "testing": 1000}
    return RegionProposalNetwork(
        LevelAnchors(pyramid.strides, head.anchor_scale),
        nn.Sequential(RPNHead(head.channels, len(ASPECT_RATIOS)), Float32()),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n=best,
        post_nms_top_n=best,
        nms_thresh=0.7,
    )


def _region_heads(head: HeadConfig, pyramid: Pyramid, outputs: int) -> RoIHeads:
    """What classifies and refines the proposals, with torchvision's settings.

    Args:
        outputs: classes and the background.
    """
    if head.name == "cascade_mask_rcnn":
        return CascadeHeads(head, outputs, pyramid.strides)
    masks: dict[str, Any] = {}
    if masks_of(head.name):
        masks = {
            "mask_roi_pool": RegionPool(pyramid.strides, MASK_PLACES),
            "mask_head": mask_head(head.channels),
            "mask_predictor": mask_predictor(head.channels, outputs),
        }
    return RoIHeads(
        RegionPool(pyramid.strides, BOX_PLACES),
        box_head(head.box, head.channels, head.hidden),
        nn.Sequential(FastRCNNPredictor(head.hidden, outputs), Float32()),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=head.regions,
        positive_fraction=POSITIVE_SHARE,
        bbox_reg_weights=None,
        score_thresh=head.score_threshold,
        nms_thresh=head.nms_iou,
        detections_per_img=head.max_detections,
        **masks,
    )


def _as_fractions(images: list[Tensor]) -> list[Tensor]:
    """Pixels from 0 to 1."""
    return [image.float() / 255 for image in images]
