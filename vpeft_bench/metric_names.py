"""What is measured on a split, under which name, and what it is called in print.

All of it is in percent. A task's first metric is its headline: what runs are ranked by.
"""

from __future__ import annotations

from enum import Enum


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

TITLES = {
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

# Shown beside a headline; the files have all of them.
BESIDE = {
    "top1": ("mean_per_class_accuracy",),
    "box_ap": ("box_ap50", "mask_ap", "box_ap_all_detections"),
    "mask_ap": ("mask_ap50", "box_ap", "mask_ap_all_detections"),
    "voc07_ap50": ("box_ap",),
    "voc12_ap50": ("box_ap",),
    "miou": ("mean_accuracy", "pixel_accuracy"),
}
