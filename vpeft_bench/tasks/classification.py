"""Image classification: cross entropy, top-1 and mean per-class accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from vpeft_bench.config import TrainConfig
from vpeft_bench.tasks.optim import adamw, warmup_cosine

Batch = tuple[Tensor, Tensor]


class Classification(pl.LightningModule):
    """One classifier and its training.

    Args:
        model: images ``(B, 3, H, W)`` to logits ``(B, C)``.
        parameters: what the optimizer trains.
        num_classes: C.
        normalize: uint8 images to what the model reads, on the device.
        train_config: the optimisation.
        steps_per_epoch: batches per epoch, for the schedule.
        penalty: gives a further term of the training loss, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Sequence[nn.Parameter],
        num_classes: int,
        normalize: Callable[[Tensor], Tensor],
        train_config: TrainConfig,
        steps_per_epoch: int,
        penalty: Callable[[], Tensor | None] = lambda: None,
    ) -> None:
        super().__init__()
        self.strict_loading = False  # checkpoints leave the frozen weights out
        self.model = model
        self.normalize = normalize
        self.train_config = train_config
        self.steps_per_epoch = steps_per_epoch
        self.penalty = penalty
        self._trained = list(parameters)
        self._frozen = {n for n, p in self.named_parameters() if not p.requires_grad}
        self.loss = nn.CrossEntropyLoss(label_smoothing=train_config.label_smoothing)
        self.top1 = MulticlassAccuracy(num_classes, average="micro")
        self.per_class = MulticlassAccuracy(num_classes, average="none")
        self.images_per_class = torch.zeros(num_classes, dtype=torch.long)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 images ``(B, 3, H, W)`` to logits ``(B, C)``."""
        logits: Tensor = self.model(self.normalize(images))
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross entropy of one batch, and the penalty where there is one."""
        images, labels = batch
        loss: Tensor = self.loss(self(images), labels)
        penalty = self.penalty()
        return loss if penalty is None else loss + penalty

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count what is right."""
        images, labels = batch
        logits = self(images)
        self.top1.update(logits, labels)
        self.per_class.update(logits, labels)
        self.images_per_class += torch.bincount(labels.cpu(), minlength=len(self.images_per_class))

    test_step = validation_step

    def on_validation_epoch_start(self) -> None:
        """Forget the last evaluation."""
        self.top1.reset()
        self.per_class.reset()
        self.images_per_class.zero_()

    on_test_epoch_start = on_validation_epoch_start

    def accuracies(self) -> dict[str, float]:
        """Percent, of the last evaluation: ``top1``, and the mean over the classes that occur."""
        occurring = self.images_per_class > 0
        per_class = self.per_class.compute().cpu()[occurring]
        return {
            "top1": 100.0 * self.top1.compute().item(),
            "mean_per_class_accuracy": 100.0 * per_class.mean().item(),
        }

    def configure_optimizers(self) -> Any:
        """AdamW on the trained parameters, warm-up and cosine per step."""
        optimizer = adamw(self._trained, self.train_config)
        schedule = warmup_cosine(optimizer, self.train_config, self.steps_per_epoch)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what changes: trained parameters and buffers, not the frozen weights."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {n: t for n, t in state.items() if n not in self._frozen}
