"""Pascal VOC's average precision: by hand, and written again in fractions for real objects."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest

from tests.conftest import shared_path
from vpeft_bench.metrics.voc import Found, There, voc_ap50

RULES = [True, False]  # eleven points, area


def found(*detections: tuple[float, int, tuple[float, ...]]) -> Found:
    """Each a score, a label and a box."""
    scores, labels, boxes = zip(*detections, strict=True) if detections else ((), (), ())
    return Found(
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
        np.array(scores, dtype=np.float64),
        np.array(labels, dtype=np.int64),
    )


def there(*objects: tuple[int, tuple[float, ...]], difficult: tuple[int, ...] = ()) -> There:
    """Each a label and a box; ``difficult`` are indices."""
    labels, boxes = zip(*objects, strict=True) if objects else ((), ())
    return There(
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
        np.array(labels, dtype=np.int64),
        np.array([index in difficult for index in range(len(labels))], dtype=np.bool_),
    )


A, B, FAR = (0.0, 0.0, 10.0, 10.0), (20.0, 20.0, 30.0, 30.0), (90.0, 90.0, 95.0, 95.0)
HALF_A = (0.0, 0.0, 10.0, 5.0)  # IoU of exactly 0.5 with A


def test_by_hand() -> None:
    detections = [
        found((0.9, 0, A), (0.8, 0, A), (0.7, 0, B)),
        found((0.6, 0, HALF_A), (0.5, 0, FAR)),
    ]
    objects = [there((0, A), (0, B), difficult=(1,)), there((0, A))]
    # right, a second time wrong, difficult (not counted), right, wrong; two objects count:
    # precision 1 up to recall 1/2, then 2/3
    assert voc_ap50(detections, objects, 1, eleven_points=True) == pytest.approx(
        100 * (6 * 1 + 5 * 2 / 3) / 11
    )
    assert voc_ap50(detections, objects, 1, eleven_points=False) == pytest.approx(
        100 * (1 / 2 * 1 + 1 / 2 * 2 / 3)
    )


def test_recall_that_just_reaches_a_level() -> None:
    boxes = [(20.0 * n, 0.0, 20.0 * n + 10, 10.0) for n in range(10)]
    detections = [found(*((0.9 - n / 100, 0, boxes[n]) for n in range(3)))]
    objects = [there(*((0, box) for box in boxes))]
    # 3 of 10 are 0.3: precision 1 at 0, 0.1, 0.2 and 0.3
    assert voc_ap50(detections, objects, 1, eleven_points=True) == pytest.approx(100 * 4 / 11)
    assert voc_ap50(detections, objects, 1, eleven_points=False) == pytest.approx(30.0)


@pytest.mark.parametrize("eleven_points", RULES)
def test_each_detection_belongs_to_what_it_overlaps_most(eleven_points: bool) -> None:
    near = (0.0, 0.0, 10.0, 9.0)
    objects = [there((0, A), (0, near))]
    # The second overlaps A most, which is taken, and does not fall back on the other object.
    detections = [found((0.9, 0, A), (0.8, 0, (0.0, 0.0, 10.0, 9.9)))]
    expected = 6 / 11 if eleven_points else 1 / 2
    assert voc_ap50(detections, objects, 1, eleven_points=eleven_points) == pytest.approx(
        100 * expected
    )


@pytest.mark.parametrize("eleven_points", RULES)
def test_a_difficult_object_shields_every_detection_of_it(eleven_points: bool) -> None:
    objects = [there((0, A), (0, B), difficult=(1,))]
    detections = [found((0.9, 0, B), (0.8, 0, B), (0.1, 0, A))]
    assert voc_ap50(detections, objects, 1, eleven_points=eleven_points) == 100.0


@pytest.mark.parametrize("eleven_points", RULES)
def test_equal_scores_are_taken_in_the_order_of_the_pictures(eleven_points: bool) -> None:
    right, wrong = found((0.5, 0, A)), found((0.5, 0, FAR))
    objects = [there((0, A)), there()]
    assert voc_ap50([right, wrong], objects, 1, eleven_points=eleven_points) == 100.0
    turned = voc_ap50([wrong, right], objects[::-1], 1, eleven_points=eleven_points)
    assert turned == pytest.approx(50.0)


@pytest.mark.parametrize("eleven_points", RULES)
def test_classes_and_empty_splits(eleven_points: bool) -> None:
    def score(detections: list[Found], objects: list[There], classes: int = 3) -> float | None:
        return voc_ap50(detections, objects, classes, eleven_points=eleven_points)

    # the wrong class is of no use; a class without objects is not in the mean, whatever is found
    assert score([found((0.9, 1, A), (0.8, 0, A), (0.7, 2, A))], [there((0, A), (1, B))]) == 50.0
    assert score([found()], [there((0, A))]) == 0.0
    assert score([found((0.9, 0, A))], [there()]) is None
    assert score([found((0.9, 0, A))], [there((0, A), difficult=(0,))]) is None
    assert score([], []) is None


def naive(detections: list[Found], objects: list[There], classes: int, eleven: bool) -> float:
    """Straight from the development kit's description, exact, one detection at a time."""

    def area(box: list[Fraction]) -> Fraction:
        return max(box[2] - box[0], Fraction(0)) * max(box[3] - box[1], Fraction(0))

    def iou(a: list[Fraction], b: list[Fraction]) -> Fraction:
        common = area([*map(max, a[:2], b[:2]), *map(min, a[2:], b[2:])])
        return common / (area(a) + area(b) - common)

    precisions = []
    for label in range(classes):
        truth, taken, count = {}, set(), 0
        for picture, one in enumerate(objects):
            for index in np.flatnonzero(one.labels == label):
                box = [Fraction(x) for x in one.boxes[index].tolist()]
                truth[picture, int(index)] = (box, bool(one.ignored[index]))
                count += not one.ignored[index]
        if not count:
            continue
        ranked = [
            (-one.scores[index], picture, [Fraction(x) for x in one.boxes[index].tolist()])
            for picture, one in enumerate(detections)
            for index in np.flatnonzero(one.labels == label)
        ]
        curve, right, wrong = [], 0, 0
        for _, picture, box in sorted(ranked, key=lambda item: item[0]):
            best, key = Fraction(-1), None
            for (of, index), (other, _) in truth.items():
                if of == picture and (overlap := iou(box, other)) > best:
                    best, key = overlap, (of, index)
            if key is not None and best >= Fraction(1, 2):
                if truth[key][1]:
                    continue
                right, wrong = (right, wrong + 1) if key in taken else (right + 1, wrong)
                taken.add(key)
            else:
                wrong += 1
            curve.append((Fraction(right, count), Fraction(right, right + wrong)))
        if eleven:
            levels = [Fraction(n, 10) for n in range(11)]
            best_at = [max((p for r, p in curve if r >= t), default=Fraction(0)) for t in levels]
            precisions.append(sum(best_at, Fraction(0)) / 11)
        else:
            total, before = Fraction(0), Fraction(0)
            for recall in sorted({r for r, _ in curve}):
                total += (recall - before) * max(p for r, p in curve if r >= recall)
                before = recall
            precisions.append(total)
    return float(100 * sum(precisions, Fraction(0)) / len(precisions))


@pytest.mark.parametrize("eleven_points", RULES)
def test_real_objects(eleven_points: bool) -> None:
    """BCCD's test boxes, every seventh called difficult, against moved copies: no detector's."""
    content = json.loads(shared_path("data/voc/BCCD/annotations_coco/test.json").read_text())
    random = np.random.default_rng(0)
    detections, objects = [], []
    for picture in content["images"]:
        own = [a for a in content["annotations"] if a["image_id"] == picture["id"]]
        boxes = [
            (a["bbox"][0], a["bbox"][1], a["bbox"][0] + a["bbox"][2], a["bbox"][1] + a["bbox"][3])
            for a in own
        ]
        labels = [a["category_id"] - 1 for a in own]
        difficult = tuple(index for index, a in enumerate(own) if a["id"] % 7 == 0)
        objects.append(there(*zip(labels, boxes, strict=True), difficult=difficult))
        moved = []
        for label, box in zip(labels, boxes, strict=True):
            for _ in range(random.choice([0, 1, 1, 1, 2])):
                shift = random.integers(-20, 21, 4)
                wrong = random.random() < 0.1
                score = random.integers(0, 50) / 50  # few values: many ties
                corners = np.sort((np.array(box) + shift).reshape(2, 2), axis=0).ravel()
                corners[2:] += 1
                moved.append((score, int(random.integers(3)) if wrong else label, tuple(corners)))
        detections.append(found(*moved))
    expected = naive(detections, objects, 3, eleven_points)
    assert voc_ap50(detections, objects, 3, eleven_points=eleven_points) == pytest.approx(
        expected, rel=1e-12
    )
    assert 20 < expected < 80
