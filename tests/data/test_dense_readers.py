"""Readers of boxes, masks and label maps: on the real files, and on small made-up ones."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as reference_mask
from pycocotools.coco import COCO

from tests.data.conftest import inspected
from vpeft_bench.config.sections import IGNORED_LABEL
from vpeft_bench.data.ade20k import read_ade20k
from vpeft_bench.data.coco import CocoSplit, read_coco
from vpeft_bench.data.composed import compose_data_configs
from vpeft_bench.data.dense_files import FileMaps, FileObjects
from vpeft_bench.data.schema import BoxMetric, DataConfig
from vpeft_bench.data.splits import SPLITS, Dataset
from vpeft_bench.data.voc import read_voc_boxes, read_voc_masks
from vpeft_bench.errors import MissingDataError, UnsoundDataError, VpeftBenchError

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning:pycocotools")

Read = Callable[[DataConfig], Dataset]


def composed(config_dir: Path, name: str, root: Path, **lists: str) -> DataConfig:
    [config] = compose_data_configs(config_dir, [name])
    config.root = str(root)
    config.lists.update(lists)
    return config


def sizes_of(dataset: Dataset) -> dict[str, int]:
    return {name: len(dataset.split(name)) for name in SPLITS}


def problems_of(read: Read, config: DataConfig) -> str:
    with pytest.raises(MissingDataError) as raised:
        read(config)
    assert "data.root=DIR" in raised.value.problems[-1].fix
    return str(raised.value)


def object_split(dataset: Dataset, name: str) -> FileObjects:
    split = dataset.split(name)
    assert isinstance(split, FileObjects)
    return split


def map_split(dataset: Dataset, name: str) -> FileMaps:
    split = dataset.split(name)
    assert isinstance(split, FileMaps)
    return split


def compare_with_pycocotools(split: CocoSplit, file: Path) -> int:
    """Every object against what COCO's own code reads from the same file; how many there were."""
    reference = COCO(str(file))
    numbers = {id_: number for number, id_ in enumerate(sorted(reference.getCatIds()))}
    by_name = {record["file_name"]: record for record in reference.imgs.values()}
    count = 0
    for index, picture in enumerate(split.pictures):
        expected = reference.imgToAnns[by_name[picture.name]["id"]]
        objects = split.objects(index)
        boxes = np.array([record["bbox"] for record in expected]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_allclose(objects.boxes, boxes, rtol=1e-6)
        assert objects.labels.tolist() == [numbers[record["category_id"]] for record in expected]
        assert objects.ignored.tolist() == [bool(record["iscrowd"]) for record in expected]
        np.testing.assert_allclose(objects.areas, [record["area"] for record in expected])
        assert objects.masks is not None
        assert objects.masks.shape == (len(expected), picture.size[1], picture.size[0])
        for drawn, record in zip(objects.masks, expected, strict=True):
            assert np.array_equal(drawn, reference.annToMask(record).astype(bool))
        count += len(expected)
    return count


def test_real_coco(config_dir: Path, shared_data: Path) -> None:
    dataset = read_coco(composed(config_dir, "coco", shared_data))
    assert sizes_of(dataset) == {"train": 25, "val": 1, "trainval": 26, "test": 27}
    assert dataset.num_classes == 80
    assert dataset.class_names is not None
    assert (dataset.class_names[0], dataset.class_names[79]) == ("person", "toothbrush")

    annotations = shared_data / "coco" / "annotations"
    counted = {}
    for name, file in (("trainval", "train2017"), ("test", "val2017")):
        split = dataset.split(name)
        assert isinstance(split, CocoSplit)
        assert split.has_masks
        counted[name] = compare_with_pycocotools(split, annotations / f"instances_{file}.json")
    assert counted == {"trainval": 181, "test": 174}
    crowds = [split.objects(i).ignored.sum() for i in range(27)]
    assert sum(crowds) == 2
    assert split.image(0).size == split.pictures[0].size

    # The picture without objects is kept.
    trainval = object_split(dataset, "trainval")
    [empty] = [i for i in range(26) if len(trainval.objects(i).labels) == 0]
    objects = trainval.objects(empty)
    assert (objects.boxes.shape, objects.boxes.dtype) == ((0, 4), np.float64)
    assert objects.masks is not None
    assert objects.masks.shape[0] == 0


def test_real_nuclei(config_dir: Path, shared_data: Path) -> None:
    dataset = read_coco(composed(config_dir, "coco_json", shared_data / "nuclei"))
    assert sizes_of(dataset) == {"train": 108, "val": 12, "trainval": 120, "test": 40}
    assert (dataset.num_classes, dataset.class_names) == (1, ("nucleus",))
    split = dataset.split("test")
    assert isinstance(split, CocoSplit)
    file = shared_data / "nuclei" / "annotations" / "instances_val.json"
    assert compare_with_pycocotools(split, file) == 1161


def test_real_bccd_reads_alike_from_xml_and_json(config_dir: Path, shared_data: Path) -> None:
    root = shared_data / "voc" / "BCCD"
    from_xml = read_voc_boxes(composed(config_dir, "voc_xml", root))
    files = {name: f"annotations_coco/{name}.json" for name in ("train", "val", "test")}
    folders = {"train_images": "", "test_images": ""}
    config = composed(config_dir, "coco_json", root, **files, **folders)
    config.image_folder = "JPEGImages"
    from_json = read_coco(config)

    assert from_xml.class_names == from_json.class_names == ("Platelets", "RBC", "WBC")
    sizes = {"train": 205, "val": 87, "trainval": 292, "test": 72}
    assert sizes_of(from_xml) == sizes_of(from_json) == sizes
    count = 0
    for name in ("trainval", "test"):
        left, right = object_split(from_xml, name), object_split(from_json, name)
        assert not left.has_masks
        assert not right.has_masks
        in_json = {Path(picture.path).stem: i for i, picture in enumerate(right.pictures)}
        for index, picture in enumerate(left.pictures):
            mine, other = left.objects(index), right.objects(in_json[picture.name])
            assert mine.masks is other.masks is None
            for field in ("boxes", "labels", "ignored", "areas"):
                assert np.array_equal(getattr(mine, field), getattr(other, field)), picture.name
            count += len(mine.labels)
    assert count == 4888
    assert left.image(0).size == (640, 480)


def test_real_camvid_in_ade20k_layout(config_dir: Path, shared_data: Path) -> None:
    root = shared_data / "camvid" / "ade_style"
    dataset = read_ade20k(composed(config_dir, "ade20k_folders", root))
    assert sizes_of(dataset) == {"train": 90, "val": 10, "trainval": 100, "test": 50}
    assert dataset.class_names is not None
    assert (dataset.num_classes, dataset.class_names[0]) == (11, "Sky")
    split = map_split(dataset, "test")
    seen = set()
    for index in range(0, 50, 5):
        labels = split.label_map(index)
        assert (labels.dtype, labels.shape) == (np.uint8, (360, 480))
        raw = np.asarray(Image.open(split.pictures[index].map_path)).astype(int)
        assert np.array_equal(labels, np.where(raw == 0, IGNORED_LABEL, raw - 1))
        seen |= set(np.unique(labels).tolist())
    assert seen == {*range(11), IGNORED_LABEL}
    assert split.image(0).size == (480, 360)


def test_real_camvid_in_voc_layout(config_dir: Path, shared_data: Path) -> None:
    root = shared_data / "camvid" / "voc_style"
    dataset = read_voc_masks(composed(config_dir, "voc_masks", root))
    assert sizes_of(dataset) == {"train": 36, "val": 4, "trainval": 40, "test": 20}
    assert dataset.class_names is not None
    assert (dataset.num_classes, dataset.class_names[10]) == (11, "Bicyclist")
    split = map_split(dataset, "test")
    seen = set()
    for index in range(0, 20, 2):
        seen |= set(np.unique(split.label_map(index)).tolist())
    assert seen == {*range(11), IGNORED_LABEL}  # indices of the palette, and 0 is a class


def test_real_ade20k_sample(config_dir: Path, shared_data: Path, tmp_path: Path) -> None:
    config = composed(config_dir, "ade20k", shared_data / "ade20k_sample")
    assert "ade20k_sample/ADEChallengeData2016" in problems_of(read_ade20k, config)
    config.folders = []
    text = problems_of(read_ade20k, config)
    assert "1 problem;" in text
    assert "no images/training, annotations/training in it" in text

    config.lists["train"] = "validation"
    with pytest.raises(UnsoundDataError, match="3 of the 3 test pictures are in train"):
        inspected(read_ade20k(config), config).require_sound()

    for kind in ("images", "annotations"):  # two of its three pictures to train on
        for place, file in enumerate(sorted((shared_data / "ade20k_sample" / kind).rglob("*.*g"))):
            part = tmp_path / kind / ("validation" if place == 2 else "training")
            part.mkdir(parents=True, exist_ok=True)
            (part / file.name).symlink_to(file)
    (tmp_path / "objectInfo150.txt").symlink_to(shared_data / "ade20k_sample/objectInfo150.txt")
    config.root, config.lists["train"] = str(tmp_path), "training"
    dataset = read_ade20k(config)
    assert sizes_of(dataset) == {"train": 1, "val": 1, "trainval": 2, "test": 1}
    assert dataset.num_classes == 150
    assert dataset.class_names is not None
    assert dataset.class_names[:3] == ("wall", "building", "sky")
    for split in (map_split(dataset, "trainval"), map_split(dataset, "test")):
        for index in range(len(split)):
            raw = np.asarray(Image.open(split.pictures[index].map_path)).astype(int)
            labels = split.label_map(index)
            assert np.array_equal(labels, np.where(raw == 0, IGNORED_LABEL, raw - 1))
            assert labels.shape[::-1] == split.image(index).size


def test_splits_can_be_sent_to_workers(config_dir: Path, shared_data: Path) -> None:
    coco = object_split(read_coco(composed(config_dir, "coco", shared_data)), "test")
    copy = pickle.loads(pickle.dumps(coco))
    for field in ("boxes", "masks"):
        assert np.array_equal(getattr(copy.objects(3), field), getattr(coco.objects(3), field))
    root = shared_data / "camvid" / "ade_style"
    maps = map_split(read_ade20k(composed(config_dir, "ade20k_folders", root)), "test")
    copied = pickle.loads(pickle.dumps(maps))
    assert np.array_equal(copied.label_map(1), maps.label_map(1))


# COCO's layout


class MakeCoco:
    """Writes JSON files, and pictures of 40x30 pixels for their image records."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def content(self, count: int = 10, part: str = "", **tables: Any) -> dict[str, Any]:
        images = [
            {"id": 7 * i, "file_name": f"{part}{i:03d}.png", "width": 40, "height": 30}
            for i in range(count)
        ]
        categories = [{"id": 9, "name": "dog"}, {"id": 4, "name": "cat"}]
        content = {"images": images, "categories": categories, "annotations": [], **tables}
        records = enumerate(content["annotations"], start=1)
        content["annotations"] = [{"id": number, **record} for number, record in records]
        return content

    def __call__(self, train: Any, test: Any = None) -> DataConfig:
        (self.folder / "pictures").mkdir(exist_ok=True)
        for i in range(10):
            for part in ("", "val", "test"):
                Image.new("RGB", (40, 30)).save(self.folder / "pictures" / f"{part}{i:03d}.png")
        test = test or self.content(part="test")
        for name, content in {"train": train, "test": test}.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (self.folder / f"{name}.json").write_text(text)
        return DataConfig(
            name="coco_json",
            reader="coco",
            title="toys",
            root=str(self.folder),
            image_folder="pictures",
            hold_out=0.2,
            lists={"train": "train.json", "test": "test.json"},
        )


@pytest.fixture
def make_coco(tmp_path: Path) -> MakeCoco:
    return MakeCoco(tmp_path)


def annotation(image: int, category: int = 4, **fields: Any) -> dict[str, Any]:
    bbox = {"bbox": [1, 2, 10, 20]}
    return {"image_id": 7 * image, "category_id": category, **bbox, **fields}


SQUARE = [[2, 3, 12, 3, 12, 13, 2, 13]]


def test_coco_boxes_classes_and_ignored_regions(make_coco: MakeCoco) -> None:
    annotations = [
        annotation(0, 9, bbox=[0.5, 1.25, 10, 20], area=77.5, segmentation=SQUARE),
        annotation(0, 4, iscrowd=1),
        annotation(0, 4, ignore=1, iscrowd=0, segmentation=SQUARE),
        annotation(0, 4, difficult=True),
        annotation(0, 4, bbox=[3, 3, 0, 5], segmentation=SQUARE),
        annotation(0, 4, bbox=[600.5, 3, 1e-6, 5], segmentation=SQUARE),
        annotation(0, 4, bbox=[3, 3, 0.5, 0.25], segmentation=SQUARE),
    ]
    dataset = read_coco(make_coco(make_coco.content(annotations=annotations)))
    assert dataset.class_names == ("cat", "dog")
    assert dataset.category_ids == (4, 9)
    split = object_split(dataset, "trainval")
    objects = split.objects(0)
    assert objects.labels.tolist() == [1, 0, 0, 0, 0, 0, 0]  # with the one that has no area
    assert objects.ignored.tolist() == [False, True, True, True, False, False, False]
    assert split.flags == ("difficult", "ignore", "iscrowd")
    crowds = [split.objects(0, masks).crowds for masks in (False, True)]
    assert crowds[0] is not None
    assert crowds[0].tolist() == [False, True, *[False] * 5]  # COCO's own flag
    assert crowds[1] is not None
    assert crowds[1].tolist() == [False, True, False, True, *[False] * 3]  # or no mask
    np.testing.assert_array_equal(objects.boxes[0], [0.5, 1.25, 10.5, 21.25])
    np.testing.assert_array_equal(objects.boxes[4:6], [[3, 3, 3, 8], [600.5, 3, 600.5 + 1e-6, 8]])
    np.testing.assert_array_equal(objects.areas, [77.5, 200, 200, 200, 0, 5 * 1e-6, 0.125])
    # The crowd without a mask does not keep the others from having theirs; it fills its box.
    assert split.has_masks
    assert objects.masks is not None
    assert objects.masks.sum(axis=(1, 2)).tolist() == [100, 200, 100, 200, 100, 100, 100]
    assert objects.masks[1, 2:22, 1:11].all()
    assert len(split.objects(1).labels) == 0


def test_coco_without_all_masks_has_none(make_coco: MakeCoco) -> None:
    annotations = [annotation(0, segmentation=SQUARE), annotation(1, segmentation=[])]
    config = make_coco(make_coco.content(annotations=annotations))
    dataset = read_coco(config)
    assert not any(object_split(dataset, name).has_masks for name in SPLITS)
    assert object_split(dataset, "trainval").objects(0).masks is None
    [problem] = dataset.unmasked
    assert problem.where == str(make_coco.folder / "train.json")
    assert problem.what == "1 objects have no segmentation:"
    assert problem.fix.splitlines()[0] == "annotation 2"
    assert "data.skip_malformed=true" in problem.fix

    config.skip_malformed = True
    dataset = read_coco(config)
    assert dataset.has_masks
    assert not dataset.unmasked
    assert dataset.notices == ("1 objects of train.json are without a segmentation (annotation 2)",)
    split = object_split(dataset, "trainval")
    assert not split.objects(1, masks=False).ignored.any()  # its box is as good as any
    assert split.objects(1).ignored.tolist() == [True]

    boxes_only = read_coco(make_coco(make_coco.content(annotations=[annotation(0)])))
    assert not boxes_only.has_masks
    assert not boxes_only.unmasked  # nobody meant it to have masks


def test_coco_run_lengths(make_coco: MakeCoco) -> None:
    rng = np.random.default_rng(0)
    drawn = [rng.random((30, 40)) < share for share in (0.0, 0.02, 0.5, 1.0)]
    drawn[1][:, 30:] = True  # runs of more than a thousand pixels
    segmentations: list[Any] = []
    for mask in drawn:
        encoded = reference_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        segmentations.append({"size": [30, 40], "counts": encoded["counts"].decode()})
    flat = drawn[2].T.ravel()
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *changes, flat.size]).tolist()
    segmentations.append({"size": [30, 40], "counts": [0, *counts] if flat[0] else counts})
    annotations = [annotation(2, segmentation=item) for item in segmentations]
    dataset = read_coco(make_coco(make_coco.content(annotations=annotations)))
    masks = object_split(dataset, "trainval").objects(2).masks
    assert masks is not None
    for mask, expected in zip(masks, [*drawn, drawn[2]], strict=True):
        assert np.array_equal(mask, expected)


def test_all_problems_of_coco_files_at_once(make_coco: MakeCoco) -> None:
    annotations = [
        annotation(99),
        annotation(0, 5),
        annotation(0, bbox=[1, 2, 3]),
        annotation(0, bbox=[1, 2, 3, float("nan")]),
        annotation(0, bbox=[1, 2, 3, 1e39]),
        annotation(0, area="big"),
        annotation(0, iscrowd="0"),
    ]
    annotations = [{**record, "id": number} for number, record in enumerate(annotations)]
    test = make_coco.content(12, categories=[{"id": 4, "name": "cat"}, {"id": 9, "name": "cow"}])
    test["images"][3] |= {"id": 0}
    test["images"][4] |= {"height": None}
    config = make_coco(make_coco.content(annotations=annotations), test)
    config.num_classes = 3
    text = problems_of(read_coco, config)
    for part in (
        "6 problems",
        "holds 2 classes where toys has 3",
        "1 annotations of images that are not in it:",
        "annotation 0: image_id 693",
        "6 malformed annotations:",
        "annotation 1: category_id 5 is not in categories",
        "annotation 2: bbox [1, 2, 3] is not [left, top, width, height]",
        "annotation 3: bbox [1, 2, 3, nan]",
        "annotation 4: bbox [1, 2, 3, 1e+39]",
        "annotation 5: area 'big' is not a number",
        "... and 1 more\n      to leave them out: data.skip_malformed=true",
        "1 categories are not those of the training pictures:",
        "9: cow",
        "2 malformed images:",
        "image 0: another one has this id",
        "image 28: width 40, height None",
        "2 of the pictures it lists are not there:",
        "pictures/010.png",
    ):
        assert part in text


def test_malformed_objects_are_left_out_where_that_is_asked(make_coco: MakeCoco) -> None:
    annotations = [
        annotation(0),
        annotation(99),
        annotation(0, 5),
        annotation(0, bbox=[1, 2, 3]),
        annotation(0, iscrowd=2),
        annotation(1, 9),
    ]
    config = make_coco(make_coco.content(annotations=annotations))
    config.skip_malformed = True
    dataset = read_coco(config)
    split = object_split(dataset, "trainval")
    assert [len(split.objects(i).labels) for i in range(2)] == [1, 1]
    assert dataset.notices == (
        "1 of 6 objects of train.json are left out (annotations of images that are not in it)",
        "3 of 6 objects of train.json are left out (malformed annotations)",
    )


@pytest.mark.parametrize("value", [0, 1, True, False, 0.0, 1.0])
def test_flags_that_can_be_read(make_coco: MakeCoco, value: Any) -> None:
    for flag in ("iscrowd", "ignore", "difficult"):
        content = make_coco.content(annotations=[annotation(0, **{flag: value})])
        objects = object_split(read_coco(make_coco(content)), "trainval").objects(0)
        assert objects.ignored.tolist() == [bool(value)]


@pytest.mark.parametrize("value", ["0", "false", "", None, 2, -1, 0.5, [], {}, float("nan")])
def test_flags_that_are_none(make_coco: MakeCoco, value: Any) -> None:
    for flag in ("iscrowd", "ignore", "difficult"):
        content = make_coco.content(annotations=[annotation(0, **{flag: value})])
        text = problems_of(read_coco, make_coco(content))
        assert "train.json: 1 malformed annotations:" in text
        assert f"annotation 1: {flag} {value!r} is none of 0, 1, true and false" in text


@pytest.mark.parametrize(
    ("bbox", "area"),
    [
        ([1, 2, 3, 10**400], 1),
        ([-(2**20), 2, 3, 4], 1),
        ([1, 2, float("inf"), 4], 1),
        ([1, 2, True, 4], 1),
        (["1", "2", "3", "4"], 1),
        ({"x": 1}, 1),
        ([1, 2, 3, 4], 10**400),
        ([1, 2, 3, 4], float("nan")),
        ([1, 2, 3, 4], None),
    ],
)
def test_numbers_that_no_box_has(make_coco: MakeCoco, bbox: Any, area: Any) -> None:
    content = make_coco.content(annotations=[annotation(0, bbox=bbox, area=area)])
    assert "annotation 1: " in problems_of(read_coco, make_coco(content))


@pytest.mark.parametrize("size", [{"width": 2**20}, {"width": 10**400}, {"height": 0}])
def test_sizes_that_no_picture_has(make_coco: MakeCoco, size: dict[str, int]) -> None:
    content = make_coco.content()
    content["images"][2] |= size
    assert "image 14: width" in problems_of(read_coco, make_coco(content))


def test_ids_and_names_are_not_shared(make_coco: MakeCoco) -> None:
    content = make_coco.content(annotations=[annotation(0), annotation(1), annotation(2)])
    for record in content["annotations"][1:]:
        record["id"] = "x"
    content["categories"] = [{"id": 4, "name": "cat"}, {"id": 9, "name": "cat"}]
    text = problems_of(read_coco, make_coco(content, make_coco.content(part="test")))
    assert "1 annotation ids are listed twice or more:\n      annotation x: 2 times" in text
    assert "1 names are those of several categories:\n      cat: 4, 9" in text


MALFORMED_MASKS = [
    ({"size": [40, 30], "counts": [1200]}, "size [40, 30] is not [30, 40]"),
    ({"size": [30, 40], "counts": [1201]}, "do not make up 30x40 pixels"),
    ({"size": [30, 40], "counts": "a"}, "do not make up"),
    ({"size": [30, 40], "counts": "Q"}, "do not make up"),
    ({"size": [30, 40], "counts": [1210, -10]}, "do not make up"),
    ({"size": [30, 40], "counts": None}, "neither integers nor a text"),
    ([[1, 2, 3, 4]], "three corners or more"),
    ([[128.0, 128.0]], "three corners or more"),
    ([[1, 2, 3, 4, 5, 6, 7]], "three corners or more"),
    ([1, 2, 3, 4, 5, 6], "three corners or more"),
    ([["x"] * 6], "three corners or more"),
    ([[1, 2, 3, 4, 5, float("nan")]], "three corners or more"),
    ([[1, 2, 3, 4, 5, 10**400]], "three corners or more"),
    ([[1, 2, 3, 4, 5, 2**20]], "three corners or more"),
    ("a text", "three corners or more"),
]


@pytest.mark.parametrize(("segmentation", "reason"), MALFORMED_MASKS)
def test_malformed_masks_are_told(make_coco: MakeCoco, segmentation: Any, reason: str) -> None:
    annotations = [annotation(0, segmentation=segmentation), annotation(0, segmentation=SQUARE)]
    dataset = read_coco(make_coco(make_coco.content(annotations=annotations)))
    [notice] = dataset.notices
    assert "1 of 2 objects of train.json are without a sound segmentation (annotation 1" in notice
    assert reason in notice
    split = object_split(dataset, "trainval")
    assert not split.objects(0, masks=False).ignored.any()  # the boxes are trained on
    objects = split.objects(0)
    assert objects.ignored.tolist() == [True, False]  # with masks it is not
    assert objects.masks is not None
    assert objects.masks.sum(axis=(1, 2)).tolist() == [200, 100]


def test_sound_polygons_of_an_object_are_kept(make_coco: MakeCoco) -> None:
    annotations = [annotation(0, segmentation=[*SQUARE, [3, 3]])]
    dataset = read_coco(make_coco(make_coco.content(annotations=annotations)))
    assert len(dataset.notices) == 1
    objects = object_split(dataset, "trainval").objects(0)
    assert not objects.ignored.any()
    assert objects.masks is not None
    assert objects.masks.sum() == 100


def test_data_sets_whose_masks_are_all_malformed_have_none(make_coco: MakeCoco) -> None:
    """Boxes as polygons of two corners, as some converters write them."""
    annotations = [annotation(0, segmentation=[[1, 2, 10, 20]])]
    dataset = read_coco(make_coco(make_coco.content(annotations=annotations)))
    assert not dataset.has_masks
    [problem] = dataset.unmasked
    assert problem.what == "1 objects have no sound segmentation:"
    assert problem.fix == "annotation 1: not polygons of three corners or more"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000 + "]" * 100_000, "is not JSON"),
        ("[]", "no list of records images, annotations, categories"),
        ({"images": [], "categories": []}, "no list of records annotations"),
        ({"images": [], "categories": [], "annotations": []}, "lists no pictures"),
        ({"images": [{"id": 1}], "categories": [], "annotations": []}, "has no categories"),
    ],
)
def test_other_files_than_coco_files(make_coco: MakeCoco, content: Any, message: str) -> None:
    assert message in problems_of(read_coco, make_coco(content))


def test_picture_of_another_size_than_its_record(make_coco: MakeCoco) -> None:
    config = make_coco(make_coco.content())
    Image.new("RGB", (30, 40)).save(make_coco.folder / "pictures" / "002.png")
    with pytest.raises(VpeftBenchError, match=r"002\.png is 30x40, but its annotation says 40x30"):
        read_coco(config).split("trainval").image(2)


def test_coco_is_identified_by_content(make_coco: MakeCoco) -> None:
    first = read_coco(make_coco(make_coco.content(annotations=[annotation(0)])))
    same = read_coco(make_coco(make_coco.content(annotations=[annotation(0)])))
    moved = read_coco(make_coco(make_coco.content(annotations=[annotation(1)])))
    assert first.fingerprint == same.fingerprint
    assert first.fingerprint != moved.fingerprint


# Which pictures are held out


def names_in(dataset: Dataset, split: str) -> list[str]:
    return [picture.name for picture in object_split(dataset, split).pictures]


def test_held_out_pictures_depend_on_names_alone(make_coco: MakeCoco) -> None:
    content = make_coco.content()
    dataset = read_coco(make_coco(content))
    parts = {name: names_in(dataset, name) for name in SPLITS}
    assert (len(parts["train"]), len(parts["val"])) == (8, 2)
    assert sorted(parts["train"] + parts["val"]) == parts["trainval"]
    assert parts["val"] == ["003.png", "004.png"]  # the same on every machine, for good

    content["images"].reverse()
    reordered = read_coco(make_coco(content))
    assert names_in(reordered, "val") == ["004.png", "003.png"]
    assert names_in(reordered, "trainval") == parts["trainval"][::-1]


def test_list_of_validation_pictures_comes_before_holding_out(make_coco: MakeCoco) -> None:
    config = make_coco(make_coco.content(6), make_coco.content(4, "test"))
    (make_coco.folder / "val.json").write_text(json.dumps(make_coco.content(4, "val")))
    config.lists |= {"val": "val.json", "trainval": ""}
    assert sizes_of(read_coco(config)) == {"train": 6, "val": 4, "trainval": 10, "test": 4}
    config.lists["trainval"] = "train.json"
    assert sizes_of(read_coco(config))["trainval"] == 6


def test_problems_of_lists(make_coco: MakeCoco) -> None:
    config = make_coco(make_coco.content(1))
    assert "too few training pictures to hold some out: 1" in problems_of(read_coco, config)
    config.hold_out = 0.0
    text = problems_of(read_coco, config)
    assert "there are no validation pictures" in text
    assert "data.hold_out=0.1, or type data.lists.val=..." in text
    config.hold_out = 1.5
    assert "data.hold_out=1.5: is not a share" in problems_of(read_coco, config)
    config.lists = {"trian": "train.json", "test": "gone.json"}
    text = problems_of(read_coco, config)
    assert "did you mean data.lists.train=..." in text
    assert "data.lists.train: is not given" in text
    assert "no gone.json in it" in text


# Pascal VOC's layout


def xml(*objects: str, size: tuple[int, int] = (40, 30)) -> str:
    return f"""<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>
    {"".join(objects)}</annotation>"""


def xml_object(name: str, *corners: float, difficult: int | str | None = 0) -> str:
    keys = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(f"<{key}>{corner}</{key}>" for key, corner in zip(keys, corners, strict=True))
    flag = "" if difficult is None else f"<difficult>{difficult}</difficult>"
    # Parts of an object have boxes and names of their own, as people have in VOC2012.
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    return f"<object><name>{name}</name>{flag}{part}<bndbox>{box}</bndbox></object>"


def write_year(folder: Path, lists: dict[str, list[str]], kind: str = "Main") -> None:
    for place in ("Annotations", "JPEGImages", "SegmentationClass", f"ImageSets/{kind}"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    for name, pictures in lists.items():
        (folder / "ImageSets" / kind / f"{name}.txt").write_text("\n".join(pictures) + "\n")
        for picture in pictures:
            Image.new("RGB", (40, 30)).save(folder / "JPEGImages" / f"{picture}.jpg")
            text = xml(xml_object("cat", 1, 1, 40, 30), xml_object("dog", 3, 4, 3, 4))
            (folder / "Annotations" / f"{picture}.xml").write_text(text)


@pytest.fixture
def devkit(config_dir: Path, tmp_path: Path) -> DataConfig:
    """Two years; the lists of trainval are in another order than those of train and val."""
    lists = {"train": ["c", "a"], "val": ["b"], "trainval": ["a", "b", "c"]}
    write_year(tmp_path / "VOCdevkit" / "VOC2007", {**lists, "test": ["t"]})
    write_year(tmp_path / "VOCdevkit" / "VOC2012", {**lists, "train": ["c", "x"]})
    return composed(config_dir, "voc0712", tmp_path)


def test_voc_years_are_joined(devkit: DataConfig) -> None:
    dataset = read_voc_boxes(devkit)
    assert sizes_of(dataset) == {"train": 4, "val": 2, "trainval": 6, "test": 1}
    assert names_in(dataset, "train") == ["c", "a", "c", "x"]
    assert names_in(dataset, "trainval") == ["a", "b", "c"] * 2
    years = [Path(p.path).parts[-3] for p in object_split(dataset, "trainval").pictures]
    assert years == ["VOC2007"] * 3 + ["VOC2012"] * 3
    assert dataset.num_classes == 20
    assert dataset.class_names is not None
    assert (dataset.class_names[7], dataset.class_names[11]) == ("cat", "dog")
    assert devkit.box_metric is BoxMetric.voc07

    objects = object_split(dataset, "test").objects(0)
    assert objects.labels.tolist() == [7, 11]
    # From 1 and inclusive in the file: the whole picture, and a single pixel.
    np.testing.assert_array_equal(objects.boxes, [[0, 0, 40, 30], [2, 3, 3, 4]])
    assert objects.areas.tolist() == [1200, 1]


def test_voc_objects(devkit: DataConfig) -> None:
    file = Path(devkit.root) / "VOCdevkit" / "VOC2007" / "Annotations" / "t.xml"
    before = read_voc_boxes(devkit).fingerprint
    file.write_text(
        xml(
            xml_object("dog", 45.7, 2, 60.2, 9, difficult=1),
            xml_object("cat", 5, 5, 4, 9),
            xml_object("cat", 5, 5, 6, 9, difficult=None),
        )
    )
    dataset = read_voc_boxes(devkit)
    assert dataset.fingerprint != before
    objects = object_split(dataset, "test").objects(0)
    assert objects.labels.tolist() == [11, 7, 7]  # with the box that has no area
    assert objects.ignored.tolist() == [True, False, False]
    np.testing.assert_allclose(objects.areas, [15.5 * 8, 0, 10], rtol=1e-6)
    np.testing.assert_allclose(objects.boxes[0], [44.7, 1, 60.2, 9], rtol=1e-6)
    file.write_text(xml())
    assert object_split(read_voc_boxes(devkit), "test").objects(0).boxes.shape == (0, 4)


def test_voc_sizes_are_those_of_the_turned_picture(devkit: DataConfig) -> None:
    year = Path(devkit.root) / "VOCdevkit" / "VOC2007"
    exif = Image.Exif()
    exif[0x0112] = 6  # as telephones write it: stored as 30x40, shown as 40x30
    upright = np.zeros((30, 40, 3), dtype=np.uint8)
    upright[:15, :20] = 255
    stored = Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90)
    stored.save(year / "JPEGImages" / "t.jpg", exif=exif)
    file = year / "Annotations" / "t.xml"

    def sized(width: int, height: int) -> FileObjects:
        file.write_text(xml(xml_object("cat", 1, 1, 20, 15), size=(width, height)))
        return object_split(read_voc_boxes(devkit), "test")

    for split in (sized(40, 30), sized(0, 0)):  # or nothing said
        assert split.image(0).size == (40, 30)
        assert (np.asarray(split.image(0))[:12, :16] > 200).all()
    with pytest.raises(VpeftBenchError, match=r"t\.jpg is stored as 30x40.*EXIF orientation 6"):
        sized(30, 40).image(0)
    with pytest.raises(VpeftBenchError, match=r"t\.jpg is 40x30, but its annotation says 41x30"):
        sized(41, 30).image(0)


def test_all_problems_of_voc_folders_at_once(devkit: DataConfig) -> None:
    year = Path(devkit.root) / "VOCdevkit" / "VOC2007"
    (year / "Annotations" / "a.xml").write_text(xml(xml_object("kat", 1, 1, 2, 2)))
    (year / "Annotations" / "b.xml").write_text("<annotation>")
    (year / "Annotations" / "c.xml").write_text(xml("<object><name>cat</name></object>"))
    (year / "Annotations" / "t.xml").unlink()
    (year / "ImageSets" / "Main" / "val.txt").write_text("\n")
    (year / "ImageSets" / "Main" / "train.txt").write_text("a\ngone\n")
    (year.parent / "VOC2012" / "ImageSets" / "Main" / "val.txt").unlink()
    text = problems_of(read_voc_boxes, devkit)
    for part in (
        "7 problems",
        "no VOC2012/ImageSets/Main/val.txt in it",
        "1 of the pictures it lists are not there:",
        "VOC2007/JPEGImages/gone.jpg",
        "val.txt: lists no pictures",
        f"1 of its pictures have no file in {year / 'Annotations'}:\n      t.xml",
        "1 of its annotations cannot be read:",
        "b.xml: not XML: no element found",
        "1 malformed objects:",
        "c.xml: object 1: xmin of a cat is None",
        "1 objects of unknown classes:",
        f"kat: 1, first in {year / 'Annotations' / 'a.xml'}",
        "to leave them out: data.skip_malformed=true",
        "known: aeroplane, bicycle",
        "get it from http://host.robots.ox.ac.uk/pascal/VOC",
    ):
        assert part in text


def test_classes_of_a_users_own_voc_folder(config_dir: Path, tmp_path: Path) -> None:
    write_year(tmp_path, {"train": ["a"], "val": ["b"], "test": ["c"]})
    config = composed(config_dir, "voc_xml", tmp_path)
    dataset = read_voc_boxes(config)
    assert dataset.class_names == ("cat", "dog")
    (tmp_path / "classes.txt").write_text("dog\ncow\ncat\n")
    other = read_voc_boxes(config)
    assert other.class_names == ("dog", "cow", "cat")
    assert object_split(other, "test").objects(0).labels.tolist() == [2, 0]
    assert other.fingerprint != dataset.fingerprint
    config.lists["classes"] = "dog, cow"
    text = problems_of(read_voc_boxes, config)
    assert "3 objects of unknown classes:\n      cat: 3, first in" in text
    assert "known: dog, cow" in text
    config.skip_malformed = True
    dataset = read_voc_boxes(config)
    assert dataset.notices == (
        "3 of 6 objects of Annotations are left out (objects of unknown classes)",
    )
    assert object_split(dataset, "test").objects(0).labels.tolist() == [0]
    config.lists["classes"], config.num_classes = "", 2
    assert "holds 3 classes where" in problems_of(read_voc_boxes, config)


@pytest.mark.parametrize(
    ("word", "meaning"),
    [
        *((word, False) for word in ("0", "False", "no", " FALSE ", "", "0.0", "Unspecified")),
        *((word, True) for word in ("1", "True", "yes", " Yes ", "TRUE", "1.0")),
        *((word, None) for word in ("maybe", "2", "-1", "nan", "difficult")),
    ],
)
def test_flags_of_xml_files(devkit: DataConfig, word: str, meaning: bool | None) -> None:
    file = Path(devkit.root) / "VOCdevkit" / "VOC2007" / "Annotations" / "t.xml"
    file.write_text(
        xml(xml_object("dog", 1, 1, 5, 5), xml_object("cat", 1, 1, 5, 5, difficult=word))
    )
    if meaning is None:
        text = problems_of(read_voc_boxes, devkit)
        assert f"{file}: object 2: difficult is {word!r}, which is neither yes" in text
    else:
        split = object_split(read_voc_boxes(devkit), "test")
        assert split.objects(0).ignored.tolist() == [False, meaning]
        assert split.flags == (("difficult",) if meaning else ())


@pytest.mark.parametrize("corner", ["nan", "inf", "1e9", "9" * 400, "12,5", "(3, 4)", "", "None"])
def test_corners_that_no_box_has(devkit: DataConfig, corner: str) -> None:
    file = Path(devkit.root) / "VOCdevkit" / "VOC2007" / "Annotations" / "t.xml"
    text = xml(xml_object("cat", 1, 1, 5, 5)).replace("<xmax>5", f"<xmax>{corner}")
    file.write_text(text)
    message = f"{file}: object 1: xmax of a cat is {corner!r}"
    assert message in problems_of(read_voc_boxes, devkit)
    devkit.skip_malformed = True
    dataset = read_voc_boxes(devkit)
    assert len(object_split(dataset, "test").objects(0).labels) == 0
    assert [n for n in dataset.notices if "are left out (malformed objects)" in n]


@pytest.mark.parametrize(
    ("size", "expected"),
    [((40, 30), (40, 30)), ((0, 0), None), ((-1, 5), None)],
)
def test_sizes_of_xml_files(
    devkit: DataConfig, size: tuple[int, int], expected: tuple[int, int] | None
) -> None:
    file = Path(devkit.root) / "VOCdevkit" / "VOC2007" / "Annotations" / "t.xml"
    file.write_text(xml(xml_object("cat", 1, 1, 5, 5), size=size))
    assert object_split(read_voc_boxes(devkit), "test").pictures[0].size == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 cat\n2 dog\n", "2 numbers of its classes, 0 to 2, leave gaps"),
        ("1 cat\n1 dog\n", "2 numbers of its classes, 1 to 1, leave gaps"),
        ("cat\ndog\ncat\n", "1 names are those of several classes:\n      cat: 0, 2"),
    ],
)
def test_lists_of_classes_are_sound(
    config_dir: Path, tmp_path: Path, text: str, message: str
) -> None:
    write_year(tmp_path, {"train": ["a"], "val": ["b"], "test": ["c"]})
    config = composed(config_dir, "voc_xml", tmp_path)
    (tmp_path / "classes.txt").write_text(text)
    assert message in problems_of(read_voc_boxes, config)
    (tmp_path / "classes.txt").unlink()
    config.lists["classes"] = "cat, dog, cat"
    assert "data.lists.classes: 1 names are those of several" in problems_of(read_voc_boxes, config)


# Label maps


def palette_map(path: Path, values: Any) -> None:
    image = Image.fromarray(np.asarray(values, dtype=np.uint8))
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    assert image.mode == "P"
    image.save(path)


@pytest.fixture
def masks(config_dir: Path, tmp_path: Path) -> DataConfig:
    """Maps of one value each; that of picture ``v2`` is 2."""
    train = [f"v{value}" for value in range(3)]
    write_year(tmp_path, {"train": train, "val": ["v255"]}, "Segmentation")
    for name in (*train, "v255"):
        values = np.full((30, 40), int(name[1:]))
        palette_map(tmp_path / "SegmentationClass" / f"{name}.png", values)
    config = composed(config_dir, "voc_masks", tmp_path)
    config.num_classes = 3
    return config


def test_label_maps_hold_indices(masks: DataConfig) -> None:
    dataset = read_voc_masks(masks)
    split = map_split(dataset, "trainval")
    assert [np.unique(split.label_map(i)).tolist() for i in range(3)] == [[0], [1], [2]]
    assert np.unique(map_split(dataset, "test").label_map(0)).tolist() == [IGNORED_LABEL]
    assert dataset.class_names is None

    masks.zero_is_ignored = True
    masks.num_classes = 2
    dataset = read_voc_masks(masks)
    split = map_split(dataset, "trainval")
    values = [np.unique(split.label_map(i)).tolist() for i in range(3)]
    assert values == [[IGNORED_LABEL], [0], [1]]
    assert np.unique(map_split(dataset, "test").label_map(0)).tolist() == [IGNORED_LABEL]
    # and back to what a file would hold
    written = split.file_values(np.array([[0, 1, IGNORED_LABEL]], dtype=np.uint8))
    assert (written.dtype, written.tolist()) == (np.uint8, [[1, 2, IGNORED_LABEL]])


def test_bad_label_maps_are_named_when_read(masks: DataConfig) -> None:
    folder = Path(masks.root) / "SegmentationClass"
    masks.num_classes = 2
    split = map_split(read_voc_masks(masks), "trainval")
    message = r"v2\.png holds 2, which is no class: 2 classes are 0 to 1, and 255 is none"
    with pytest.raises(VpeftBenchError, match=message):
        split.label_map(2)
    Image.new("RGB", (40, 30)).save(folder / "v0.png")
    with pytest.raises(VpeftBenchError, match=r"v0\.png is not a label map.* mode is RGB"):
        split.label_map(0)
    palette_map(folder / "v0.png", np.zeros((30, 41)))
    with pytest.raises(VpeftBenchError, match=r"v0\.jpg is 40x30, but .*v0\.png is 41x30"):
        split.label_map(0)
    (folder / "v0.png").write_bytes(b"not a picture")
    with pytest.raises(VpeftBenchError, match=r"v0\.png cannot be read as a label map"):
        split.label_map(0)
    masks.zero_is_ignored = True
    masks.num_classes = 1
    split = map_split(read_voc_masks(masks), "trainval")
    with pytest.raises(VpeftBenchError, match=r"v2\.png holds 2, .* 1 classes are 1 to 1"):
        split.label_map(2)


def ade_folders(config_dir: Path, folder: Path) -> DataConfig:
    """Two pictures and maps in each part."""
    for part in ("training", "validation"):
        for place, mode in (("images", "RGB"), ("annotations", "L")):
            (folder / place / part).mkdir(parents=True)
            for name in "ab":
                Image.new(mode, (8, 6)).save(folder / place / part / f"{name}.png")
    return composed(config_dir, "ade20k_folders", folder)


def test_what_file_managers_leave_beside_pictures_is_none(config_dir: Path, tmp_path: Path) -> None:
    config = ade_folders(config_dir, tmp_path)
    config.num_classes = 2
    before = sizes_of(read_ade20k(config))
    for file in list(tmp_path.rglob("*.png")):  # as macOS does on disks of others
        file.with_name(f"._{file.name}").write_bytes(b"\0\5\x16\7")
    assert sizes_of(read_ade20k(config)) == before


def test_two_pictures_of_one_name_are_refused(masks: DataConfig) -> None:
    """Nothing says which of them is annotated."""
    for picture in list(Path(masks.root).rglob("JPEGImages/*"))[:2]:
        Image.new("RGB", (8, 6)).save(picture.with_suffix(".bmp"))
    text = problems_of(read_voc_masks, masks)
    assert "JPEGImages: 2 names occur with several suffixes" in text


def test_lists_with_suffixes_are_told_what_to_leave_out(masks: DataConfig) -> None:
    file = next(Path(masks.root).rglob("Segmentation/train.txt"))
    file.write_text(file.read_text().replace("\n", ".jpg\n"))
    assert "names pictures with their suffixes" in problems_of(read_voc_masks, masks)


def test_names_that_cannot_be_read_are_one_problem(masks: DataConfig) -> None:
    masks.num_classes = None
    masks.lists.pop("classes", None)
    (Path(masks.root) / "classes.txt").write_bytes(b"a\nb\xe4\n")
    text = problems_of(read_voc_masks, masks)
    assert "is not UTF-8 (line 2)" in text
    assert "number of classes" not in text


def test_ade20k_names_that_are_no_text_are_refused(config_dir: Path, tmp_path: Path) -> None:
    config = ade_folders(config_dir, tmp_path)
    (tmp_path / "objectInfo150.txt").write_bytes(b"Idx\tName\n1\tw\xe4ll\n2\tsky\n")
    text = problems_of(read_ade20k, config)
    assert "objectInfo150.txt: is not UTF-8 (line 2)" in text
    assert "number of classes" not in text


def test_problems_of_label_map_lists(masks: DataConfig) -> None:
    masks.num_classes = None
    root = Path(masks.root)
    (root / "SegmentationClass" / "v1.png").unlink()
    text = problems_of(read_voc_masks, masks)
    assert "2 problems" in text
    assert "v1.png" in text
    assert "type data.num_classes=N, or write classes.txt" in text
    masks.num_classes = 256
    assert "label maps hold 1 to 255 classes" in problems_of(read_voc_masks, masks)
    masks.lists["maps"] = "Elsewhere"
    assert "3 of its pictures have no file in" in problems_of(read_voc_masks, masks)


def test_label_maps_are_identified_by_name_and_size(masks: DataConfig) -> None:
    before = read_voc_masks(masks).fingerprint
    assert read_voc_masks(masks).fingerprint == before
    values = np.random.default_rng(0).integers(0, 3, (30, 40))
    palette_map(Path(masks.root) / "SegmentationClass" / "v1.png", values)
    assert read_voc_masks(masks).fingerprint != before


def test_all_problems_of_ade20k_folders_at_once(config_dir: Path, tmp_path: Path) -> None:
    for part in ("training", "validation"):
        for kind in ("images", "annotations"):
            (tmp_path / kind / part).mkdir(parents=True)
    for name in ("one", "two"):
        Image.new("RGB", (8, 6)).save(tmp_path / "images" / "training" / f"{name}.JPG")
    for name in ("two", "three"):
        Image.new("L", (8, 6)).save(tmp_path / "annotations" / "training" / f"{name}.png")
    (tmp_path / "images" / "validation" / "notes.txt").write_text("not a picture")
    config = composed(config_dir, "ade20k_folders", tmp_path)
    text = problems_of(read_ade20k, config)
    assert "4 problems" in text
    assert "1 of its pictures have no counterpart in" in text
    assert "\n      one\n" in text
    assert "1 of its label maps have no counterpart in" in text
    assert "\n      three\n" in text
    assert f"{tmp_path / 'images' / 'validation'}: holds no pictures" in text
    assert "the number of classes is not known" in text


# The published data sets


def test_sizes_of_held_out_parts(config_dir: Path) -> None:
    published = {"coco": 118_287, "ade20k": 20_210, "voc2012_masks": 1_464}
    for config in compose_data_configs(config_dir, list(published)):
        held_out = round(config.hold_out * published[config.name])
        sizes = (published[config.name] - held_out, held_out)
        assert (config.train_size, config.val_size) == sizes, config.name


def test_voc2012_masks_config(config_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "VOCdevkit" / "VOC2012"
    write_year(folder, {"train": ["a", "b"], "val": ["c"], "trainaug": ["d", "e"]}, "Segmentation")
    (folder / "SegmentationClassAug").mkdir()
    for name in "abc":
        palette_map(folder / "SegmentationClass" / f"{name}.png", np.full((30, 40), 20))
    for name in "cde":
        Image.new("L", (40, 30), 20).save(folder / "SegmentationClassAug" / f"{name}.png")
    dataset = read_voc_masks(composed(config_dir, "voc2012_masks", tmp_path))
    assert dataset.class_names is not None
    assert (len(dataset.class_names), dataset.class_names[20]) == (21, "tvmonitor")
    assert np.unique(map_split(dataset, "test").label_map(0)).tolist() == [20]

    lists = {"train": "trainaug", "maps": "SegmentationClassAug"}
    for root in (folder, folder.parent, tmp_path):
        more = read_voc_masks(composed(config_dir, "voc2012_masks", root, **lists))
        assert [p.name for p in map_split(more, "trainval").pictures] == ["d", "e"]
        assert np.unique(map_split(more, "trainval").label_map(0)).tolist() == [20]


def test_no_picture_is_trained_and_tested_on(devkit: DataConfig, masks: DataConfig) -> None:
    """The same name in two years is two pictures; one picture in two splits is a problem."""
    assert read_voc_boxes(devkit)
    masks.lists["val"] = masks.lists["test"]  # validated on what is tested on
    with pytest.raises(UnsoundDataError, match="1 of the 1 test pictures are in train"):
        inspected(read_voc_masks(masks), masks).require_sound()
    masks.lists["val"], masks.lists["test"] = "", "train"
    with pytest.raises(UnsoundDataError, match=r"3 of the 3 (.|\n)*data\.lists\.test=") as caught:
        inspected(read_voc_masks(masks), masks).require_sound()
    assert "v0" in str(caught.value)


def test_links_that_lead_nowhere_and_lists_that_are_no_text(masks: DataConfig) -> None:
    folder = Path(masks.root)
    picture = next((folder / "JPEGImages").iterdir())
    picture.unlink()
    picture.symlink_to("gone")
    assert f"{picture.stem}.jpg" in problems_of(read_voc_masks, masks)
    (folder / "ImageSets" / "Segmentation" / "train.txt").write_bytes("v0\n".encode("utf-16"))
    (folder / "classes.txt").write_bytes("m\xfcll\n".encode("latin-1"))
    text = problems_of(read_voc_masks, masks)
    assert "train.txt: is UTF-16" in text
    assert "classes.txt: is not UTF-8 (line 1)" in text
