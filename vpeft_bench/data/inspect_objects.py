"""What a data set with boxes, and perhaps masks, is looked at for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vpeft_bench.data.dense_files import FileObjects, ObjectFile
from vpeft_bench.data.findings import Inspection
from vpeft_bench.data.inspect_classes import PARTS, VALIDATION, tell_of_classes
from vpeft_bench.data.schema import DataConfig
from vpeft_bench.data.splits import Dataset, Objects, ObjectSplit
from vpeft_bench.metric_names import BoxMetric

SHARE_TOLD = 0.01
"""A smaller share of ignored objects, or of boxes narrower than a pixel, is not worth a label."""
SHARE_READ = 0.99
"""A reading of the boxes explains them where it brings this share into their pictures."""
MARGIN = 1.0
"""Pixels that a box may reach beyond its picture: rounding, and corners that count from 0."""
COCO_DETECTIONS = 100
"""Of a class in a picture, that COCO's average precision counts."""


@dataclass(frozen=True, eq=False)
class _Boxes:
    """The objects of a split that count, one after the other.

    Attributes:
        boxes: (N, 4) left, top, right, bottom.
        labels: (N,) classes from 0.
        pictures: (N,) the place of each one's picture.
        sizes: (N, 2) width and height of each one's picture; NaN where that is not known.
        ignored: number of objects that do not count.
        flags: what makes them ignored.
    """

    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    pictures: NDArray[np.int64]
    sizes: NDArray[np.float64]
    ignored: int
    flags: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def sides(self) -> NDArray[np.float64]:
        """(N, 2) widths and heights."""
        return self.boxes[:, 2:] - self.boxes[:, :2]


def inspect_objects(dataset: Dataset, config: DataConfig, inspection: Inspection) -> None:
    """Refuse objects that nothing can be learnt from; tell of those that are not what they seem."""
    found = {}
    for name in PARTS:
        split = dataset.split(name)
        assert isinstance(split, ObjectSplit)
        boxes = found[name] = _boxes_of(split)
        inspection.count(name, "objects", len(boxes) + boxes.ignored)
        inspection.count(name, "ignored_objects", boxes.ignored)
        inspection.count(name, "classes", len(np.unique(boxes.labels)))
    sound = True
    for name, part in PARTS.items():
        if _is_sound(dataset, name, part, found[name], inspection):
            _tell_of_boxes(part, found[name], inspection)
        else:
            sound = False
    if inspection.evaluated == "val":
        split = dataset.split("val")
        assert isinstance(split, ObjectSplit)
        sound &= _is_sound(dataset, "val", VALIDATION, _boxes_of(split), inspection)
    if not sound:
        return
    trained, tested = (set(np.unique(found[name].labels).tolist()) for name in PARTS)
    tell_of_classes(dataset, trained, tested, inspection, "object")
    _tell_of_crowded_pictures(dataset, config, found["test"], inspection)


def _boxes_of(split: ObjectSplit) -> _Boxes:
    """The objects of a split; one pass over its pictures, then arrays."""
    objects: Sequence[Objects | ObjectFile]
    if isinstance(split, FileObjects):
        objects, flags = split.pictures, split.flags
        sizes = [picture.size for picture in split.pictures]
    else:
        objects, flags = [split.objects(index, masks=False) for index in range(len(split))], ()
        sizes = [None] * len(objects)
    counts = [len(of_picture.labels) for of_picture in objects]
    pictures = np.repeat(np.arange(len(counts)), counts)
    known = np.array([size or (np.nan, np.nan) for size in sizes], dtype=np.float64)
    counted = ~np.concatenate([np.zeros(0, np.bool_), *(o.ignored for o in objects)])
    return _Boxes(
        boxes=np.concatenate([np.zeros((0, 4)), *(o.boxes for o in objects)])[counted],
        labels=np.concatenate([np.zeros(0, np.int64), *(o.labels for o in objects)])[counted],
        pictures=pictures[counted],
        sizes=known.reshape(-1, 2)[pictures[counted]],
        ignored=int((~counted).sum()),
        flags=flags,
    )


def _is_sound(
    dataset: Dataset, name: str, part: str, boxes: _Boxes, inspection: Inspection
) -> bool:
    """Whether there are objects of more than a pixel; refuse them otherwise."""
    where = dataset.listed_in(name)
    if not len(boxes):
        what = f"there is no object in any of the {len(dataset.split(name))} {part} pictures"
        if boxes.ignored:
            what = f"no object counts: all {boxes.ignored} of the {part} pictures are ignored"
            what += f" ({' or '.join(boxes.flags)})"
        listed = "train" if name == "trainval" else name
        inspection.refuse(where, what, f"annotate some: data.lists.{listed}=...")
        return False
    small = (boxes.sides < 1).any(axis=1) | (boxes.boxes[:, 2:] <= 1).all(axis=1)
    if not small.all():
        return True
    what = f"{len(boxes)} of {len(boxes)} {part} boxes are narrower than a pixel"
    fix = "boxes are in pixels"
    if np.abs(boxes.boxes).max() <= 2:
        fix += ": these look like shares of the picture, to be multiplied by its width and height"
    inspection.refuse(where, what, fix)
    return False


def _tell_of_boxes(part: str, boxes: _Boxes, inspection: Inspection) -> None:
    """Tell of objects that are ignored, and of boxes that lie or are sized oddly."""
    total = len(boxes)
    everything = total + boxes.ignored
    if boxes.ignored >= SHARE_TOLD * everything:
        count = f"{boxes.ignored} of {everything} {part} objects"
        inspection.tell(f"{count} are ignored ({' or '.join(boxes.flags)})")
    fate = "left out of training" if part == "training" else "can only be missed"
    if empty := int((boxes.sides <= 0).any(axis=1).sum()):
        inspection.tell(
            f"{empty} of {total} {part} boxes {'has' if empty == 1 else 'have'} no area ({fate})"
        )
    narrow = int(((boxes.sides > 0).all(axis=1) & (boxes.sides < 1).any(axis=1)).sum())
    if part == "training" and narrow >= SHARE_TOLD * total:
        are = "is" if narrow == 1 else "are"
        inspection.tell(f"{narrow} of {total} training boxes {are} narrower than a pixel ({fate})")
    if (repeats := _repeats(boxes)) >= SHARE_TOLD * total:
        what = "have picture, class and box of another one"
        inspection.tell(f"{repeats} of {total} {part} objects {what}")
    beyond = total - int(_inside(boxes.boxes, boxes.sizes).sum())
    if beyond:
        reading = f": {_reading(boxes)}" if beyond > total / 2 else ""
        inspection.tell(f"{beyond} of {total} {part} boxes reach beyond their picture{reading}")


def _repeats(boxes: _Boxes) -> int:
    """How many objects are there again, whatever their ids: one of them can only be missed."""
    rows = np.column_stack([boxes.pictures, boxes.labels, boxes.boxes])
    # One number for each row: sorting whole rows would take seconds for COCO.
    keys = rows @ np.random.default_rng(0).standard_normal(rows.shape[1])
    return len(keys) - len(np.unique(keys))


def _inside(boxes: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(N,) whether each box lies in its picture, or in one whose size is not known."""
    beyond = (boxes[:, :2] < -MARGIN) | (boxes[:, 2:] > sizes + MARGIN)
    return np.logical_not(beyond.any(axis=1))


def _reading(boxes: _Boxes) -> str:
    """As what boxes seem to be written, most of which reach beyond their picture."""
    corner, sides = boxes.boxes[:, :2], boxes.sides
    readings = {
        "corners written as width and height": (np.hstack([corner, sides]), boxes.sizes),
        "centres written as corners": (
            np.hstack([corner - sides / 2, corner + sides / 2]),
            boxes.sizes,
        ),
        "width and height of the pictures are swapped": (boxes.boxes, boxes.sizes[:, ::-1]),
    }
    for reading, (read, sizes) in readings.items():
        sensible = _inside(read, sizes) & (read[:, 2:] > read[:, :2]).all(axis=1)
        if sensible.mean() >= SHARE_READ:
            return reading
    return "of another size than the annotated pictures?"


def _tell_of_crowded_pictures(
    dataset: Dataset, config: DataConfig, boxes: _Boxes, inspection: Inspection
) -> None:
    """Tell of test pictures that hold more objects than can be found or are counted."""
    total = len(dataset.split("test"))
    given = inspection.max_detections
    if given is not None:
        crowded = int((np.bincount(boxes.pictures) > given).sum())
        if crowded:
            count = f"{crowded} of {total} test pictures hold more objects"
            inspection.tell(f"{count} than the {given} detections that the head gives")
    if config.box_metric in (BoxMetric.coco, BoxMetric.coco_masks) and (
        given is None or given > COCO_DETECTIONS
    ):
        pairs = boxes.pictures * dataset.num_classes + boxes.labels
        of_class, counts = np.unique(pairs, return_counts=True)
        crowded = len(np.unique(of_class[counts > COCO_DETECTIONS] // dataset.num_classes))
        if crowded:
            count = f"{crowded} of {total} test pictures hold more objects of a class"
            inspection.tell(f"{count} than the {COCO_DETECTIONS} detections that count")
