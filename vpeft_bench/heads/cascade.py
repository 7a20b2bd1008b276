"""The RoI heads of Cascade Mask R-CNN (arXiv 1712.00726): three detectors, each stricter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_loss
from torchvision.ops import clip_boxes_to_image

from vpeft_bench.heads.regions import (
    BOX_PLACES,
    MASK_PLACES,
    POSITIVE_SHARE,
    RegionPool,
    box_head,
    mask_head,
    mask_predictor,
)


@dataclass(frozen=True)
class StageSettings:
    """What makes a stage.

    Attributes:
        iou: a proposal that overlaps an object at least this much is a positive one.
        box_weights: what shifts and log-scales of boxes are multiplied with.
        loss_weight: of the stage's losses in the sum.
    """

    iou: float
    box_weights: tuple[float, float, float, float]
    loss_weight: float


STAGES = (
    StageSettings(0.5, (10.0, 10.0, 5.0, 5.0), 1.0),
    StageSettings(0.6, (20.0, 20.0, 10.0, 10.0), 0.5),
    StageSettings(0.7, (30.0, 30.0, 15.0, 15.0), 0.25),
)


class Stage(nn.Module):
    """The heads of one stage; its boxes are the same whatever the class."""

    def __init__(self, channels: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.box_head = box_head(channels, hidden)
        self.classifier = nn.Linear(hidden, outputs)
        self.regressor = nn.Linear(hidden, 4)
        self.mask_head = mask_head(channels)
        self.mask_predictor = mask_predictor(channels, outputs)

    def boxes(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled regions to class logits ``(n, outputs)`` and box changes ``(n, 4)``, float32."""
        hidden = self.box_head(regions)
        return self.classifier(hidden).float(), self.regressor(hidden).float()

    def masks(self, regions: Tensor) -> Tensor:
        """Pooled regions to mask logits ``(n, outputs, 28, 28)``."""
        logits: Tensor = self.mask_predictor(self.mask_head(regions))
        return logits


class CascadeHeads(RoIHeads):
    """Three stages, each of which refines the boxes that the next one reads.

    In training every stage samples ``regions`` of its proposals, a quarter of them positive; the
    objects themselves are among them. Box changes are learned with smooth L1 (beta 1).

    In evaluation the paper's ensemble decides on the class: the classifiers of all three stages
    read the third stage's proposals, and their probabilities are averaged. (Common toolboxes
    average the scores each stage gave its own proposals.) Boxes are the third stage's; masks are
    the average of the three mask heads on the final boxes.

    Args:
        channels: width of the pyramid.
        hidden: of the box heads.
        outputs: classes, the background at 0 included.
        strides: of the pyramid.
        score_threshold: detections below it are dropped.
        nms_iou: of two detections of a class that overlap more than this, the weaker is dropped.
        max_detections: most detections of a picture.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        outputs: int,
        strides: tuple[float, ...],
        regions: int,
        score_threshold: float,
        nms_iou: float,
        max_detections: int,
    ) -> None:
        super().__init__(
            RegionPool(strides, BOX_PLACES),
            None,
            None,
            fg_iou_thresh=STAGES[0].iou,
            bg_iou_thresh=STAGES[0].iou,
            batch_size_per_image=regions,
            positive_fraction=POSITIVE_SHARE,
            bbox_reg_weights=STAGES[0].box_weights,
            score_thresh=score_threshold,
            nms_thresh=nms_iou,
            detections_per_img=max_detections,
            mask_roi_pool=RegionPool(strides, MASK_PLACES),
        )
        self.stages = nn.ModuleList(Stage(channels, hidden, outputs) for _ in STAGES)

    def has_mask(self) -> bool:
        """Always; torchvision then insists on masks in the targets."""
        return True

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """As torchvision's: detections in evaluation, losses in training."""
        if targets is not None and self.training:
            return [], self._losses(features, proposals, image_shapes, targets)
        return self._detections(features, proposals, image_shapes), {}

    def _entered_stages(self) -> Iterator[Stage]:
        """The stages, with torchvision's matching and decoding set to each in its turn."""
        for stage, settings in zip(self._stages(), STAGES, strict=True):
            self.proposal_matcher = Matcher(settings.iou, settings.iou)
            self.box_coder = BoxCoder(settings.box_weights)
            yield stage

    def _stages(self) -> list[Stage]:
        return list(self.stages)  # type: ignore[arg-type]  # all are

    def _refined(
        self, changes: Tensor, boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> list[Tensor]:
        """Each picture's boxes after their changes ``(n, 4)``, within the picture."""
        refined = self.box_coder.decode_single(changes, torch.cat(boxes))
        split = refined.split([len(x) for x in boxes])
        return [clip_boxes_to_image(x, size) for x, size in zip(split, image_shapes, strict=True)]

    def _losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        for number, stage in enumerate(self._entered_stages(), start=1):
            boxes, matched, labels, changes = self.select_training_samples(proposals, targets)
            logits, predicted = stage.boxes(self.box_roi_pool(features, boxes, image_shapes))
            stage_losses = {
                "loss_classifier": functional.cross_entropy(logits, torch.cat(labels)),
                "loss_box_reg": box_loss(predicted, torch.cat(changes), torch.cat(labels)),
                "loss_mask": self._mask_loss(
                    stage, features, image_shapes, targets, boxes, matched, labels
                ),
            }
            weight = STAGES[number - 1].loss_weight
            losses |= {f"{name}_{number}": weight * x for name, x in stage_losses.items()}
            proposals = self._refined(predicted.detach(), boxes, image_shapes)
        return losses

    def _mask_loss(
        self,
        stage: Stage,
        features: dict[str, Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]],
        boxes: list[Tensor],
        matched: list[Tensor],
        labels: list[Tensor],
    ) -> Tensor:
        """On the positive samples alone."""
        positive = [label > 0 for label in labels]
        boxes = [x[chosen] for x, chosen in zip(boxes, positive, strict=True)]
        logits = stage.masks(self.mask_roi_pool(features, boxes, image_shapes))
        loss: Tensor = maskrcnn_loss(
            logits,
            boxes,
            [target["masks"] for target in targets],
            [target["labels"] for target in targets],
            [x[chosen] for x, chosen in zip(matched, positive, strict=True)],
        )
        return loss

    def _detections(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        for stage in self._entered_stages():
            boxes = proposals
            regions = self.box_roi_pool(features, boxes, image_shapes)
            _, changes = stage.boxes(regions)
            proposals = self._refined(changes, boxes, image_shapes)
        probabilities = torch.stack([s.boxes(regions)[0].softmax(1) for s in self._stages()])
        scores = probabilities.mean(0).log()  # what comes next takes the softmax
        outputs = scores.shape[1]
        found = self.postprocess_detections(scores, changes.repeat(1, outputs), boxes, image_shapes)
        detections = [
            {"boxes": boxes, "scores": scores, "labels": labels}
            for boxes, scores, labels in zip(*found, strict=True)
        ]
        final, labels = ([d[name] for d in detections] for name in ("boxes", "labels"))
        regions = self.mask_roi_pool(features, final, image_shapes)
        masks = torch.stack([stage.masks(regions).sigmoid() for stage in self._stages()]).mean(0)
        chosen = masks[torch.arange(len(masks), device=masks.device), torch.cat(labels)][:, None]
        for detection, mask in zip(detections, chosen.split([len(x) for x in final]), strict=True):
            detection["masks"] = mask
        return detections


def box_loss(predicted: Tensor, changes: Tensor, labels: Tensor) -> Tensor:
    """Smooth L1 of the positive samples' box changes ``(n, 4)``, over the number of all samples."""
    positive = labels > 0
    loss = functional.smooth_l1_loss(predicted[positive], changes[positive], reduction="sum")
    return loss / max(len(labels), 1)
