"""Masks in COCO's JSON: polygons and run lengths, kept compact and drawn when they are asked for.

Source: the format description at cocodataset.org, and ``maskApi.c`` in cocodataset/cocoapi.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vpeft_bench.data.dense_files import MOST_SIDE


@dataclass(frozen=True, eq=False)
class RunLengths:
    """A mask as run lengths, down the columns, beginning with the background.

    Attributes:
        counts: (R,) uint32 the lengths, pixels.
    """

    counts: NDArray[np.uint32]


Outline = tuple[NDArray[np.float64], ...] | RunLengths
"""What is kept of a mask until it is asked for: polygons (x0, y0, x1, ...), or run lengths."""


def outline_of(segmentation: Any, size: tuple[int, int]) -> tuple[Outline | None, str]:
    """A compact form of a ``segmentation``: COCO's 40 million corners fit in memory.

    Args:
        segmentation: as it is in the JSON file, not empty.
        size: width and height of the picture.

    Returns:
        What can be drawn, None where nothing can; and why something cannot, empty where all can.
        Of several polygons those that are none are left out.
    """
    if isinstance(segmentation, dict):
        try:
            return _run_lengths(segmentation, *size), ""
        except ValueError as error:
            return None, str(error)
    parts = segmentation if isinstance(segmentation, list) else [segmentation]
    polygons = [_polygon(values) for values in parts]
    sound = tuple(polygon for polygon in polygons if polygon is not None)
    wrong = "" if len(sound) == len(polygons) else "not polygons of three corners or more"
    return sound or None, wrong


def _polygon(values: Any) -> NDArray[np.float64] | None:
    """The corners of a polygon; None where it is none."""
    if not isinstance(values, list):
        return None
    try:
        corners = np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    if corners.ndim != 1 or len(corners) < 6 or len(corners) % 2:
        return None
    # A comparison that NaN fails. The drawing needs memory for every pixel that a line passes.
    return corners if bool((np.abs(corners) < MOST_SIDE).all()) else None


def _run_lengths(segmentation: Mapping[str, Any], width: int, height: int) -> RunLengths:
    """The lengths; raises ValueError, with what is wrong, where they make up no mask."""
    counts = segmentation.get("counts")
    if segmentation.get("size") != [height, width]:
        size = segmentation.get("size")
        raise ValueError(f"size {size!r} is not {[height, width]}")
    if isinstance(counts, str):
        lengths = _decompressed(counts)
    elif isinstance(counts, list) and all(type(count) is int for count in counts):
        lengths = counts
    else:
        raise ValueError("run lengths that are neither integers nor a text")
    # The decoder trusts the lengths: wrong ones would write beyond the end of its memory.
    if any(length < 0 for length in lengths) or sum(lengths) != height * width:
        raise ValueError(f"run lengths that do not make up {height}x{width} pixels")
    return RunLengths(np.array(lengths, dtype=np.uint32))


def _decompressed(text: str) -> list[int]:
    """The lengths in COCO's compressed text; a negative one where it breaks off.

    Each character carries five bits, from code 48 on, the lowest first, and a sixth that says
    whether the number goes on; from the fourth length on the difference to the last but one is
    stored. Source: the format of ``maskApi.c`` in cocodataset/cocoapi.
    """
    lengths: list[int] = []
    value, shift, open_ = 0, 0, False
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return [-1]
        value |= (bits & 31) << shift
        shift += 5
        open_ = bool(bits & 32)
        if not open_:
            if bits & 16:
                value -= 1 << shift
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value, shift = 0, 0
    return [-1] if open_ else lengths


def bounds(outline: Outline | None, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a mask, pixels; NaN where there is none.

    Args:
        outline: of the mask.
        size: width and height of the picture.
    """
    if isinstance(outline, RunLengths):
        height = size[1]
        ends = np.cumsum(outline.counts, dtype=np.int64)
        first, last = ends[:-1:2], ends[1::2] - 1  # pixels of each run, down the columns
        first, last = first[last >= first], last[last >= first]
        if len(first):
            wraps = first // height < last // height
            top = np.where(wraps, 0, first % height).min()
            bottom = np.where(wraps, height - 1, last % height).max() + 1
            return float(first[0] // height), float(top), last[-1] // height + 1.0, float(bottom)
    elif outline:
        xs, ys = np.concatenate(outline).reshape(-1, 2).T
        return float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())
    return (np.nan,) * 4


def draw(
    outlines: Sequence[Outline | None], boxes: NDArray[np.float64], size: tuple[int, int]
) -> NDArray[np.bool_]:
    """(N, H, W) the masks of a picture's objects; one without a mask of its own fills its box."""
    # Imported here because it takes longer than reading a small data set.
    from faster_coco_eval.core import mask as coco_mask

    width, height = size
    masks = np.zeros((len(outlines), height, width), dtype=np.bool_)
    for drawn, outline, box in zip(masks, outlines, boxes, strict=True):
        if isinstance(outline, RunLengths):
            lengths = {"size": [height, width], "counts": outline.counts.tolist()}
            encoded = coco_mask.frPyObjects(lengths, height, width)
        else:
            polygons = outline or (box[[0, 1, 2, 1, 2, 3, 0, 3]],)
            lists = [polygon.tolist() for polygon in polygons]
            encoded = coco_mask.merge(coco_mask.frPyObjects(lists, height, width))
        drawn[...] = coco_mask.decode(encoded)
    return masks
