"""Whole runs of detection and segmentation, as a user starts them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Cli, shared_path
from tests.runs.test_run import record_of
from vpeft_bench.cli.overrides import check_overrides
from vpeft_bench.config.schema import typed
from vpeft_bench.errors import ConfigError
from vpeft_bench.runs import validation

SMALL = (
    "head.channels=16",
    "head.hidden=32",
    "train.batch_size=4",
    "hardware=cpu",
    "hardware.threads=1",
    "hardware.workers=0",
)


@pytest.fixture(scope="session")
def boxes_on_grey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO folder: bright squares and dark bars on grey, 12 pictures to train on and 6 to test.

    One picture to train on shows nothing.
    """
    root = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    (root / "annotations").mkdir()
    for part, count in (("train", 12), ("val", 6)):
        (root / part).mkdir()
        images, annotations = [], []
        for index in range(count):
            pixels = np.full((48, 64, 3), 120, np.uint8)
            for _ in range(0 if part == "train" and index == 0 else 2):
                label = int(rng.integers(2))
                w, h = ((16, 16), (24, 8))[label]
                x, y = int(rng.integers(64 - w)), int(rng.integers(48 - h))
                pixels[y : y + h, x : x + w] = (240, 20)[label]
                corners = [x, y, x + w, y, x + w, y + h, x, y + h]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": index,
                        "category_id": 3 + 4 * label,
                        "bbox": [x, y, w, h],
                        "area": w * h,
                        "iscrowd": 0,
                        "segmentation": [corners],
                    }
                )
            Image.fromarray(pixels).save(root / part / f"{index}.png")
            images.append({"id": index, "file_name": f"{index}.png", "width": 64, "height": 48})
        categories = [{"id": 3, "name": "square"}, {"id": 7, "name": "bar"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
    return root


def test_what_a_detector_stores_draws_the_same_picture(
    cli: Cli, tmp_path: Path, boxes_on_grey: Path
) -> None:
    """What was stored is the whole model: built again from it, it predicts the same.

    That detectors resume to the same result is tested in ``test_resuming.py``.
    """
    options = ("data=coco_json", f"data.root={boxes_on_grey}", "head=mask_rcnn", "method=adapter")
    done = cli(*options, "train.epochs=1", "render=true", *SMALL)
    assert done.returncode == 0, done.stderr + done.stdout
    assert {"box_ap", "mask_ap"} <= record_of(tmp_path)["happened"]["last_epoch"]["values"].keys()
    (drawn,) = tmp_path.rglob("predictions.png")
    before = drawn.read_bytes()
    shown = cli("show", str(drawn.parent))
    assert shown.returncode == 0, shown.stderr
    # A detector has no matrix of confusion; its curves are drawn as any run's.
    assert shown.stdout.splitlines()[:2] == [str(drawn), str(drawn.with_name("curves.png"))]
    assert drawn.read_bytes() == before
    assert cli("show", str(drawn.parent), "--root", "nowhere").returncode == 2


@pytest.mark.parametrize(
    "head",
    [
        "upernet",
        pytest.param("fpn", marks=pytest.mark.slow),
        pytest.param("linear", marks=pytest.mark.slow),
    ],
)
def test_a_segmenter_learns_and_is_shown(cli: Cli, tmp_path: Path, head: str) -> None:
    done = cli(
        "data=voc_masks",
        f"data.root={shared_path('data/camvid/voc_style')}",
        "data.num_classes=11",
        f"head={head}",
        "method=bitfit",
        "protocol=select",
        "train.epochs=1",
        *SMALL,
    )
    assert done.returncode == 0, done.stderr
    record = record_of(tmp_path)
    last = record["happened"]["last_epoch"]
    assert (last["headline"], last["split"]) == ("miou", "val")
    assert 0 < last["values"]["miou"] <= last["values"]["pixel_accuracy"] < 100
    assert record["happened"]["curves"]["val_miou"] == [pytest.approx(last["values"]["miou"])]
    shown = cli("show", str(next(tmp_path.rglob("record.json"))), "--pictures", "2")
    assert shown.returncode == 0, shown.stderr
    pictures, curves, confusion, *weakest = shown.stdout.splitlines()
    assert (Path(curves).name, Path(confusion).name) == ("curves.png", "confusion.png")
    assert any("weakest of 10 classes" in line for line in weakest)
    with Image.open(pictures) as sheet:
        assert sheet.width > 3 * 240
        colours = sheet.getcolors(sheet.width * sheet.height)
        assert colours is not None
        assert len(colours) > 100


def test_mistakes_of_a_classifier_are_shown(cli: Cli, tmp_path: Path, tiny_data: Path) -> None:
    done = cli(
        "data=imagelist",
        f"data.root={tiny_data}",
        "method=linear",
        "train.epochs=1",
        "hardware=cpu",
        "hardware.threads=1",
        "render=true",
    )
    assert done.returncode == 0, done.stderr
    (sheet,) = tmp_path.rglob("predictions.png")
    assert Image.open(sheet).width > 240


def test_dense_and_classification_records_share_a_leaderboard(
    cli: Cli, tmp_path: Path, boxes_on_grey: Path, tiny_data: Path
) -> None:
    common = ("method=linear", "train.epochs=1")
    assert cli("data=imagelist", f"data.root={tiny_data}", *common).returncode == 0
    detection = ("data=coco_json", f"data.root={boxes_on_grey}", "head=faster_rcnn")
    assert cli(*detection, *common, *SMALL).returncode == 0
    board = cli("leaderboard")
    assert board.returncode == 0, board.stderr
    assert "box AP" in board.stdout
    assert "top-1" in board.stdout
    with (tmp_path / "results" / "leaderboard" / "datasets_final.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["metric"] for row in rows} == {"top1", "box_ap"}
    for row in rows:
        assert row["mean"] == row[f"{row['metric']}_mean"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("data=demo/scenes_detection", "head=upernet"), ("is no head for detection",)),
        (("data=demo/scenes_detection", "head=mask_rcnn"), ("have none", "head=faster_rcnn")),
        (("data=demo/scenes_instances", "head=retinanet"), ("predicts no masks", "mask_rcnn")),
        (("data=demo/scenes_segmentation", "method=sidetune"), ("one vector per picture",)),
        (("data=demo/scenes_segmentation", "method=gps"), ("a classifier's gradients",)),
        (("data=demo/scenes_segmentation", "input.crop=32"), ("squares of 64", "input.crop=64")),
        (("data=demo/scenes_segmentation", "input.inference=whole"), ("input.inference=slide",)),
        (("data=demo/digits", "task=detection", "head=retinanet"), ("for classification",)),
        (("data=demo/digits", "head=linear"), ("leave head= out",)),
        (("data=demo/digits", "train.schedule=step"), ("train.milestones=[7]",)),
        (
            ("data=demo/scenes_segmentation", "input.window_stride=65"),
            ("input.window_stride=64",),
        ),
        (
            ("data=demo/scenes_segmentation", "head.norm=batch", "train.batch_size=499"),
            ("train.batch_size=500",),
        ),
        (("data=demo/scenes_detection", "input.shorter_sides=[900]"), ("input.longer_side=900",)),
    ],
)
def test_what_does_not_fit_is_told_at_once(
    overrides: tuple[str, ...], words: tuple[str, ...]
) -> None:
    checked = check_overrides(overrides, multirun=False)
    assert checked.problems == []
    assert checked.config is not None
    text = str(ConfigError(list(validation.problems(typed(checked.config)))))
    for word in words:
        assert word in text
