"""COCO's average precision and recall, by a faster build of COCO's own code (faster_coco_eval)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LIMITS = (1, 10, 100)
"""So many detections of a class in a picture count, the strongest first."""
SIZES = ("all", "small", "medium", "large")
"""Of objects: below 32 x 32 pixels, below 96 x 96, and larger."""
LEVELS = {50: 0, 75: 5}
"""The place of an IoU, in hundredths, among the ten levels 0.50, 0.55, ..., 0.95."""

Floats = NDArray[np.float64]
RunLengths = dict[str, Any]
"""A mask in COCO's compressed form: ``size`` (H, W) and ``counts``, a text."""


@dataclass(frozen=True, eq=False)
class Found:
    """The detections of one picture.

    Attributes:
        boxes: (N, 4) left, top, width, height.
        scores: (N,).
        labels: (N,) classes from 0.
        masks: of each; None where none are predicted.
    """

    boxes: Floats
    scores: Floats
    labels: NDArray[np.int64]
    masks: list[RunLengths] | None


@dataclass(frozen=True, eq=False)
class There:
    """The objects of one picture.

    Attributes:
        boxes: (N, 4), as those of :class:`Found`.
        labels: (N,) classes from 0.
        crowds: (N,) bool: not counted as missed, and whatever is found in them does not count.
        areas: (N,) pixels, by which the sizes are told apart.
        masks: of each; None where none are predicted.
    """

    boxes: Floats
    labels: NDArray[np.int64]
    crowds: NDArray[np.bool_]
    areas: Floats
    masks: list[RunLengths] | None


@dataclass(frozen=True, eq=False)
class Scores:
    """Precision and recall, from 0 to 1, and -1 where there is no object that counts.

    Attributes:
        classes: (K,) those of which there is an object.
        limits: (M,) numbers of detections.
        precision: (10, 101, K, 4, M) by IoU, recall, class, size and limit.
        recall: (10, K, 4, M) the highest, alike.
    """

    classes: list[int]
    limits: list[int]
    precision: Floats
    recall: Floats

    def average_precision(
        self,
        *,
        level: int | None = None,
        size: str = "all",
        limit: int = 100,
        label: int | None = None,
    ) -> float | None:
        """Percent; of all IoU levels, sizes and classes where none is given."""
        chosen = self.precision if level is None else self.precision[[LEVELS[level]]]
        return _mean(self._of(chosen[..., SIZES.index(size), self.limits.index(limit)], label))

    def average_recall(
        self, *, size: str = "all", limit: int = 100, label: int | None = None
    ) -> float | None:
        """Percent; of all IoU levels, sizes and classes where none is given."""
        return _mean(self._of(self.recall[..., SIZES.index(size), self.limits.index(limit)], label))

    def _of(self, values: Floats, label: int | None) -> Floats:
        """The class is the last axis of ``values``."""
        if label is None:
            return values
        return values[..., [index for index, other in enumerate(self.classes) if other == label]]


def _mean(values: Floats) -> float | None:
    defined = values[values > -1]
    return 100.0 * float(np.mean(defined)) if len(defined) else None


def evaluate(
    found: Sequence[Found], there: Sequence[There], *, masks: bool, limits: Sequence[int] = LIMITS
) -> Scores:
    """Match detections with objects, class by class.

    Args:
        found: of each picture; equal scores count in this order.
        there: of each picture.
        masks: compare masks, not boxes.
        limits: numbers of detections of a class in a picture, rising.
    """
    # Imported here because it takes longer than a small evaluation.
    from faster_coco_eval import COCOeval_faster

    classes = sorted({label for picture in there for label in picture.labels.tolist()})
    if not classes:  # of which the evaluator makes an error
        shape = (0, len(SIZES), len(limits))
        return Scores([], list(limits), np.zeros((10, 101, *shape)), np.zeros((10, *shape)))
    objects = [_objects(picture) for picture in there]
    detections = [_detections(picture, masks) for picture in found]
    evaluator = COCOeval_faster(
        _indexed(objects, there, classes, masks),
        _indexed(detections, there, classes, masks),
        iouType="segm" if masks else "bbox",
        print_function=_silent,
    )
    evaluator.params.maxDets = list(limits)
    evaluator.evaluate()
    evaluator.accumulate()
    return Scores(classes, list(limits), evaluator.eval["precision"], evaluator.eval["recall"])


def _objects(picture: There) -> list[dict[str, Any]]:
    columns = (picture.labels, picture.boxes, picture.areas, picture.crowds)
    records = [
        {"category_id": label, "bbox": box, "area": area, "iscrowd": int(crowd)}
        for label, box, area, crowd in zip(*(c.tolist() for c in columns), strict=True)
    ]
    return _with_masks(records, picture.masks)


def _detections(picture: Found, masks: bool) -> list[dict[str, Any]]:
    areas = picture.boxes[:, 2] * picture.boxes[:, 3]
    if masks:
        areas = np.array([_area(mask) for mask in picture.masks or []], dtype=np.float64)
    columns = (picture.labels, picture.boxes, areas, picture.scores)
    records = [
        {"category_id": label, "bbox": box, "area": area, "score": score, "iscrowd": 0}
        for label, box, area, score in zip(*(c.tolist() for c in columns), strict=True)
    ]
    return _with_masks(records, picture.masks)


def _with_masks(
    records: list[dict[str, Any]], masks: list[RunLengths] | None
) -> list[dict[str, Any]]:
    if masks is None:
        return records
    return [record | {"segmentation": mask} for record, mask in zip(records, masks, strict=True)]


def _indexed(
    records: Sequence[Sequence[dict[str, Any]]],
    there: Sequence[There],
    classes: Sequence[int],
    masks: bool,
) -> Any:
    """The records of each picture as the evaluator wants them; other classes are left out."""
    from faster_coco_eval import COCO

    wanted = set(classes)
    images = [{"id": index} for index in range(len(records))]
    if masks:
        for image, found, objects in zip(images, records, there, strict=True):
            sized = [*(objects.masks or []), *(record["segmentation"] for record in found)]
            height, width = sized[0]["size"] if sized else (0, 0)
            image |= {"height": height, "width": width}
    annotations = [
        record | {"image_id": index}
        for index, picture in enumerate(records)
        for record in picture
        if record["category_id"] in wanted
    ]
    for number, annotation in enumerate(annotations, start=1):  # 0 would be "not matched"
        annotation["id"] = number
    coco = COCO()
    coco.dataset = {
        "images": images,
        "categories": [{"id": label} for label in classes],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def run_lengths(masks: NDArray[np.bool_]) -> list[RunLengths]:
    """COCO's compressed form of masks ``(N, H, W)``."""
    from faster_coco_eval.core import mask as coco_mask

    encoded = []
    for mask in masks:
        found = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        counts = found["counts"]
        text = counts.decode("ascii") if isinstance(counts, bytes) else counts
        encoded.append({"size": list(found["size"]), "counts": text})
    return encoded


def widths_and_heights(corners: Floats) -> Floats:
    """(N, 4) left, top, right, bottom to left, top, width, height."""
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def _area(mask: RunLengths) -> float:
    from faster_coco_eval.core import mask as coco_mask

    return float(coco_mask.area(mask))


def _silent(*_: object) -> None:
    """The evaluator would print a table of its own."""
