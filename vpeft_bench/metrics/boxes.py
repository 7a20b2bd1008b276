"""Average precision of detected boxes and masks: COCO's, and Pascal VOC's where that is asked."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from vpeft_bench.metric_names import BoxMetric
from vpeft_bench.metrics.voc import Found, There, voc_ap50

logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)  # it logs a table of its own

# As pycocotools has them: torchmetrics' own are rounded to float32 on the way.
IOU_LEVELS = np.linspace(0.5, 0.95, 10).tolist()
RECALL_LEVELS = np.linspace(0.0, 1.0, 101).tolist()

BOX_KEYS = {
    "box_ap": "map",
    "box_ap50": "map_50",
    "box_ap75": "map_75",
    "box_ap_small": "map_small",
    "box_ap_medium": "map_medium",
    "box_ap_large": "map_large",
}
MASK_KEYS = {"mask_ap": "map", "mask_ap50": "map_50", "mask_ap75": "map_75"}

Picture = Mapping[str, Tensor]


class BoxMetrics:
    """Keeps all detections and objects of a split, on the CPU, masks as run lengths.

    Args:
        num_classes: K.
        masks: whether masks are predicted.
        metric: which number is the headline.
    """

    def __init__(self, num_classes: int, masks: bool, metric: BoxMetric) -> None:
        self.num_classes = num_classes
        self.masks = masks
        self.metric = metric
        kinds: tuple[Literal["bbox", "segm"], ...] = ("bbox", "segm") if masks else ("bbox",)
        self._coco = MeanAveragePrecision(
            iou_type=kinds,
            iou_thresholds=IOU_LEVELS,
            rec_thresholds=RECALL_LEVELS,
            backend="faster_coco_eval",
        )
        # More than 100 detections of a picture are too many for COCO's rules, not for VOC's.
        self._coco.warn_on_many_detections = False
        self._found: list[Found] = []
        self._there: list[There] = []

    def reset(self) -> None:
        """Forget all pictures."""
        self._coco.reset()
        self._found.clear()
        self._there.clear()

    def update(self, predictions: Sequence[Picture], targets: Sequence[Picture]) -> None:
        """Add pictures.

        Args:
            predictions: of each picture ``boxes`` ``(N, 4)`` left, top, right, bottom in pixels,
                ``labels`` ``(N,)`` from 0, ``scores`` ``(N,)`` and, where masks are predicted,
                ``masks`` ``(N, H, W)``, true or 1 inside.
            targets: of each picture ``boxes``, ``labels`` and ``masks`` alike, ``ignored`` ``(N,)``
                for COCO's crowds and VOC's difficult objects, and ``areas`` ``(N,)`` in pixels, by
                which COCO's sizes are told apart.
        """
        predictions = [_on_cpu(prediction) for prediction in predictions]
        targets = [_on_cpu(target) for target in targets]
        self._coco.update(
            [self._for_coco(prediction) for prediction in predictions],
            [
                self._for_coco(target)
                | {"iscrowd": target["ignored"].long(), "area": target["areas"]}
                for target in targets
            ],
        )
        if self.metric not in (BoxMetric.voc07, BoxMetric.voc12):
            return
        for found, there in zip(predictions, targets, strict=True):
            self._found.append(
                Found(
                    found["boxes"].double().numpy(),
                    found["scores"].double().numpy(),
                    found["labels"].numpy(),
                )
            )
            self._there.append(
                There(
                    there["boxes"].double().numpy(),
                    there["labels"].numpy(),
                    there["ignored"].bool().numpy(),
                )
            )

    def compute(self) -> dict[str, float | None]:
        """Percent, the headline first; None where there is no object that counts."""
        values: dict[str, float | None] = {}
        if self.metric in (BoxMetric.voc07, BoxMetric.voc12):
            values[f"{self.metric.value}_ap50"] = voc_ap50(
                self._found,
                self._there,
                self.num_classes,
                eleven_points=self.metric is BoxMetric.voc07,
            )
        found = self._coco.compute() if self._coco.update_called else {}
        boxes = _percent(found, BOX_KEYS, "bbox_" if self.masks else "")
        masks = _percent(found, MASK_KEYS, "segm_") if self.masks else {}
        if self.metric is BoxMetric.coco_masks:
            return values | masks | boxes
        return values | boxes | masks

    def _for_coco(self, picture: Picture) -> dict[str, Tensor]:
        """What torchmetrics wants of a picture; float64, so that widths are not rounded."""
        keys = [key for key in ("labels", "scores") if key in picture]
        converted = {"boxes": picture["boxes"].double(), **{key: picture[key] for key in keys}}
        if self.masks:
            converted["masks"] = picture["masks"].to(torch.uint8)
        return converted


def _on_cpu(picture: Picture) -> dict[str, Tensor]:
    return {key: tensor.detach().cpu() for key, tensor in picture.items()}


def _percent(
    found: Mapping[str, Tensor], keys: Mapping[str, str], prefix: str
) -> dict[str, float | None]:
    """The values that ``keys`` names, in percent; -1, no object that counts, becomes None."""
    values = {name: float(found.get(prefix + key, -1.0)) for name, key in keys.items()}
    return {name: None if value < 0 else 100.0 * value for name, value in values.items()}
