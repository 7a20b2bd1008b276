"""Agreement of label maps: intersection over union and accuracies."""

from __future__ import annotations

import torch
from torch import Tensor

from vpeft_bench.config.sections import IGNORED_LABEL
from vpeft_bench.errors import VpeftBenchError


class LabelMapMetrics:
    """Counts pixels by true and predicted class over all pictures, then divides.

    The sums are over the whole split, as usual in the field: large pictures weigh more.

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.reset()

    def reset(self) -> None:
        """Forget all pictures."""
        self.pixels = torch.zeros(self.num_classes, self.num_classes, dtype=torch.int64)

    def update(self, prediction: Tensor, truth: Tensor) -> None:
        """Count the pixels of a picture, or of several.

        Args:
            prediction: integers ``(H, W)``, classes from 0.
            truth: integers ``(H, W)``; pixels of ``IGNORED_LABEL`` are not scored.

        Raises:
            VpeftBenchError: the sizes differ, or there is a class that is not among the K.
        """
        if prediction.shape != truth.shape:
            shapes = f"{tuple(prediction.shape)}, the truth {tuple(truth.shape)}"
            raise VpeftBenchError(f"the predicted label map is {shapes}")
        known = truth.cpu() != IGNORED_LABEL
        rows, columns = truth.cpu()[known].long(), prediction.cpu()[known].long()
        for name, labels in (("truth", rows), ("prediction", columns)):
            if len(labels) and not 0 <= labels.min() <= labels.max() < self.num_classes:
                wrong = labels[(labels < 0) | (labels >= self.num_classes)][0]
                raise VpeftBenchError(
                    f"class {int(wrong)} in the {name}, but there are {self.num_classes} classes"
                )
        pairs = torch.bincount(rows * self.num_classes + columns, minlength=self.num_classes**2)
        self.pixels += pairs.view(self.num_classes, self.num_classes)

    def per_class_iou(self) -> list[float | None]:
        """Percent for each class; None for those neither in the truth nor in a prediction."""
        right, true, predicted = self._counts()
        return _shares(right, true + predicted - right)

    def per_class(self) -> list[dict[str, float | None]]:
        """Pixels of each class in the truth and in the predictions, IoU and accuracy in percent."""
        right, true, _ = self._counts()
        columns = {
            "pixels": self.pixels.sum(dim=1).tolist(),
            "predicted_pixels": self.pixels.sum(dim=0).tolist(),
            "iou": self.per_class_iou(),
            "accuracy": _shares(right, true),
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def compute(self) -> dict[str, float | None]:
        """Percent; None where no pixel was scored.

        ``miou``: mean IoU over the classes that occur in the truth or in a prediction.
        ``mean_accuracy``: mean share of its pixels found, over the classes of the truth (mAcc).
        ``pixel_accuracy``: share of all pixels (aAcc).
        """
        right, true, _ = self._counts()
        if not true.any():
            return {"miou": None, "mean_accuracy": None, "pixel_accuracy": None}
        ious = [iou for iou in self.per_class_iou() if iou is not None]
        there = true > 0
        return {
            "miou": sum(ious) / len(ious),
            "mean_accuracy": 100.0 * float((right[there] / true[there]).mean()),
            "pixel_accuracy": 100.0 * float(right.sum() / true.sum()),
        }

    def _counts(self) -> tuple[Tensor, Tensor, Tensor]:
        """(K,) float64 pixels of each class: right, in the truth, predicted."""
        pixels = self.pixels.double()
        return pixels.diagonal(), pixels.sum(dim=1), pixels.sum(dim=0)


def _shares(parts: Tensor, wholes: Tensor) -> list[float | None]:
    """Percent; None where there is nothing of which it could be a share."""
    shares = (100.0 * parts / wholes.clamp(min=1)).tolist()
    return [share if whole else None for share, whole in zip(shares, wholes, strict=True)]
