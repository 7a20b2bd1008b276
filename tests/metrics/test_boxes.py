"""COCO's average precision: by hand, and the same numbers as pycocotools on real objects."""

from __future__ import annotations

import contextlib
import io
import pickle
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from tests.conftest import shared_path
from vpeft_bench.metric_names import BoxMetric
from vpeft_bench.metrics.boxes import BoxMetrics

Picture = dict[str, Tensor]
BOX = (0.0, 0.0, 10.0, 100.0)


def target(
    *objects: tuple[int, tuple[float, ...]], ignored: tuple[int, ...] = (), size: int = 120
) -> Picture:
    labels = torch.tensor([label for label, _ in objects], dtype=torch.int64)
    boxes = torch.tensor([box for _, box in objects], dtype=torch.float32).reshape(-1, 4)
    return {
        "boxes": boxes,
        "labels": labels,
        "ignored": torch.tensor([n in ignored for n in range(len(objects))], dtype=torch.bool),
        "areas": (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
        "masks": filled(boxes, size).to(torch.uint8),
    }


def prediction(*detections: tuple[float, int, tuple[float, ...]], size: int = 120) -> Picture:
    found = target(*((label, box) for _, label, box in detections))
    scores = torch.tensor([score for score, _, _ in detections], dtype=torch.float32)
    return {
        "boxes": found["boxes"],
        "labels": found["labels"],
        "scores": scores,
        "masks": filled(found["boxes"], size),
    }


def filled(boxes: Tensor, size: int) -> Tensor:
    masks = torch.zeros(len(boxes), size, size, dtype=torch.bool)
    for mask, box in zip(masks, boxes.int().tolist(), strict=True):
        mask[box[1] : box[3], box[0] : box[2]] = True
    return masks


def scored(
    predictions: list[Picture],
    targets: list[Picture],
    masks: bool = False,
    metric: BoxMetric = BoxMetric.coco,
) -> dict[str, float | None]:
    metrics = BoxMetrics(3, masks, metric)
    for one, other in zip(predictions, targets, strict=True):
        metrics.update([one], [other])
    return metrics.compute()


def test_by_hand() -> None:
    # IoU 0.72: right at 0.50, 0.55, 0.60, 0.65 and 0.70, wrong at the five levels above
    found = scored([prediction((0.9, 0, (0.0, 0.0, 10.0, 72.0)))], [target((0, BOX))])
    assert found == pytest.approx(
        {
            "box_ap": 50.0,
            "box_ap50": 100.0,
            "box_ap75": 0.0,
            "box_ap_small": 50.0,  # 1000 pixels are fewer than 32 x 32
            "box_ap_medium": None,
            "box_ap_large": None,
            "box_ar1": 50.0,
            "box_ar10": 50.0,
            "box_ar100": 50.0,
            "box_ar_small": 50.0,
            "box_ar_medium": None,
            "box_ar_large": None,
        }
    )


def test_an_overlap_that_just_reaches_a_level_is_right() -> None:
    # IoU 0.6 is right at 0.50, 0.55 and 0.60, which as a float32 would be a little more
    values = scored([prediction((0.9, 0, (0.0, 0.0, 10.0, 60.0)))], [target((0, BOX))])
    assert values["box_ap"] == pytest.approx(30.0)


def test_masks_are_judged_by_themselves() -> None:
    found = prediction((0.9, 0, BOX))
    found["masks"][0, 72:] = False
    values = scored([found], [target((0, BOX))], masks=True)
    assert (values["box_ap"], values["mask_ap"]) == pytest.approx((100.0, 50.0))
    assert (values["mask_ap50"], values["mask_ap75"]) == pytest.approx((100.0, 0.0))


def test_sizes_go_by_the_area_of_the_data_set() -> None:
    objects = target((0, BOX))
    objects["areas"] = torch.tensor([5000.0])  # medium
    values = scored([prediction((0.9, 0, BOX))], [objects])
    assert (values["box_ap_small"], values["box_ap_medium"]) == (None, pytest.approx(100.0))


def test_crowds_are_neither_missed_nor_wrongly_found() -> None:
    crowd = (40.0, 40.0, 100.0, 100.0)
    inside = [(0.9, 0, (40.0, 40.0, 50.0, 50.0)), (0.8, 0, (60.0, 60.0, 70.0, 70.0))]
    objects = target((0, BOX), (0, crowd), ignored=(1,))
    for masks in (False, True):
        values = scored([prediction(*inside, (0.1, 0, BOX))], [objects], masks=masks)
        assert values["box_ap"] == pytest.approx(100.0)
        counted = scored(
            [prediction(*inside, (0.1, 0, BOX))], [target((0, BOX), (0, crowd))], masks=masks
        )
        assert counted["box_ap"] < 50  # type: ignore[operator]
    only = scored([prediction((0.9, 0, crowd))], [target((0, crowd), ignored=(0,))])
    assert set(only.values()) == {None}


@pytest.mark.parametrize("masks", [False, True])
def test_pictures_and_splits_without_anything(masks: bool) -> None:
    found, nothing = prediction((0.9, 0, BOX)), prediction()
    some, none = target((0, BOX)), target()
    assert set(scored([], [], masks).values()) == {None}
    assert set(scored([nothing, nothing], [none, none], masks).values()) == {None}
    assert set(scored([found], [none], masks).values()) == {None}
    assert scored([nothing], [some], masks)["box_ap"] == 0.0
    assert scored([found, nothing], [some, none], masks)["box_ap"] == pytest.approx(100.0)
    # an object that is found in another picture is not found
    assert scored([nothing, found], [some, none], masks)["box_ap"] == 0.0
    # a class that no picture has is not in the mean
    other = prediction((0.9, 0, BOX), (0.8, 2, BOX))
    assert scored([other], [some], masks)["box_ap"] == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("metric", "masks", "headline"),
    [
        (BoxMetric.coco, False, "box_ap"),
        (BoxMetric.coco, True, "box_ap"),
        (BoxMetric.coco_masks, True, "mask_ap"),
        (BoxMetric.coco_masks, False, "box_ap"),
        (BoxMetric.voc07, False, "voc07_ap50"),
        (BoxMetric.voc12, True, "voc12_ap50"),
    ],
)
def test_headline_first(metric: BoxMetric, masks: bool, headline: str) -> None:
    # right at 0.50, but wrong at once: 100 by any rule that is not COCO's
    found = prediction((0.9, 0, (0.0, 0.0, 10.0, 72.0)))
    values = scored([found], [target((0, BOX), (0, BOX), ignored=(1,))], masks, metric)
    assert next(iter(values)) == headline
    assert ("mask_ap" in values) == masks
    if "voc" in headline:
        assert values[headline] == 100.0
        assert values["box_ap"] == pytest.approx(50.0)
    empty = BoxMetrics(3, masks, metric).compute()
    assert list(empty) == list(values)
    assert set(empty.values()) == {None}


def test_reset_forgets_everything() -> None:
    metrics = BoxMetrics(3, False, BoxMetric.voc07)
    metrics.update([prediction()], [target((0, BOX))])
    assert metrics.compute()["voc07_ap50"] == 0.0
    metrics.reset()
    assert set(metrics.compute().values()) == {None}
    metrics.update([prediction((0.9, 0, BOX))], [target((0, BOX))])
    assert metrics.compute()["voc07_ap50"] == 100.0
    assert metrics.compute()["box_ap"] == pytest.approx(100.0)


def test_masks_are_kept_as_run_lengths() -> None:
    metrics = BoxMetrics(3, True, BoxMetric.coco)
    boxes = [(10.0 * n, 0.0, 10.0 * n + 9, 900.0) for n in range(20)]
    metrics.update(
        [prediction(*((0.5, 0, box) for box in boxes), size=1000)],
        [target(*((0, box) for box in boxes), size=1000)],
    )
    assert len(pickle.dumps(metrics)) < 100_000  # of 40 million pixels
    assert metrics.compute()["mask_ap"] == pytest.approx(100.0)


def real_pictures(path: str) -> list[Picture]:
    """The objects of a COCO file's pictures; crowds are decoded like the rest."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(shared_path(path)))
    classes = {category: label for label, category in enumerate(sorted(coco.cats))}
    pictures = []
    for image in coco.imgs.values():
        own = coco.imgToAnns[image["id"]]
        height, width = image["height"], image["width"]
        masks = [coco.annToMask(a) for a in own]
        boxes = torch.tensor([a["bbox"] for a in own], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        pictures.append(
            {
                "boxes": boxes,
                "labels": torch.tensor([classes[a["category_id"]] for a in own]).long(),
                "ignored": torch.tensor([a["iscrowd"] for a in own]).bool(),
                "areas": torch.tensor([a["area"] for a in own], dtype=torch.float32),
                "masks": torch.from_numpy(np.array(masks, dtype=np.uint8)).view(-1, height, width),
            }
        )
    return pictures


def moved_copies(pictures: list[Picture], classes: int, seed: int) -> list[Picture]:
    """Made from the ground truth and no detector's: moved, doubled, dropped, of a wrong class."""
    random = np.random.default_rng(seed)
    predictions = []
    for picture in pictures:
        found: dict[str, list[Any]] = defaultdict(list)
        for box, label, mask in zip(
            picture["boxes"], picture["labels"].tolist(), picture["masks"], strict=True
        ):
            side = float((box[2:] - box[:2]).mean())
            for _ in range(random.choice([0, 1, 1, 1, 2, 3])):
                shift = np.round(random.normal(0, 0.06, 4) * side, 2).astype(np.float32)
                right, down = round(float(shift[0])), round(float(shift[1]))
                wrong = random.random() < 0.15
                found["boxes"].append(box + torch.from_numpy(shift))
                found["masks"].append(mask.roll((down, right), dims=(0, 1)).bool())
                found["labels"].append(int(random.integers(classes)) if wrong else label)
                found["scores"].append(random.integers(1, 200) / 200)  # few values: many ties
        height, width = picture["masks"].shape[1:]
        none = torch.zeros(0, height, width, dtype=torch.bool)
        predictions.append(
            {
                "boxes": torch.stack(found["boxes"]) if found["boxes"] else torch.zeros(0, 4),
                "labels": torch.tensor(found["labels"], dtype=torch.int64),
                "scores": torch.tensor(found["scores"], dtype=torch.float32),
                "masks": torch.stack(found["masks"]) if found["masks"] else none,
            }
        )
    return predictions


def pycocotools_stats(
    predictions: list[Picture],
    targets: list[Picture],
    kind: Literal["bbox", "segm"],
    limit: int | None = None,
) -> list[float]:
    """What the reference prints, in percent, from the same tensors, in its own format.

    With a ``limit`` of detections that is not 100, its own summary is not defined: then they are
    the mean precision and recall at it, which it computes all the same.
    """

    def annotations(pictures: list[Picture]) -> list[dict[str, Any]]:
        found = []
        for index, picture in enumerate(pictures):
            id_ = int(picture["rank"]) if "rank" in picture else index
            for n, (x0, y0, x1, y1) in enumerate(picture["boxes"].tolist()):
                annotation = {"image_id": id_, "category_id": int(picture["labels"][n])}
                if kind == "bbox":
                    annotation["bbox"] = [x0, y0, x1 - x0, y1 - y0]
                else:
                    mask = np.asfortranarray(picture["masks"][n].numpy().astype(np.uint8))
                    annotation["segmentation"] = run_lengths.encode(mask)
                if "scores" in picture:
                    annotation["score"] = float(picture["scores"][n])
                else:
                    annotation["id"] = len(found) + 1
                    annotation["iscrowd"] = int(picture["ignored"][n])
                    annotation["area"] = float(picture["areas"][n])
                found.append(annotation)
        return found

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [
                {"id": n, "height": t["masks"].shape[1], "width": t["masks"].shape[2]}
                for n, t in enumerate(targets)
            ],
            "categories": [{"id": n} for n in range(80)],
            "annotations": annotations(targets),
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(annotations(predictions)), kind)
        if limit is not None:
            evaluation.params.maxDets = [1, 10, limit]
        evaluation.evaluate()
        evaluation.accumulate()
        if limit is None:
            evaluation.summarize()
            stats = [float(value) for value in evaluation.stats]
        else:
            values = (evaluation.eval[name][..., 0, 2] for name in ("precision", "recall"))
            stats = [float(value[value > -1].mean()) for value in values]
    return [-1.0 if value == -1 else 100.0 * value for value in stats]


def reference(
    predictions: list[Picture], targets: list[Picture], masks: bool = True
) -> list[float | None]:
    kinds: tuple[Literal["bbox", "segm"], ...] = ("bbox", "segm") if masks else ("bbox",)
    stats = [x for kind in kinds for x in pycocotools_stats(predictions, targets, kind)]
    return [None if value == -1 else value for value in stats]


def assert_equal(values: list[float | None], expected: Sequence[float | None]) -> None:
    """But for the last digits of a double: the order of the sums is another one."""
    assert [value is None for value in values] == [value is None for value in expected]
    defined = [value for value in expected if value is not None]
    assert [x for x in values if x is not None] == pytest.approx(defined, rel=1e-12, abs=1e-12)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools'
@pytest.mark.parametrize(
    ("path", "classes", "crowds"),
    [
        ("data/coco/annotations/instances_train2017.json", 80, 1),
        ("data/coco/annotations/instances_val2017.json", 80, 2),
        ("data/nuclei/annotations/instances_val.json", 1, 0),
    ],
)
def test_equal_to_pycocotools_on_real_objects(path: str, classes: int, crowds: int) -> None:
    targets = real_pictures(path)
    assert sum(int(picture["ignored"].sum()) for picture in targets) == crowds
    predictions = moved_copies(targets, classes, seed=0)
    metrics = BoxMetrics(classes, True, BoxMetric.coco)
    for start in range(0, len(targets), 4):  # in batches, as a loader gives them
        metrics.update(predictions[start : start + 4], targets[start : start + 4])
    found = metrics.compute()
    assert_equal(list(found.values()), reference(predictions, targets))
    assert 10 < found["box_ap"] < 90  # type: ignore[operator]
    assert 10 < found["mask_ap"] < 90  # type: ignore[operator]


def test_widths_are_not_rounded() -> None:
    # right edges that float32 does not hold exactly: an IoU a little below 0.5
    found = prediction((0.9, 0, (0.1, 0.0, 5.1, 10.0)))
    objects = target((0, (0.1, 0.0, 10.1, 10.0)))
    assert pycocotools_stats([found], [objects], "bbox")[1] == 0.0
    assert scored([found], [objects])["box_ap50"] == 0.0


def random_pictures(
    random: np.random.Generator, masks: bool
) -> tuple[list[Picture], list[Picture]]:
    """Detections and objects in which everything odd that the reference accepts is common.

    Objects without width, height or area, larger than their picture, twice in one place, of areas
    at the borders of the sizes and of others than their boxes; crowds; pictures without either;
    equal scores; more than 100 detections of a class; pictures in another order than their ids.
    """
    targets, predictions = [], []
    ranks = random.permutation(8)
    for rank in ranks.tolist():
        count = int(random.choice([0, 1, 3, 12]))
        corners = random.integers(0, 40, (count, 2)) * 2.5
        sides = random.choice([0, 0.1, 5, 10, 32, 96, 200], (count, 2))
        boxes = np.concatenate([corners, corners + sides], axis=1).reshape(-1, 4)
        labels = random.integers(0, 3, count)
        if count > 2:
            boxes[1], labels[1] = boxes[0], labels[0]
        areas = np.where(random.random(count) < 0.5, sides.prod(axis=1), 0.0)
        borders = random.choice([0.0, 1024.0, 1024.0 + 1e-9, 9216.0, 1e9], count)
        areas = np.where(random.random(count) < 0.3, borders, areas)
        found = int(random.choice([0, 5, 40, 150]))
        chosen = random.integers(0, max(count, 1), found) if count else np.zeros(found, dtype=int)
        source = boxes if count else np.array([[10.0, 10.0, 42.0, 42.0]])
        shifts = random.choice([0.0, 0.0, 2.5, 5.0], (found, 4))
        moved = np.maximum(source[chosen] + shifts, 0)
        right = random.random(found) < 0.8
        guesses = np.where(right & (count > 0), (labels if count else np.zeros(1, int))[chosen], 1)
        objects = {
            "boxes": torch.from_numpy(boxes),
            "labels": torch.from_numpy(labels),
            "ignored": torch.from_numpy(random.random(count) < 0.15),
            "areas": torch.from_numpy(areas),
            "rank": torch.tensor(rank),
        }
        detections = {
            "boxes": torch.from_numpy(moved).float(),
            "labels": torch.from_numpy(guesses),
            "scores": torch.from_numpy(random.integers(1, 6, found) / 5).float(),
            "rank": torch.tensor(rank),
        }
        objects["masks"] = filled(objects["boxes"], 110 if masks else 1).to(torch.uint8)
        detections["masks"] = filled(detections["boxes"], 110 if masks else 1)
        targets.append(objects)
        predictions.append(detections)
    return predictions, targets


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools'
@pytest.mark.parametrize("seed", range(12))
def test_equal_to_pycocotools_on_random_objects(seed: int) -> None:
    masks = seed % 3 == 0
    predictions, targets = random_pictures(np.random.default_rng(seed), masks)
    metrics = BoxMetrics(3, masks, BoxMetric.coco, max_detections=300)
    metrics.update(predictions, targets)
    values = metrics.compute()
    beyond = {name: values.pop(name) for name in list(values) if "all_detections" in name}
    assert_equal(list(values.values()), reference(predictions, targets, masks))
    expected = pycocotools_stats(predictions, targets, "bbox", limit=300)
    assert_equal([beyond["box_ap_all_detections"], beyond["box_ar_all_detections"]], expected)
    assert 0 < values["box_ap"] < 100  # type: ignore[operator]


def test_more_than_a_hundred_detections_count_where_the_head_gives_them() -> None:
    boxes = [
        (float(x), float(y), x + 3.0, y + 3.0) for x in range(0, 40, 4) for y in range(0, 60, 4)
    ]
    objects = target(*((0, box) for box in boxes))
    found = prediction(*((1 - n / 1000, 0, box) for n, box in enumerate(boxes)))
    assert len(boxes) == 150
    usual = BoxMetrics(1, False, BoxMetric.coco)
    usual.update([found], [objects])
    assert usual.compute()["box_ar100"] == pytest.approx(100 * 100 / 150)
    assert "box_ap_all_detections" not in usual.compute()
    more = BoxMetrics(1, False, BoxMetric.coco, max_detections=200)
    more.update([found], [objects])
    values = more.compute()
    assert values["box_ap_all_detections"] == pytest.approx(100.0)
    assert values["box_ar_all_detections"] == pytest.approx(100.0)
    # the headline is COCO's all the same
    assert {name: values[name] for name in usual.compute()} == usual.compute()
    assert_equal([values["box_ap"]], pycocotools_stats([found], [objects], "bbox")[:1])


def test_order_of_ids_decides_between_equal_scores() -> None:
    right, wrong = prediction((0.5, 0, BOX)), prediction((0.5, 0, (50.0, 50.0, 60.0, 60.0)))
    some, none = target((0, BOX)), target()
    values = [
        scored([right, wrong], [some | {"rank": torch.tensor(a)}, none | {"rank": torch.tensor(b)}])
        for a, b in ((0, 1), (1, 0))
    ]
    assert [value["box_ap"] for value in values] == pytest.approx([100.0, 50.0])


def test_cocos_own_flag_decides_what_is_a_crowd() -> None:
    objects = target((0, BOX), (0, (50.0, 50.0, 90.0, 90.0)), ignored=(1,))
    assert scored([prediction((0.9, 0, BOX))], [objects])["box_ap"] == pytest.approx(100.0)
    objects["crowds"] = torch.tensor([False, False])
    missed = scored([prediction((0.9, 0, BOX))], [objects])["box_ap"]
    assert missed == pytest.approx(100 * 51 / 101)
    # and Pascal VOC's metric goes by its own
    both = scored([prediction((0.9, 0, BOX))], [objects], metric=BoxMetric.voc12)
    assert (both["voc12_ap50"], both["box_ap"]) == (100.0, missed)


@pytest.mark.parametrize("metric", [BoxMetric.coco, BoxMetric.voc07])
def test_classes_make_up_the_mean(metric: BoxMetric) -> None:
    predictions, targets = random_pictures(np.random.default_rng(3), masks=True)
    metrics = BoxMetrics(5, True, metric)
    metrics.update(predictions, targets)
    values, rows = metrics.compute(), metrics.per_class()
    assert len(rows) == 5
    for name in set(values) & set(rows[0]):
        defined = [row[name] for row in rows if row[name] is not None]
        assert values[name] == pytest.approx(np.mean(defined)), name  # type: ignore[arg-type]
    assert next(iter(values)) in rows[0]
    crowds = sum(int(picture["ignored"].sum()) for picture in targets)
    everything = sum(len(picture["labels"]) for picture in targets)
    assert sum(row["objects"] for row in rows) == everything - crowds  # type: ignore[misc]
    found = sum(len(picture["labels"]) for picture in predictions)
    assert sum(row["detections"] for row in rows) == found  # type: ignore[misc]
    assert {name: rows[4][name] for name in ("objects", "box_ap")} == {"objects": 0, "box_ap": None}
