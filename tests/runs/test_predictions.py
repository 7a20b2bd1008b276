"""Predictions as they are stored, scored again by others from the data set's own files."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.console import Console

from vpeft_bench.cli.overrides import check_overrides
from vpeft_bench.config.schema import typed
from vpeft_bench.data.splits import FileSplit
from vpeft_bench.files import sha256
from vpeft_bench.runs import validation
from vpeft_bench.runs.run import Outcome, Result, run
from vpeft_bench.tasks.writers import picture_names

SMALL = (
    "head.channels=16",
    "head.hidden=32",
    "train.batch_size=4",
    "hardware=cpu",
    "hardware.threads=1",
    "hardware.workers=0",
)


def done(*overrides: str, told: io.StringIO | None = None) -> Outcome:
    """A run as the command line starts it."""
    checked = check_overrides(overrides, multirun=False)
    assert checked.problems == []
    assert checked.config is not None
    config = typed(checked.config)
    assert list(validation.problems(config)) == []
    return run(config, Console(file=told or io.StringIO(), width=200))


def evaluation_of(outcome: Outcome) -> dict[str, Any]:
    """The file beside the record, which the record vouches for."""
    path = outcome.directory / "evaluation.json"
    assert outcome.record is not None
    assert outcome.record.happened.checksums["evaluation.json"] == sha256(path)
    content: dict[str, Any] = json.loads(path.read_text())
    assert outcome.record.happened.last_epoch is not None
    assert content["values"] == outcome.record.happened.last_epoch.values
    return content


def pairs_of(evaluation: dict[str, Any]) -> np.ndarray:
    """(K, K) by true and predicted class."""
    classes = len(evaluation["classes"])
    pairs = np.zeros((classes, classes), dtype=int)
    for true, predicted, count in evaluation["confusion"]:
        pairs[true, predicted] = count
    return pairs


# ---- classification -----------------------------------------------------------------------------


def test_logits_and_confusion_give_the_recorded_accuracies(tmp_path: Path, tiny_data: Path) -> None:
    common = (
        "data=imagelist",
        f"data.root={tiny_data}",
        "method=linear",
        "train.epochs=2",
        "train.batch_size=20",
        "hardware=cpu",
        "hardware.threads=1",
        f"results_dir={tmp_path}",
    )
    outcome = done(*common, "predictions=true")
    values = evaluation_of(outcome)["values"]
    assert 20 < values["top1"] < 100
    table = parquet.read_table(outcome.directory / "predictions" / "logits.parquet")
    assert table.column_names == ["index", "image", "label", "predicted", "logits"]
    logits = np.array(table["logits"].to_pylist(), dtype=np.float32)
    labels = table["label"].to_numpy()
    assert logits.shape == (60, 10)
    assert 100 * (logits.argmax(axis=1) == labels).mean() == pytest.approx(values["top1"])
    assert np.array_equal(logits.argmax(axis=1), table["predicted"].to_numpy())
    listed = [line.split() for line in (tiny_data / "test.txt").read_text().splitlines()]
    assert table["image"].to_pylist() == [name for name, _ in listed]
    assert labels.tolist() == [int(label) for _, label in listed]

    evaluation = evaluation_of(outcome)
    pairs = pairs_of(evaluation)
    assert pairs.sum() == evaluation["images"] == 60
    assert 100 * pairs.trace() / pairs.sum() == pytest.approx(values["top1"])
    accuracies = [row["accuracy"] for row in evaluation["classes"] if row["images"]]
    assert np.mean(accuracies) == pytest.approx(values["mean_per_class_accuracy"])
    assert [row["images"] for row in evaluation["classes"]] == pairs.sum(axis=1).tolist()
    assert [row["predicted"] for row in evaluation["classes"]] == pairs.sum(axis=0).tolist()

    # A run that is finished need not be trained again for them; one without them keeps no others.
    again = done(*common, "rerun=true")
    assert again.directory == outcome.directory
    assert not (outcome.directory / "predictions").exists()
    told = io.StringIO()
    later = done(*common, "predictions=true", told=told)
    assert later.result is Result.SKIPPED
    assert "predictions: stored by the weights of the finished run" in told.getvalue()
    assert "the record says" not in told.getvalue()
    later_table = parquet.read_table(outcome.directory / "predictions" / "logits.parquet")
    later_logits = np.array(later_table["logits"].to_pylist(), dtype=np.float32)
    np.testing.assert_allclose(later_logits, logits, rtol=1e-4, atol=1e-4)
    assert [path.name for path in outcome.directory.glob(".*")] == []


# ---- detection ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def odd_boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO folder: bright squares and dark bars on grey, ids in no order and with gaps.

    One test picture shows nothing; among the objects are a crowd, one that is to be ignored, which
    COCO's own code counts, two of another area than their box and one without width.
    """
    root = tmp_path_factory.mktemp("odd_boxes")
    random = np.random.default_rng(0)
    (root / "annotations").mkdir()
    for part, count in (("train", 12), ("val", 7)):
        (root / part).mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        ids = (random.permutation(count) * 7 + 5).tolist()
        for index, id_ in enumerate(ids):
            pixels = np.full((48, 64, 3), 120, np.uint8)
            for _ in range(0 if part == "val" and index == 2 else 2):
                label = int(random.integers(2))
                width, height = ((16, 16), (24, 8))[label]
                left, top = int(random.integers(64 - width)), int(random.integers(48 - height))
                right, bottom = left + width, top + height
                pixels[top:bottom, left:right] = (240, 20)[label]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": id_,
                        "category_id": 3 + 4 * label,
                        "bbox": [left + 0.1, top, width - 0.2, height],
                        "area": width * height,
                        "iscrowd": 0,
                        "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
                    }
                )
            Image.fromarray(pixels).save(root / part / f"{index}.png")
            images.append({"id": id_, "file_name": f"{index}.png", "width": 64, "height": 48})
        annotations[1]["iscrowd"] = 1
        annotations[3]["ignore"] = 1
        annotations[4]["area"], annotations[6]["area"] = 5000, 0
        if part == "val":
            annotations[8]["bbox"][2] = 0
        categories = [{"id": 7, "name": "bar"}, {"id": 3, "name": "square"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
    return root


def scored_by_pycocotools(truth: Path, found: Path) -> list[float | None]:
    """COCO's twelve numbers, percent, of a file of results."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        evaluation = COCOeval(coco, coco.loadRes(str(found)), found.stem)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [None if value == -1 else 100.0 * float(value) for value in evaluation.stats]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools'
def test_stored_detections_give_the_recorded_precision(tmp_path: Path, odd_boxes: Path) -> None:
    outcome = done(
        "data=coco_json",
        f"data.root={odd_boxes}",
        "head=mask_rcnn",
        "head.score_threshold=0.0",
        "method=bitfit",
        "train.epochs=12",
        "train.lr=0.01",
        "predictions=true",
        f"results_dir={tmp_path}",
        *SMALL,
    )
    evaluation = evaluation_of(outcome)
    values = evaluation["values"]
    truth, folder = odd_boxes / "annotations" / "instances_val.json", outcome.directory
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        theirs = scored_by_pycocotools(truth, folder / "predictions" / f"{kind}.json")
        ours = [value for key, value in values.items() if key.startswith(f"{name}_")]
        assert [value is None for value in ours] == [value is None for value in theirs]
        defined = [value for value in theirs if value is not None]
        assert [v for v in ours if v is not None] == pytest.approx(defined, rel=1e-12, abs=1e-12)
    assert values["box_ap"] > 1
    assert evaluation["confusion"] is None
    for name in ("box_ap", "mask_ap50"):
        rows = [row[name] for row in evaluation["classes"] if row[name] is not None]
        assert np.mean(rows) == pytest.approx(values[name])
    assert [row["name"] for row in evaluation["classes"]] == ["square", "bar"]
    boxes, masks = (
        json.loads((folder / "predictions" / f"{kind}.json").read_text())
        for kind in ("bbox", "segm")
    )
    assert [box["score"] for box in boxes] == [mask["score"] for mask in masks]
    assert sum(row["detections"] for row in evaluation["classes"]) == len(boxes)


# ---- segmentation -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shifted_maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ADE20K folder, whose maps count two classes from 1; 0 is none."""
    root = tmp_path_factory.mktemp("shifted_maps")
    random = np.random.default_rng(0)
    for part, count in (("training", 8), ("validation", 3)):
        for kind in ("images", "annotations"):
            (root / kind / part).mkdir(parents=True)
        for index in range(count):
            values = np.ones((40, 56), dtype=np.uint8)
            values[:, int(random.integers(10, 40)) :] = 2
            values[:6] = 0
            noise = random.integers(0, 40, (40, 56, 3))
            pixels = (np.array([0, 60, 180])[values][..., None] + noise).astype(np.uint8)
            Image.fromarray(pixels).save(root / "images" / part / f"p{index}.png")
            Image.fromarray(values).save(root / "annotations" / part / f"p{index}.png")
    return root


def test_stored_label_maps_give_the_recorded_miou(tmp_path: Path, shifted_maps: Path) -> None:
    outcome = done(
        "data=ade20k_folders",
        f"data.root={shifted_maps}",
        "data.num_classes=2",
        "data.zero_is_ignored=true",
        "head=linear",
        "method=linear",
        "train.epochs=2",
        "predictions=true",
        f"results_dir={tmp_path}",
        *SMALL,
    )
    evaluation = evaluation_of(outcome)
    stored = outcome.directory / "predictions" / "label_maps"
    names = sorted(path.name for path in stored.iterdir())
    assert names == ["p0.png", "p1.png", "p2.png"]
    pairs = np.zeros((2, 2), dtype=int)
    for name in names:
        truth = np.array(Image.open(shifted_maps / "annotations" / "validation" / name))
        found = np.array(Image.open(stored / name))
        assert found.shape == truth.shape
        assert set(np.unique(found)) <= {1, 2}  # as the data set's files count
        np.add.at(pairs, (truth[truth > 0] - 1, found[truth > 0] - 1), 1)
    right, union = pairs.diagonal(), pairs.sum(axis=0) + pairs.sum(axis=1) - pairs.diagonal()
    values = evaluation["values"]
    assert 100 * (right / union).mean() == pytest.approx(values["miou"])
    assert np.array_equal(pairs_of(evaluation), pairs)
    rows = evaluation["classes"]
    assert np.mean([row["iou"] for row in rows]) == pytest.approx(values["miou"])
    assert np.mean([row["accuracy"] for row in rows]) == pytest.approx(values["mean_accuracy"])
    assert [row["pixels"] for row in rows] == pairs.sum(axis=1).tolist()


# ---- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["d/test/b.jpg", "d/test/a.jpg"], ["b", "a"]),
        (["/d/2007/x.jpg", "/d/2012/x.jpg"], ["2007/x", "2012/x"]),
        (["d/x.jpg", "d/x.png", "d/e/x.png"], ["x.jpg", "x.png", "e/x.png"]),
        (["d/one.two.jpg"], ["one.two"]),
        (["x.jpg", "y/x.jpg"], ["x", "y/x"]),
    ],
)
def test_names_of_pictures_are_short_and_never_the_same(paths: list[str], names: list[str]) -> None:
    assert picture_names(FileSplit(np.zeros(len(paths), dtype=np.int64), tuple(paths))) == names
