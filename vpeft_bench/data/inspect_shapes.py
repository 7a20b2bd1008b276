"""Whether the areas and the masks of objects are those of their boxes.

A box may lie well inside its picture and be wrong all the same. What else is known of an object
tells: a mask fills its box from side to side, and the area of an object without one is that of its
box.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vpeft_bench.data.dense_files import FileObjects
from vpeft_bench.data.findings import Inspection
from vpeft_bench.data.inspect_classes import PARTS
from vpeft_bench.data.schema import DataConfig
from vpeft_bench.data.splits import Dataset

Boxes = NDArray[np.float64]
"""(N, 4) left, top, right, bottom."""

SAMPLE = 5_000
"""Pictures of each part whose masks are looked at before a run: about half a second."""
PIXELS, SHARE = 3.0, 0.1
"""A side of a mask lies as near to that of its box, in pixels or as a share of the box."""
MOSTLY = 0.5
"""What is wrong with fewer objects is no reading of all of them."""
NEARLY_ALL = 0.99
"""A reading explains the objects where it fits this share of them."""
LARGER, SMALLER = 1.25, 1 / 1000
"""No area of an object is this many times that of its box, or this small a part of it."""
SHARE_TOLD = 0.01
CORNERS = "corners written as width and height"


def inspect_shapes(dataset: Dataset, config: DataConfig, inspection: Inspection) -> None:
    """Tell of areas that are not those of the boxes, and of masks that lie elsewhere."""
    for name, part in PARTS.items():
        split = dataset.split(name)
        if not isinstance(split, FileObjects) or not len(split):
            continue
        boxes, areas = _counted(split)
        _tell_of_areas(part, boxes, areas, inspection)
        step = 1 if inspection.full else -(-len(split) // SAMPLE)
        pictures = split.pictures[::step]
        masks = np.concatenate([p.mask_bounds()[~p.ignored] for p in pictures])
        of_masks = np.concatenate([p.boxes[~p.ignored] for p in pictures])
        _tell_of_masks(part, of_masks, masks, inspection)


def _counted(split: FileObjects) -> tuple[Boxes, NDArray[np.float64]]:
    """Boxes and areas of the objects that are not ignored and whose boxes have an area."""
    boxes = np.concatenate([p.boxes[~p.ignored] for p in split.pictures])
    areas = np.concatenate([p.areas[~p.ignored] for p in split.pictures])
    filled = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    return boxes[filled], areas[filled]


def _tell_of_areas(
    part: str, boxes: Boxes, areas: NDArray[np.float64], inspection: Inspection
) -> None:
    """Tell of areas that no object in its box has: scores by size would be of other objects."""
    sides = boxes[:, 2:] - boxes[:, :2]
    of_boxes = sides.prod(axis=1)
    if not len(boxes):
        return
    wrong = (areas > LARGER * of_boxes + 1) | (areas < SMALLER * of_boxes)
    reading = ""
    # Width and height are the other corner: then the area is what lies between the two.
    between = (sides - boxes[:, :2]).prod(axis=1)
    apart = ~np.isclose(areas, of_boxes, rtol=0.05)
    fits = np.isclose(areas, between, rtol=0.01) & (sides > boxes[:, :2]).all(axis=1)
    if apart.mean() > MOSTLY and fits.mean() >= NEARLY_ALL:
        wrong, reading = apart, f": {CORNERS}"
    elif (areas[wrong] <= 1).all():
        reading = ": are they left out, or shares of the picture?"
    if (count := int(wrong.sum())) and count >= SHARE_TOLD * len(boxes):
        has = "has" if count == 1 else "have"
        what = f"{has} an area that is not that of the box{reading}"
        inspection.tell(f"{count} of {len(boxes)} {part} objects {what}")


def _tell_of_masks(part: str, boxes: Boxes, masks: Boxes, inspection: Inspection) -> None:
    """Tell of masks most of which are not as wide and high as their boxes, or lie elsewhere."""
    known = ~np.isnan(masks).any(axis=1)
    boxes, masks = boxes[known], masks[known]
    if not len(boxes):
        return
    elsewhere = ~_alike(boxes, masks)
    if elsewhere.mean() <= MOSTLY:
        return
    readings = {
        CORNERS: _alike(np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]), masks),
        "masks written as shares of the picture": (np.abs(masks) <= 1).all(axis=1),
        "x and y of the masks are swapped": _alike(boxes, masks[:, [1, 0, 3, 2]]),
    }
    reading = next((f": {r}" for r, fits in readings.items() if fits.mean() >= NEARLY_ALL), "")
    count = f"{int(elsewhere.sum())} of {len(boxes)}"
    inspection.tell(f"{count} {part} masks do not fill their box{reading}")


def _alike(boxes: Boxes, masks: Boxes) -> NDArray[np.bool_]:
    """(N,) whether each mask reaches from side to side of its box."""
    sides = np.tile(np.abs(boxes[:, 2:] - boxes[:, :2]), 2)
    far = np.abs(boxes - masks) > np.maximum(PIXELS, SHARE * sides)
    return np.logical_not(far.any(axis=1))
