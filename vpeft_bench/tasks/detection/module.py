"""Detection and instance segmentation: a detector's own losses, average precision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vpeft_bench.heads.detectors import Detector
from vpeft_bench.metric_names import BoxMetric
from vpeft_bench.metrics.boxes import BoxMetrics
from vpeft_bench.tasks.base import Task, Training

Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


class Detection(Task):
    """One detector.

    Args:
        model: the detector; it takes uint8 pictures of any size.
        num_classes: classes of objects, without the background.
        metric: the headline.
        max_detections: most detections of a picture that the detector gives.
        training: how it is trained.
    """

    model: Detector

    def __init__(
        self,
        model: Detector,
        num_classes: int,
        metric: BoxMetric,
        max_detections: int,
        training: Training | None = None,
    ) -> None:
        super().__init__(model, training)
        self.watch(*model.predictors())
        self.scores = BoxMetrics(num_classes, model.predicts_masks, metric, max_detections)

    def loss(self, batch: Batch) -> Tensor:
        """The sum of the detector's losses."""
        images, targets = batch
        losses = self.model.losses(images, targets)
        return torch.stack(list(losses.values())).sum()

    def score(self, batch: Batch) -> None:
        """Detect, and keep what was found beside what there is."""
        images, targets = batch
        found = self.model.detect(images)
        self.on_prediction(found)
        self.scores.update(found, targets)

    def forget(self) -> None:
        """Start anew."""
        self.scores.reset()

    def metrics(self) -> dict[str, float | None]:
        """Average precision of boxes, and of masks where the head predicts them."""
        return self.scores.compute()

    def scored(self) -> BoxMetrics:
        """All detections and objects."""
        return self.scores

    def combine(self, parts: Sequence[BoxMetrics]) -> None:
        """Picture after picture."""
        self.scores.reset()
        for part in parts:
            self.scores.extend(part)

    def per_class(self) -> list[dict[str, float | None]]:
        """Objects and detections of each class, and their average precision."""
        return self.scores.per_class()
