"""What is measured on a split, under which name, and what it is called in print.

All of it is in percent, and more is better. A task's first metric is its headline: what runs are
ranked by. A package may add metrics of a classifier: each is computed in every evaluation, recorded
and shown beside the headline. Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from vpeft_bench.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor


class BoxMetric(Enum):
    """The average precision that a detection data set is known by."""

    coco = "coco"
    """Of boxes, mean over IoU 0.50 to 0.95; of masks, where predicted, as well."""
    coco_masks = "coco_masks"
    """The same, with the average precision of masks as the headline."""
    voc07 = "voc07"
    """At IoU 0.50, at eleven levels of recall."""
    voc12 = "voc12"
    """At IoU 0.50, area below the curve."""


_COCO_TITLES = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "AP small",
    "ap_medium": "AP medium",
    "ap_large": "AP large",
    "ar1": "AR1",
    "ar10": "AR10",
    "ar100": "AR100",
    "ar_small": "AR small",
    "ar_medium": "AR medium",
    "ar_large": "AR large",
    "ap_all_detections": "AP of all detections",
    "ar_all_detections": "AR of all detections",
}


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        title: what it is called in print.
        beside: headlines beside which tables show it; the files have all metrics.
        of_pairs: for a classifier, its value in percent from the ``(C, C)`` counts of pictures by
            true and predicted class; NaN where it is not defined. None: a task computes it itself.
    """

    title: str
    beside: tuple[str, ...] = ()
    of_pairs: Callable[[Tensor], float] | None = None


_BESIDE = {
    "mean_per_class_accuracy": ("top1",),
    "box_ap": ("mask_ap", "voc07_ap50", "voc12_ap50"),
    "mask_ap": ("box_ap",),
    "box_ap50": ("box_ap",),
    "mask_ap50": ("mask_ap",),
    "box_ap_all_detections": ("box_ap",),
    "mask_ap_all_detections": ("mask_ap",),
    "mean_accuracy": ("miou",),
    "pixel_accuracy": ("miou",),
}
_TITLES = {
    "top1": "top-1",
    "mean_per_class_accuracy": "mean per class",
    **{
        f"{kind}_{name}": f"{kind} {title}"
        for kind in ("box", "mask")
        for name, title in _COCO_TITLES.items()
    },
    "voc07_ap50": "AP50 (VOC 2007)",
    "voc12_ap50": "AP50 (VOC 2012)",
    "miou": "mIoU",
    "mean_accuracy": "mAcc",
    "pixel_accuracy": "aAcc",
}

METRICS: Registry[Metric] = Registry(
    "metric", {name: Metric(title, _BESIDE.get(name, ())) for name, title in _TITLES.items()}
)


def title(name: str) -> str:
    """What a metric is called in print."""
    return METRICS.get(name).title


def beside(headline: str) -> list[str]:
    """The metrics that tables show beside a headline, in the order of their list."""
    return [name for name in METRICS.names() if headline in METRICS.get(name).beside]
