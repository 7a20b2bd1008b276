"""Image classification: cross entropy; accuracy, and how far its probabilities can be believed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from timm.data.mixup import Mixup
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from vpeft_bench.metric_names import METRICS
from vpeft_bench.metrics.calibration import Calibration
from vpeft_bench.tasks.base import LabelledBatch, LabelledTask, Training


class Classification(LabelledTask):
    """One classifier.

    Args:
        model: images ``(B, 3, H, W)`` to logits ``(B, C)``; by ``resume``, frozen features as well.
        num_classes: C.
        normalize: uint8 images to what the model reads, on the device.
        training: how it is trained.
        mixup, cutmix: their alphas in training; 0: off.
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        normalize: Callable[[Tensor], Tensor],
        training: Training | None = None,
        *,
        mixup: float = 0.0,
        cutmix: float = 0.0,
    ) -> None:
        super().__init__(model, normalize, training)
        smoothing = training.config.label_smoothing if training else 0.0
        self.cross_entropy = nn.CrossEntropyLoss(label_smoothing=smoothing)
        self.pairs = MulticlassConfusionMatrix(
            num_classes,
            sync_on_compute=False,
            validate_args=False,  # labels were looked at when the data set was opened
        )
        self.calibration = Calibration()
        self.mix: Mixup | None = None
        if mixup or cutmix:  # the loss smooths labels: mixed ones as well
            self.mix = Mixup(mixup, cutmix, label_smoothing=0.0, num_classes=num_classes)

    def loss(self, batch: LabelledBatch) -> Tensor:
        """Cross entropy; of mixed pictures, with the classes of both in proportion."""
        inputs, labels = batch
        if self.mix is None:
            loss: Tensor = self.cross_entropy(self(inputs), labels)
            return loss
        assert isinstance(inputs, Tensor), "mixed pictures have no kept features"
        images, shares = self._mixed(self.normalize(inputs), labels)
        mixed_loss: Tensor = self.cross_entropy(self.model(images), shares)
        return mixed_loss

    def _mixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures ``(B, 3, H, W)`` mixed in pairs, and the shares of the classes ``(B, C)``.

        Of an odd batch the last picture stays as it is. timm draws from numpy's global generator:
        it is seeded from torch's, which is a function of (seed, step).
        """
        assert self.mix is not None
        even = len(labels) // 2 * 2
        shares = nn.functional.one_hot(labels, self.mix.num_classes).to(images.dtype)
        if not even:
            return images, shares
        before = np.random.get_state()  # noqa: NPY002
        np.random.seed(int(torch.randint(2**31, ())))  # noqa: NPY002
        try:
            mixed, mixed_shares = self.mix(images[:even].clone(), labels[:even])
        finally:
            np.random.set_state(before)  # noqa: NPY002
        rest = images[even:], shares[even:]
        return torch.cat([mixed, rest[0]]), torch.cat([mixed_shares.to(shares.dtype), rest[1]])

    def score(self, batch: LabelledBatch) -> None:
        """Count pairs of true and predicted class; logits ``(B, C)`` are the prediction."""
        inputs, labels = batch
        logits = self(inputs)
        self.note_outputs(logits)
        self.on_prediction(logits)
        self.pairs.update(logits, labels)
        self.calibration.add(logits, labels)

    def forget(self) -> None:
        """Start counting anew."""
        self.pairs.reset()
        self.calibration.forget()

    def metrics(self) -> dict[str, float | None]:
        """``top1``, the mean over the classes that occur, calibration, and what plug-ins add."""
        pairs = self.confusion()
        right, images = pairs.diagonal().double(), pairs.sum(dim=1).double()
        occurring = images > 0
        return {
            "top1": 100.0 * float(right.sum() / images.sum()),
            "mean_per_class_accuracy": 100.0 * float((right / images)[occurring].mean()),
            **self.calibration.values(),
            **{name: of_pairs(pairs) for name, of_pairs in _added()},
        }

    def scored(self) -> Any:
        """Pairs of classes, and the sums of calibration."""
        return self.confusion(), self.calibration.sums()

    def combine(self, parts: Sequence[Any]) -> None:
        """Add up."""
        self.forget()
        self.pairs.confmat += sum(pairs for pairs, _ in parts).to(self.device)
        self.pairs._update_count = 1  # or it would say that nothing was counted
        for _, sums in parts:
            self.calibration.add_sums(sums)

    def per_class(self) -> list[dict[str, float | None]]:
        """Images of each class, how many were taken for it, and the accuracy in percent."""
        pairs = self.confusion()
        columns = (pairs.sum(dim=1), pairs.sum(dim=0), pairs.diagonal())
        return [
            {
                "images": images,
                "predicted": predicted,
                "accuracy": 100.0 * right / images if images else None,
            }
            for images, predicted, right in zip(*(c.tolist() for c in columns), strict=True)
        ]

    def doubts(self) -> list[str]:
        """That guessing does as well: a rate too high can end so, with finite numbers."""
        pairs = self.confusion()
        right, most, images = pairs.diagonal().sum(), pairs.sum(dim=1).max(), pairs.sum()
        if int(right) > int(most):
            return []
        share = 100.0 * float(most / images)
        return [f"no better than the most frequent class for all, {share:.1f} %"]

    def confusion(self) -> Tensor:
        """``(C, C)`` images by true and predicted class."""
        pairs: Tensor = self.pairs.compute().cpu()
        return pairs


def _added() -> Iterator[tuple[str, Callable[[Tensor], float]]]:
    """The metrics that are computed from the pairs of classes alone."""
    for name in METRICS.names():
        if (of_pairs := METRICS.get(name).of_pairs) is not None:
            yield name, of_pairs
