"""Intersection over union and accuracies: by hand, and a plain loop over real label maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from tests.conftest import shared_path
from vpeft_bench.errors import VpeftBenchError
from vpeft_bench.metrics.label_maps import LabelMapMetrics


def label_map(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.uint8)


def test_by_hand() -> None:
    metrics = LabelMapMetrics(4)
    truth = label_map([0, 0, 1, 255], [0, 1, 1, 255])
    metrics.update(label_map([0, 1, 1, 3], [0, 1, 2, 0]), truth)
    # class 0: 2 of union 3; 1: 2 of union 4; 2: predicted once, never there; 3: only where ignored
    assert metrics.per_class_iou() == pytest.approx([200 / 3, 50.0, 0.0, None])
    found = metrics.compute()
    assert list(found) == ["miou", "mean_accuracy", "pixel_accuracy"]
    assert found["miou"] == pytest.approx((200 / 3 + 50.0 + 0.0) / 3)
    assert found["mean_accuracy"] == pytest.approx(200 / 3)  # 2 of 3 in both classes of the truth
    assert found["pixel_accuracy"] == pytest.approx(400 / 6)


def test_pictures_are_added_up_and_forgotten() -> None:
    metrics = LabelMapMetrics(2)
    metrics.update(label_map([0, 0, 0]), label_map([0, 0, 0]))
    metrics.update(label_map([0]), label_map([1]))
    # over all pixels, not the mean over pictures: that would be (100 + 0) / 2
    assert metrics.compute()["pixel_accuracy"] == 75.0
    assert metrics.compute()["miou"] == (75.0 + 0.0) / 2
    metrics.reset()
    metrics.update(label_map([1]), label_map([1]))
    assert metrics.per_class_iou() == [None, 100.0]
    assert set(metrics.compute().values()) == {100.0}


def test_nothing_scored() -> None:
    metrics = LabelMapMetrics(3)
    nothing = {"miou": None, "mean_accuracy": None, "pixel_accuracy": None}
    assert metrics.compute() == nothing
    metrics.update(label_map([1, 2]), label_map([255, 255]))
    metrics.update(torch.zeros(0, 0), torch.zeros(0, 0))
    assert metrics.compute() == nothing
    assert metrics.per_class_iou() == [None, None, None]


def test_counts_beyond_what_float32_holds() -> None:
    metrics = LabelMapMetrics(2)
    metrics.pixels[0, 0] = 2**33
    metrics.update(label_map([0]), label_map([0]))
    assert metrics.pixels[0, 0].item() == 2**33 + 1


def test_what_does_not_fit_is_named() -> None:
    metrics = LabelMapMetrics(3)
    with pytest.raises(VpeftBenchError, match=r"\(1, 2\), the truth \(1, 3\)"):
        metrics.update(label_map([0, 0]), label_map([0, 0, 0]))
    with pytest.raises(VpeftBenchError, match="class 3 in the truth, but there are 3 classes"):
        metrics.update(label_map([0, 0]), label_map([0, 3]))
    with pytest.raises(VpeftBenchError, match="class 255 in the prediction"):
        metrics.update(label_map([255, 0]), label_map([0, 1]))
    assert metrics.pixels.sum() == 0


def naive(
    pairs: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]], classes: int
) -> tuple[float, float, float]:
    """One class at a time, straight from the definitions."""
    predicted = np.concatenate([prediction.ravel() for prediction, _ in pairs])
    true = np.concatenate([truth.ravel() for _, truth in pairs])
    predicted, true = predicted[true != 255], true[true != 255]
    ious, accuracies = [], []
    for label in range(classes):
        both = np.count_nonzero((predicted == label) & (true == label))
        either = np.count_nonzero((predicted == label) | (true == label))
        if either:
            ious.append(both / either)
        if np.count_nonzero(true == label):
            accuracies.append(both / np.count_nonzero(true == label))
    return float(np.mean(ious)), float(np.mean(accuracies)), float(np.mean(predicted == true))


def test_real_label_maps() -> None:
    """CamVid's truth against itself, moved and with wrong blocks in it: not a model's output."""
    root = shared_path("data/camvid/voc_style")
    names = (root / "ImageSets/Segmentation/val.txt").read_text().split()
    random = np.random.default_rng(0)
    classes = 11
    metrics = LabelMapMetrics(classes + 2)  # two classes that never occur
    pairs = []
    for name in names:
        with Image.open(root / "SegmentationClass" / f"{name}.png") as image:
            truth = np.asarray(image)
        prediction = np.roll(truth, tuple(random.integers(-9, 10, 2)), axis=(0, 1)).copy()
        prediction[prediction == 255] = random.integers(classes)
        top, left = random.integers(0, 200, 2)
        prediction[top : top + 80, left : left + 120] = random.integers(classes)
        pairs.append((prediction, truth))
        metrics.update(torch.from_numpy(prediction), torch.from_numpy(truth.copy()))
    assert any((truth == 255).any() for _, truth in pairs)
    found = list(metrics.compute().values())
    assert found == pytest.approx([100 * x for x in naive(pairs, classes)], rel=1e-12)
    assert metrics.per_class_iou()[classes:] == [None, None]
    assert 40 < found[0] < 95  # type: ignore[operator]
