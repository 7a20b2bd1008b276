"""Average precision at IoU 0.50 by the rules of the Pascal VOC challenges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IOU = 0.5
RECALL_LEVELS = 11

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Found:
    """The detections of one picture.

    Attributes:
        boxes: (N, 4) left, top, right, bottom; right and bottom are exclusive.
        scores: (N,).
        labels: (N,) classes from 0.
    """

    boxes: Floats
    scores: Floats
    labels: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class There:
    """The objects of one picture.

    Attributes:
        boxes: (N, 4), as those of :class:`Found`.
        labels: (N,) classes from 0.
        ignored: (N,) difficult objects: neither counted, nor is it an error to detect them.
    """

    boxes: Floats
    labels: NDArray[np.int64]
    ignored: NDArray[np.bool_]


def voc_ap50(
    found: Sequence[Found], there: Sequence[There], num_classes: int, *, eleven_points: bool
) -> float | None:
    """The mean of :func:`voc_ap50_by_class` over the classes where it is defined; else None."""
    by_class = voc_ap50_by_class(found, there, num_classes, eleven_points=eleven_points)
    defined = [value for value in by_class if value is not None]
    return float(np.mean(defined)) if defined else None


def voc_ap50_by_class(
    found: Sequence[Found], there: Sequence[There], num_classes: int, *, eleven_points: bool
) -> list[float | None]:
    """Average precision of each class, in percent; None where there is no object that counts.

    Detections are taken by falling score, equal ones in the order of the pictures. Each belongs to
    the object of its class that it overlaps most, and is right if that is by an IoU of 0.5 or more
    and no other detection came first; a second detection of an object is wrong.

    Args:
        found: of each picture.
        there: of each picture.
        num_classes: K.
        eleven_points: precision at recall 0, 0.1, ..., 1 (VOC 2007); else the area below the
            curve (from VOC 2010 on).
    """
    precisions: list[float | None] = []
    for label in range(num_classes):
        right, objects = _judged(found, there, label)
        if not objects:
            precisions.append(None)
            continue
        precision = average_precision(right, objects, eleven_points=eleven_points)
        precisions.append(100.0 * precision)
    return precisions


def average_precision(right: NDArray[np.bool_], objects: int, *, eleven_points: bool) -> float:
    """Of the detections of a class by falling score, out of ``objects`` that count; from 0 to 1."""
    hits = np.cumsum(right)
    # The best precision at this recall or a higher one.
    precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
    if eleven_points:
        # Recall against the levels in integers: 3 of 10 do reach 0.3.
        levels = np.arange(RECALL_LEVELS) * objects
        first = np.searchsorted(hits * (RECALL_LEVELS - 1), levels)
        return float(np.append(precision, 0.0)[first].sum()) / RECALL_LEVELS
    return float(precision[right].sum()) / objects


def _judged(
    found: Sequence[Found], there: Sequence[There], label: int
) -> tuple[NDArray[np.bool_], int]:
    """Whether each detection of a class that counts is right, and the objects that count."""
    objects = 0
    scores, right, counted = [], [], []
    for detections, truth in zip(found, there, strict=True):
        of_class = truth.labels == label
        ignored = truth.ignored[of_class]
        objects += int((~ignored).sum())
        kept = detections.labels == label
        if not kept.any():
            continue
        order = np.argsort(-detections.scores[kept], kind="stable")
        overlaps = _iou(detections.boxes[kept][order], truth.boxes[of_class])
        matched = np.zeros(len(ignored), dtype=bool)
        for row in overlaps:
            best = int(row.argmax()) if len(row) else -1
            hit = best >= 0 and bool(row[best] >= IOU)
            right.append(hit and not ignored[best] and not matched[best])
            counted.append(not (hit and ignored[best]))
            if hit:
                matched[best] = True
        scores.append(detections.scores[kept][order])
    if not right:
        return np.zeros(0, dtype=bool), objects
    order = np.argsort(-np.concatenate(scores), kind="stable")
    return np.array(right)[order][np.array(counted)[order]], objects


def _iou(boxes: Floats, others: Floats) -> Floats:
    """(N, M) intersection over union of (N, 4) and (M, 4) boxes."""
    top_left = np.maximum(boxes[:, None, :2], others[None, :, :2])
    bottom_right = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    common = (bottom_right - top_left).clip(min=0).prod(axis=2)
    areas, other_areas = ((b[:, 2:] - b[:, :2]).prod(axis=1) for b in (boxes, others))
    union = areas[:, None] + other_areas[None, :] - common
    overlaps: Floats = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return overlaps
