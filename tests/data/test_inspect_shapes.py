"""Areas and masks of objects are compared with their boxes before a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.test_inspect_dense import Box, coco, looked_at
from vpeft_bench.data.coco_masks import bounds, draw, outline_of

SMALL: list[Box] = [(1, 2, 8, 9), (2, 1, 10, 7), (3, 3, 9, 12), (1, 1, 12, 10)] * 2
AREA = "have an area that is not that of the box"


def rewritten(folder: Path, change: Any) -> None:
    """``change`` every annotation of both files, which gets its box as x, y, width, height."""
    for name in ("train", "test"):
        path = folder / f"{name}.json"
        tables = json.loads(path.read_text())
        for record in tables["annotations"]:
            record |= change(*record["bbox"])
        path.write_text(json.dumps(tables))


def polygon(x: float, y: float, w: float, h: float) -> list[list[float]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def runs(x: int, y: int, w: int, h: int) -> dict[str, Any]:
    """Run lengths of a full rectangle in a picture of 40x30, down the columns."""
    mask = np.zeros((30, 40), np.uint8)
    mask[y : y + h, x : x + w] = 1
    flat = mask.ravel(order="F")
    changes = [0, *np.flatnonzero(np.diff(flat)) + 1, flat.size]
    return {"size": [30, 40], "counts": np.diff(changes).tolist()}


@pytest.mark.parametrize("segmentation", [polygon, runs])
def test_masks_and_areas_of_their_boxes_are_fine(tmp_path: Path, segmentation: Any) -> None:
    config = coco(tmp_path, SMALL, SMALL)
    rewritten(tmp_path, lambda *b: {"area": b[2] * b[3] * 0.6, "segmentation": segmentation(*b)})
    assert looked_at(config, full=True).notices == []


@pytest.mark.parametrize("segmentation", [polygon, runs])
def test_corners_that_lie_inside_their_picture_are_told_by_masks(
    tmp_path: Path, segmentation: Any
) -> None:
    """Such boxes do not reach beyond: nothing but the masks is wrong with them."""
    config = coco(tmp_path, SMALL, SMALL)
    rewritten(
        tmp_path,
        lambda x, y, w, h: {
            "bbox": [x + 5, y + 5, x + 5 + w, y + 5 + h],
            "segmentation": segmentation(x + 5, y + 5, w, h),
        },
    )
    told = "8 of 8 {} masks do not fill their box: corners written as width and height"
    assert looked_at(config).notices == [told.format("training"), told.format("test")]


def test_corners_that_lie_inside_their_picture_are_told_by_areas(tmp_path: Path) -> None:
    config = coco(tmp_path, SMALL, SMALL)
    rewritten(tmp_path, lambda x, y, w, h: {"bbox": [x, y, x + w, y + h], "area": w * h})
    told = f"8 of 8 {{}} objects {AREA}: corners written as width and height"
    assert looked_at(config).notices == [told.format("training"), told.format("test")]


@pytest.mark.parametrize("area", [0, 0.002])
def test_areas_that_are_none_are_told(tmp_path: Path, area: float) -> None:
    """Every object would be a small one to the scores by size."""
    config = coco(tmp_path, [(4, 5, 30, 22)] * 8, [(4, 5, 30, 22)] * 4, area=area)
    told = f"4 of 4 test objects {AREA}: are they left out, or shares of the picture?"
    assert told in looked_at(config).notices


def test_areas_larger_than_their_boxes_are_told(tmp_path: Path) -> None:
    config = coco(tmp_path, SMALL, SMALL, area=900)
    assert looked_at(config).notices[0] == f"8 of 8 training objects {AREA}"


@pytest.mark.parametrize(
    ("change", "reading"),
    [
        (lambda x, y, w, h: polygon(x / 40, y / 30, w / 40, h / 30), "shares of the picture"),
        (lambda x, y, w, h: polygon(y, x, h, w), "x and y of the masks are swapped"),
    ],
)
def test_masks_that_lie_elsewhere_are_told(tmp_path: Path, change: Any, reading: str) -> None:
    config = coco(tmp_path, [(20, 2, 15, 6)] * 8, [(20, 2, 15, 6)] * 4)
    rewritten(tmp_path, lambda *box: {"segmentation": change(*box)})
    assert reading in looked_at(config).notices[0]


@pytest.mark.parametrize("size", [(7, 5), (1, 1), (6, 1)])
def test_bounds_of_runs_are_those_of_the_mask(size: tuple[int, int]) -> None:
    width, height = size
    generator = np.random.default_rng(3)
    for _ in range(20):
        mask = generator.random((height, width)) < 0.2
        flat = mask.ravel(order="F")
        changes = [0, *np.flatnonzero(np.diff(flat)) + 1, flat.size]
        counts = np.diff(changes).tolist()
        if flat[0]:
            counts = [0, *counts]
        outline, wrong = outline_of({"size": [height, width], "counts": counts}, size)
        assert not wrong
        assert (draw([outline], np.zeros((1, 4)), size)[0] == mask).all()
        rows, columns = np.nonzero(mask)
        found = bounds(outline, size)
        if len(rows):
            edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert found == edges
        else:
            assert np.isnan(found).all()
