"""The RoI heads of Cascade Mask R-CNN (arXiv 1712.00726): three detectors, each stricter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_loss
from torchvision.ops import clip_boxes_to_image, generalized_box_iou_loss

from vpeft_bench.config.sections import BoxLoss, HeadConfig
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


GIOU_WEIGHT = 10.0
"""Of the box loss beside the classification, as in the published COCO rows."""


class Stage(nn.Module):
    """The heads of one stage.

    Args:
        head: its kind and sizes.
        outputs: classes, the background at 0 included.
    """

    def __init__(self, head: HeadConfig, outputs: int) -> None:
        super().__init__()
        self.box_head = box_head(head.box, head.channels, head.hidden)
        self.classifier = nn.Linear(head.hidden, outputs)
        self.boxes_per_region = outputs - 1 if head.class_boxes else 1
        self.regressor = nn.Linear(head.hidden, 4 * self.boxes_per_region)
        if head.box == "4conv1fc":  # drawn as for the published rows, biases included
            for layer, deviation in ((self.classifier, 0.01), (self.regressor, 0.001)):
                nn.init.normal_(layer.weight, std=deviation)
                nn.init.zeros_(layer.bias)
        self.mask_head = mask_head(head.channels)
        self.mask_predictor = mask_predictor(head.channels, outputs)

    def boxes(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled regions to class logits and box changes, both float32.

        Returns:
            ``(n, outputs)``, and ``(n, outputs, 4)``: for the background and each class. The
            background has no box of its own: its changes are those of the likeliest class.
        """
        hidden = self.box_head(regions)
        logits = self.classifier(hidden).float()
        changes = self.regressor(hidden).float().unflatten(1, (self.boxes_per_region, 4))
        changes = changes.expand(-1, logits.shape[1] - 1, 4)
        likeliest = of_class(changes, logits[:, 1:].argmax(1))
        return logits, torch.cat((likeliest[:, None], changes), dim=1)

    def masks(self, regions: Tensor) -> Tensor:
        """Pooled regions to mask logits ``(n, outputs, 28, 28)``."""
        logits: Tensor = self.mask_predictor(self.mask_head(regions))
        return logits


class CascadeHeads(RoIHeads):
    """Three stages, each of which refines the boxes that the next one reads.

    In training every stage samples ``head.regions`` of its proposals, a quarter of them positive;
    the objects themselves are among them. With ``head.class_boxes`` the next stage reads a positive
    region's box of its true class, and another's of the class that is likeliest.

    In evaluation the paper's ensemble decides on the class: the classifiers of all three stages
    read the third stage's proposals, and their probabilities are averaged. (Common toolboxes
    average the scores each stage gave its own proposals.) Boxes are the third stage's; masks are
    the average of the three mask heads on the final boxes.

    Args:
        head: kinds, sizes and thresholds.
        outputs: classes, the background at 0 included.
        strides: of the pyramid.
    """

    def __init__(self, head: HeadConfig, outputs: int, strides: tuple[float, ...]) -> None:
        super().__init__(
            RegionPool(strides, BOX_PLACES),
            None,
            None,
            fg_iou_thresh=STAGES[0].iou,
            bg_iou_thresh=STAGES[0].iou,
            batch_size_per_image=head.regions,
            positive_fraction=POSITIVE_SHARE,
            bbox_reg_weights=STAGES[0].box_weights,
            score_thresh=head.score_threshold,
            nms_thresh=head.nms_iou,
            detections_per_img=head.max_detections,
            mask_roi_pool=RegionPool(strides, MASK_PLACES),
        )
        self.stages = nn.ModuleList(Stage(head, outputs) for _ in STAGES)
        self.box_loss = head.box_loss

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
            boxes, matched, labels, wanted = self.select_training_samples(proposals, targets)
            logits, changes = stage.boxes(self.box_roi_pool(features, boxes, image_shapes))
            together = torch.cat(labels)
            predicted = of_class(changes, together)
            stage_losses = {
                "loss_classifier": functional.cross_entropy(logits, together),
                "loss_box_reg": self._box_loss(predicted, torch.cat(wanted), boxes, together),
                "loss_mask": self._mask_loss(
                    stage, features, image_shapes, targets, boxes, matched, labels
                ),
            }
            weight = STAGES[number - 1].loss_weight
            losses |= {f"{name}_{number}": weight * x for name, x in stage_losses.items()}
            proposals = self._refined(predicted.detach(), boxes, image_shapes)
        return losses

    def _box_loss(
        self, changes: Tensor, wanted: Tensor, boxes: list[Tensor], labels: Tensor
    ) -> Tensor:
        """Of the positive samples' changes ``(n, 4)``, over the number of all samples."""
        positive = labels > 0
        samples = max(len(labels), 1)
        if self.box_loss is BoxLoss.smooth_l1:
            off = functional.smooth_l1_loss(changes[positive], wanted[positive], reduction="sum")
            return off / samples
        regions = torch.cat(boxes)[positive]
        predicted, true = (
            self.box_coder.decode_single(of_regions[positive], regions)
            for of_regions in (changes, wanted)
        )
        apart: Tensor = generalized_box_iou_loss(predicted, true, reduction="sum")
        return GIOU_WEIGHT * apart / samples

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
            proposals = self._refined(changes[:, 0], boxes, image_shapes)
        probabilities = torch.stack([s.boxes(regions)[0].softmax(1) for s in self._stages()])
        scores = probabilities.mean(0).log()  # what comes next takes the softmax
        found = self.postprocess_detections(scores, changes.flatten(1), boxes, image_shapes)
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


def of_class(changes: Tensor, labels: Tensor) -> Tensor:
    """Of ``(n, classes, 4)`` the changes ``(n, 4)`` of each region's own class ``(n,)``."""
    return changes[torch.arange(len(labels), device=labels.device), labels]
