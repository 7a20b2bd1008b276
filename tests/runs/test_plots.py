"""What ``show`` says beside the pictures of predictions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from rich.console import Console

from tests.leaderboard.conftest import make_run
from vpeft_bench.cli.show import weakest_classes
from vpeft_bench.runs.plots import draw_confusion, draw_curves, draw_reliability, read_evaluation

NAMED = {
    "classes": [
        {"class": 0, "name": "cat", "images": 4, "predicted": 5, "accuracy": 75.0},
        {"class": 1, "name": "$x_1$", "images": 4, "predicted": 3, "accuracy": 50.0},
        {"class": 2, "name": None, "images": 0, "predicted": 0, "accuracy": None},
    ],
    "confusion": [[0, 0, 3], [0, 1, 1], [1, 0, 2], [1, 1, 2]],
}
OBJECTS = {
    "classes": [
        {"class": 0, "name": "ship", "objects": 7, "detections": 9, "ap": 30.0, "ap50": 41.0},
        {"class": 1, "name": "buoy", "objects": 2, "detections": 0, "ap": 0.0, "ap50": 0.0},
    ],
    "confusion": None,
}


def rows(evaluation: dict[str, Any]) -> list[list[str]]:
    """The cells of the printed table, line by line, its title first."""
    console = Console(width=100)
    with console.capture() as capture:
        console.print(weakest_classes(evaluation))
    lines = capture.get().splitlines()
    return [[cell.strip() for cell in line.strip("│┃ ").split("│")] for line in lines]


def test_the_weakest_classes_come_first_with_what_they_are_taken_for() -> None:
    found = rows(NAMED)
    assert found[0] == ["weakest of 2 classes"], "a class without pictures has no score"
    assert [row for row in found if len(row) == 4] == [
        ["$x_1$", "50.0", "4", "cat (2)"],
        ["cat", "75.0", "4", "$x_1$ (1)"],
    ]


def test_objects_have_a_score_and_are_taken_for_nothing() -> None:
    assert [row[:3] for row in rows(OBJECTS) if len(row) >= 3] == [
        ["buoy", "0.0", "2"],
        ["ship", "30.0", "7"],
    ]


@pytest.mark.parametrize("scored", [False, True])
def test_curves_are_drawn(tmp_path: Path, scored: bool) -> None:
    curves = {"epoch": [1.0, 2.0], "train_loss": [2.0, 1.0], "lr": [0.1, 0.0]}
    if scored:
        curves["val_top1"] = [50.0, 60.0]
    made = make_run()
    made = replace(made, happened=replace(made.happened, curves=curves))
    with Image.open(draw_curves(made, tmp_path / "curves.png")) as picture:
        assert (picture.width > 1000) is scored


def test_a_matrix_is_drawn_where_classes_come_in_pairs(tmp_path: Path) -> None:
    path = draw_confusion(NAMED, tmp_path / "confusion.png")
    assert path is not None
    with Image.open(path) as picture:
        assert len(picture.convert("RGB").getcolors(1 << 20) or ()) > 50
    assert draw_confusion(OBJECTS, tmp_path / "none.png") is None


def test_a_run_of_an_older_version_has_no_evaluation(tmp_path: Path) -> None:
    assert read_evaluation(tmp_path) is None


def test_kept_logits_give_a_reliability_diagram(tmp_path: Path) -> None:
    assert draw_reliability(tmp_path, tmp_path / "none.png") is None
    (tmp_path / "predictions").mkdir()
    logits = [[2.0, 0.0], [0.0, 3.0], [1.0, 0.5]]
    table = pa.table({"logits": logits, "label": [0, 0, 1]})
    parquet.write_table(table, tmp_path / "predictions" / "logits.parquet")
    path = draw_reliability(tmp_path, tmp_path / "reliability.png")
    assert path is not None
    with Image.open(path) as picture:
        assert picture.height > 600
