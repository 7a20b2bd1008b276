"""The rendered scenes: the same everywhere, and the truth about them is exact."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from vpeft_bench.config.schema import register_schema, typed
from vpeft_bench.data import demo, scenes
from vpeft_bench.data.demo import read_scenes
from vpeft_bench.data.schema import DataConfig
from vpeft_bench.data.splits import Dataset, LabelMapSplit, ObjectSplit
from vpeft_bench.errors import MissingDataError

# First 16 hex digits of sha256: of the fingerprint's input, and of all that a split gives. A change
# of pixels or truth must come with a new VERSION, which changes the fingerprint as well.
PINNED = {
    "detection": ("93ffa265d727e67a", "b22c3b89b422ff2a"),
    "instances": ("9519a499cce296d8", "b653007132bb87f2"),
    "segmentation": ("2b37cf04fc5ae958", "9c415e2c843cc50e"),
}
CHOICES = {
    "detection": ("detection", "faster_rcnn"),
    "instances": ("detection", "mask_rcnn"),
    "segmentation": ("segmentation", "linear"),
}
SPLITS = ("train", "val", "trainval", "test")


def open_scenes(variant: str) -> Dataset:
    return read_scenes(DataConfig(name="x", reader="scenes", variant=variant))


def object_split(variant: str, name: str) -> ObjectSplit:
    split = open_scenes(variant).split(name)
    assert isinstance(split, ObjectSplit)
    return split


def content_hash(dataset: Dataset) -> str:
    digest = hashlib.sha256()
    for name in ("trainval", "test"):
        split = dataset.split(name)
        for index in range(len(split)):
            digest.update(split.image(index).tobytes())
            if isinstance(split, LabelMapSplit):
                digest.update(split.label_map(index).tobytes())
            elif isinstance(split, ObjectSplit):
                truth = split.objects(index)
                digest.update(truth.boxes.astype("<f4").tobytes())
                digest.update(truth.labels.astype("<i8").tobytes())
                digest.update(b"" if truth.masks is None else truth.masks.tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("variant", PINNED)
def test_contents_are_pinned(variant: str) -> None:
    dataset = open_scenes(variant)
    assert (dataset.fingerprint[:16], content_hash(dataset)[:16]) == PINNED[variant]


@pytest.mark.parametrize("variant", PINNED)
def test_configured_facts_hold(config_dir: Path, variant: str) -> None:
    register_schema()
    with initialize_config_dir(str(config_dir), version_base="1.3"):
        run = typed(compose("config", overrides=[f"data=demo/scenes_{variant}"]))
    assert run.head is not None
    assert (run.task["name"], run.head.name) == CHOICES[variant]
    config = run.data
    assert (config.reader, config.variant) == ("scenes", variant)
    dataset = read_scenes(config)
    assert dataset.num_classes == config.num_classes == len(dataset.class_names or ())
    sizes = (config.train_size, config.val_size, config.test_size)
    assert tuple(len(dataset.split(name)) for name in ("train", "val", "test")) == sizes
    train, val, both = (dataset.split(name) for name in ("train", "val", "trainval"))
    assert len(both) == len(train) + len(val)
    assert both.image(0).tobytes() == train.image(0).tobytes()
    assert both.image(len(train)).tobytes() == val.image(0).tobytes()


@pytest.mark.parametrize("name", SPLITS)
def test_variants_agree(name: str) -> None:
    boxes, masks = object_split("detection", name), object_split("instances", name)
    maps = open_scenes("segmentation").split(name)
    assert isinstance(maps, LabelMapSplit)
    for index in range(0, len(boxes), 5):
        pixels = boxes.image(index).tobytes()
        assert masks.image(index).tobytes() == maps.image(index).tobytes() == pixels
        first, second = boxes.objects(index), masks.objects(index)
        assert first.masks is None
        assert second.masks is not None
        assert np.array_equal(first.boxes, second.boxes)
        assert np.array_equal(first.labels, second.labels)
        painted = np.zeros((64, 64), dtype=np.uint8)
        for mask, label in zip(second.masks, second.labels, strict=True):
            painted[mask] = 1 + label
        assert np.array_equal(maps.label_map(index), painted)


def test_truth_is_consistent() -> None:
    for name in ("trainval", "test"):
        split = object_split("instances", name)
        for index in range(len(split)):
            truth = split.objects(index)
            assert truth.masks is not None
            assert 1 <= len(truth.labels) <= 6
            assert truth.masks.shape == (len(truth.labels), 64, 64)
            assert truth.masks.sum(axis=0).max() == 1  # of two that overlap, the front one is seen
            assert not truth.ignored.any()
            assert truth.areas.tolist() == [mask.sum() for mask in truth.masks]
            assert truth.areas.min() >= scenes.MIN_VISIBLE_AREA
            for (left, top, right, bottom), mask in zip(truth.boxes, truth.masks, strict=True):
                rows, columns = np.nonzero(mask)
                assert (left, right) == (columns.min(), columns.max() + 1)
                assert (top, bottom) == (rows.min(), rows.max() + 1)
            arrays = (truth.boxes, truth.labels, truth.areas, truth.masks)
            assert [array.dtype for array in arrays] == ["float64", "int64", "float64", "bool"]


@pytest.mark.parametrize("name", ["train", "val", "test"])
def test_no_class_and_no_number_of_objects_is_rare(name: str) -> None:
    split = object_split("detection", name)
    labels = [split.objects(index).labels for index in range(len(split))]
    for counts in (
        np.bincount(np.concatenate(labels), minlength=6),
        np.bincount([len(some) for some in labels], minlength=7)[1:],
    ):
        assert counts.min() > 0.4 * counts.mean()
        assert counts.max() < 2 * counts.mean()


def test_masks_lie_on_what_the_picture_shows() -> None:
    split = object_split("instances", "test")
    for index in range(len(split)):
        pixels = np.asarray(split.image(index), dtype=np.float64)
        truth = split.objects(index)
        assert truth.masks is not None
        background = np.median(pixels[~truth.masks.any(axis=0)], axis=0)
        distance = np.abs(pixels - background).max(axis=2)
        inside = [np.mean(distance[mask] > 40) for mask in truth.masks]
        assert min(inside) > 0.9
        # Clutter and smooth edges stand out as well, but are few.
        assert np.mean(distance[~truth.masks.any(axis=0)] > 40) < 0.1


def test_classes_are_the_shapes_they_are_called() -> None:
    """Of shapes wholly in sight: how much of the box is filled, and whether there is a hole."""
    filled: dict[str, list[float]] = {name: [] for name in scenes.CLASS_NAMES}
    holes: dict[str, list[bool]] = {name: [] for name in scenes.CLASS_NAMES}
    split = object_split("instances", "trainval")
    for index in range(len(split)):
        truth = split.objects(index)
        assert truth.masks is not None
        box, mask = truth.boxes[-1].astype(int), truth.masks[-1]
        if box.min() == 0 or box.max() == 64:
            continue
        window = mask[box[1] : box[3], box[0] : box[2]]
        name = scenes.CLASS_NAMES[truth.labels[-1]]
        filled[name].append(window.mean())
        rows, columns = np.nonzero(window)
        holes[name].append(not window[round(rows.mean()), round(columns.mean())])
    means = {name: np.mean(values) for name, values in filled.items()}
    assert all(holes["ring"])
    assert not any(any(found) for name, found in holes.items() if name != "ring")
    assert means["disc"] == pytest.approx(np.pi / 4, abs=0.03)
    assert means["ring"] == pytest.approx(0.7 * np.pi / 4, abs=0.03)
    assert means["cross"] < 0.6 < means["square"]
    assert means["triangle"] < means["heart"]


def test_a_shape_is_not_hidden_beyond_the_limits() -> None:
    instances = np.zeros(64 * 64, dtype=np.uint8)
    instances[:160] = 1
    instances[1000:1025] = 2
    seen = instances.reshape(64, 64)
    assert scenes._all_visible(seen, [400, 26])
    assert not scenes._all_visible(seen, [401, 26])  # less than two fifths of it
    instances[1000] = 0
    assert not scenes._all_visible(seen, [400, 26])  # fewer than 25 pixels


def test_splits_reach_worker_processes() -> None:
    split = object_split("instances", "val")
    sent = pickle.loads(pickle.dumps(split))
    assert sent.image(7).tobytes() == split.image(7).tobytes()
    assert len(pickle.dumps(split)) < 1000  # no picture travels with it


def test_cache_holds_all_scenes_once(cache: Path) -> None:
    demo._all_scenes.cache_clear()  # whatever an earlier test has read
    for variant in PINNED:
        open_scenes(variant).split("test").image(0)
    assert [file.name for file in cache.glob("scenes*")] == [f"scenes-v{scenes.VERSION}.npz"]


def test_unknown_variant_names_the_nearest() -> None:
    with pytest.raises(MissingDataError, match=r"did you mean data\.variant=segmentation"):
        open_scenes("segmentations")
