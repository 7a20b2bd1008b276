"""Semantic segmentation: cross entropy per pixel, mean intersection over union."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vpeft_bench.heads.segmenters import Segmenter
from vpeft_bench.metrics.label_maps import LabelMapMetrics
from vpeft_bench.tasks.base import Task, Training

Batch = tuple[list[Tensor], list[Tensor]]


class Segmentation(Task):
    """One segmenter.

    Args:
        model: the segmenter.
        num_classes: classes of pixels.
        normalize: uint8 images to what the model reads, on the device.
        training: how it is trained.
    """

    model: Segmenter

    def __init__(
        self,
        model: Segmenter,
        num_classes: int,
        normalize: Callable[[Tensor], Tensor],
        training: Training | None = None,
    ) -> None:
        super().__init__(model, training)
        self.watch(model.decoder)
        self.normalize = normalize
        self.scores = LabelMapMetrics(num_classes)

    def loss(self, batch: Batch) -> Tensor:
        """The sum of the segmenter's losses."""
        images, maps = batch
        losses = self.model.losses(self.normalize(torch.stack(images)), torch.stack(maps))
        return torch.stack(list(losses.values())).sum()

    def score(self, batch: Batch) -> None:
        """Segment every picture at its own size, and count its pixels."""
        images, truths = batch
        found = self.segment(images, truths)
        self.on_prediction(found)
        for predicted, truth in zip(found, truths, strict=True):
            self.scores.update(predicted, truth)

    def segment(self, images: list[Tensor], truths: list[Tensor]) -> list[Tensor]:
        """uint8 images ``(3, h, w)`` to classes ``(H, W)`` uint8, at the sizes of the truths."""
        sizes = [(truth.shape[0], truth.shape[1]) for truth in truths]
        return self.model.segment_batch([self.normalize(image[None])[0] for image in images], sizes)

    def forget(self) -> None:
        """Start anew."""
        self.scores.reset()

    def metrics(self) -> dict[str, float | None]:
        """mIoU, mAcc and aAcc."""
        return self.scores.compute()

    def scored(self) -> Tensor:
        """Pairs of classes."""
        return self.scores.pixels

    def combine(self, parts: Sequence[Tensor]) -> None:
        """Add up."""
        self.scores.pixels = torch.stack(list(parts)).sum(dim=0)

    def per_class(self) -> list[dict[str, float | None]]:
        """Pixels of each class, IoU and accuracy."""
        return self.scores.per_class()

    def confusion(self) -> Tensor:
        """``(K, K)`` pixels by true and predicted class."""
        return self.scores.pixels
