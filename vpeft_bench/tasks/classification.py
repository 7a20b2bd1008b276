"""Image classification: cross entropy, top-1 and mean per-class accuracy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from vpeft_bench.tasks.base import Task, Training

Inputs = Tensor | dict[str, Tensor]
"""uint8 images ``(B, 3, H, W)``, or the frozen features that the method reads, by name."""
Batch = tuple[Inputs, Tensor]


class Classification(Task):
    """One classifier.

    Args:
        model: images ``(B, 3, H, W)`` to logits ``(B, C)``; by ``resume``, frozen features as well.
        num_classes: C.
        normalize: uint8 images to what the model reads, on the device.
        training: how it is trained.
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        normalize: Callable[[Tensor], Tensor],
        training: Training | None = None,
    ) -> None:
        super().__init__(model, training)
        self.normalize = normalize
        smoothing = training.config.label_smoothing if training else 0.0
        self.cross_entropy = nn.CrossEntropyLoss(label_smoothing=smoothing)
        self.top1 = MulticlassAccuracy(num_classes, average="micro")
        self.per_class = MulticlassAccuracy(num_classes, average="none")
        self.images_per_class = torch.zeros(num_classes, dtype=torch.long)

    def forward(self, inputs: Inputs) -> Tensor:
        """Images or frozen features to logits ``(B, C)``."""
        logits: Tensor
        if isinstance(inputs, Tensor):
            logits = self.model(self.normalize(inputs))
            return logits
        features = {
            name: self.normalize(kept) if name == "images" else kept.float()
            for name, kept in inputs.items()
        }
        model: Any = self.model
        logits = model.resume(features)
        return logits

    def loss(self, batch: Batch) -> Tensor:
        """Cross entropy."""
        inputs, labels = batch
        loss: Tensor = self.cross_entropy(self(inputs), labels)
        return loss

    def score(self, batch: Batch) -> None:
        """Count what is right."""
        inputs, labels = batch
        logits = self(inputs)
        self.top1.update(logits, labels)
        self.per_class.update(logits, labels)
        self.images_per_class += torch.bincount(labels.cpu(), minlength=len(self.images_per_class))

    def forget(self) -> None:
        """Start counting anew."""
        self.top1.reset()
        self.per_class.reset()
        self.images_per_class.zero_()

    def metrics(self) -> dict[str, float | None]:
        """``top1``, and the mean accuracy over the classes that occur."""
        occurring = self.images_per_class > 0
        per_class = self.per_class.compute().cpu()[occurring]
        return {
            "top1": 100.0 * self.top1.compute().item(),
            "mean_per_class_accuracy": 100.0 * per_class.mean().item(),
        }
