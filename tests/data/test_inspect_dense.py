"""What data sets with boxes and with label maps are looked at for before a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import inspected
from vpeft_bench.data.composed import compose_data_configs
from vpeft_bench.data.dataset import open_dataset
from vpeft_bench.data.inspection import Inspection
from vpeft_bench.data.schema import BoxMetric, DataConfig

Box = tuple[float, float, float, float]
SOUND: Box = (4, 5, 10, 12)


def noise(width: int, height: int, seed: int) -> Image.Image:
    """A picture that is unlike those of other seeds."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def coco(
    folder: Path, train: Sequence[Box], test: Sequence[Box], per_picture: int = 1, **fields: Any
) -> DataConfig:
    """JSON files of pictures of 40x30, ``per_picture`` boxes in each; classes a and b in turn."""
    for name, boxes in {"train": train, "test": test}.items():
        (folder / name).mkdir()
        count = max(4, -(-len(boxes) // per_picture))
        images, annotations = [], []
        for index in range(count):
            file = f"{index}.png"
            noise(40, 30, 10 * index + len(name)).save(folder / name / file)
            images.append({"id": index, "file_name": file, "width": 40, "height": 30})
        for number, box in enumerate(boxes):
            record = {"id": number, "image_id": number // per_picture, "bbox": list(box)}
            annotations.append({**record, "category_id": number % 2 + 1, **fields})
        categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
        tables = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{name}.json").write_text(json.dumps(tables))
    lists = {"train": "train.json", "train_images": "train"}
    lists |= {"test": "test.json", "test_images": "test"}
    return DataConfig(
        name="odd",
        title="odd",
        reader="coco",
        root=str(folder),
        hold_out=0.25,
        lists=lists,
    )


def edit(config: DataConfig, file: str, **changes: Any) -> None:
    """Change what all annotations of a file say."""
    path = Path(config.root) / file
    tables = json.loads(path.read_text())
    for record in tables["annotations"]:
        record |= changes
    path.write_text(json.dumps(tables))


def looked_at(config: DataConfig, **options: Any) -> Inspection:
    return inspected(open_dataset(config), config, **options)


def refused(inspection: Inspection) -> str:
    return "\n".join(map(str, inspection.problems))


# Boxes


def test_sound_boxes_are_counted_and_nothing_is_told(tmp_path: Path) -> None:
    found = looked_at(coco(tmp_path, [SOUND] * 8, [SOUND] * 4))
    assert not found.problems
    assert not found.notices
    assert found.facts.counts["trainval"] == {"objects": 8, "ignored_objects": 0, "classes": 2}
    assert found.facts.counts["test"] == {"objects": 4, "ignored_objects": 0, "classes": 2}


def test_boxes_of_shares_are_refused(tmp_path: Path) -> None:
    text = refused(looked_at(coco(tmp_path, [(0.1, 0.2, 0.3, 0.4)] * 6, [SOUND] * 4)))
    assert "train.json: 6 of 6 training boxes are narrower than a pixel" in text
    assert "shares of the picture" in text


def test_boxes_of_shares_in_xml_files_are_refused(config_dir: Path, tmp_path: Path) -> None:
    """Corners count from 1 there: a share of a side, less 1, is wider than a pixel."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    box = "".join(
        f"<{key}>{value}</{key}>"
        for key, value in {"xmin": 0.1, "ymin": 0.2, "xmax": 0.8, "ymax": 0.9}.items()
    )
    for name in ("a", "b", "c"):
        noise(40, 30, ord(name)).save(tmp_path / "JPEGImages" / f"{name}.png")
        text = f"<annotation><object><name>x</name><bndbox>{box}</bndbox></object></annotation>"
        (tmp_path / "Annotations" / f"{name}.xml").write_text(text)
    for split, name in {"train": "a", "val": "b", "test": "c"}.items():
        (tmp_path / "ImageSets/Main" / f"{split}.txt").write_text(name)
    [config] = compose_data_configs(config_dir, ["voc_xml"])
    config.root = str(tmp_path)
    text = refused(looked_at(config))
    assert "train.txt" in text
    assert "2 of 2 training boxes are narrower than a pixel" in text
    assert "1 of 1 test boxes are narrower than a pixel" in text


@pytest.mark.parametrize(
    ("boxes", "reading"),
    [
        ([(12, 10, 30, 25)] * 6 + [(2, 3, 30, 20)] * 2, "corners written as width and height"),
        ([(35, 25, 10, 10), (30, 20, 20, 20)] * 4, "centres written as corners"),
        ([(5, 2, 20, 36)] * 8, "width and height of the pictures are swapped"),
        ([(200, 300, 20, 20)] * 8, "of another size than the annotated pictures?"),
    ],
)
def test_boxes_beyond_their_pictures_are_told(
    tmp_path: Path, boxes: list[Box], reading: str
) -> None:
    found = looked_at(coco(tmp_path, boxes, [SOUND] * 4))
    assert not found.problems
    beyond = sum(left + width > 41 or top + height > 31 for left, top, width, height in boxes)
    assert f"{beyond} of 8 training boxes reach beyond their picture: {reading}" in found.notices


def test_a_few_boxes_beyond_are_told_and_rounding_is_not(tmp_path: Path) -> None:
    boxes = [SOUND] * 6 + [(100.0, 100.0, 20.0, 20.0), (-0.5, -0.5, 41.0, 31.0)]
    found = looked_at(coco(tmp_path, boxes, [SOUND] * 4))
    assert found.notices == ["1 of 8 training boxes reach beyond their picture"]


def test_objects_that_are_there_twice_are_told(tmp_path: Path) -> None:
    """Under ids of their own, as joined exports have them: of each pair one can only be missed."""
    twice = [box for left in range(4) for box in [(left, 3.0, 9.0, 8.0)] * 2]
    config = coco(tmp_path, [(left, 3.0, 9.0, 8.0) for left in range(8)], twice, per_picture=2)
    edit(config, "test.json", category_id=1)
    found = looked_at(config)
    assert "4 of 8 test objects have picture, class and box of another one" in found.notices


def test_boxes_without_area_are_told(tmp_path: Path) -> None:
    train = [SOUND] * 6 + [(30.0, 20.0, -5.0, -5.0), (3.0, 3.0, 0.0, 5.0)]
    found = looked_at(coco(tmp_path, train, [*[SOUND] * 3, (3.0, 3.0, 5.0, 0.0)]))
    assert found.notices == [
        "2 of 8 training boxes have no area (left out of training)",
        "1 of 4 test boxes has no area (can only be missed)",
    ]


def test_parts_without_objects_are_refused(tmp_path: Path) -> None:
    text = refused(looked_at(coco(tmp_path, [], [SOUND] * 4)))
    assert "train.json: there is no object in any of the 4 training pictures" in text


def test_parts_with_ignored_objects_only_are_refused(tmp_path: Path) -> None:
    config = coco(tmp_path, [SOUND] * 8, [SOUND] * 4)
    edit(config, "test.json", iscrowd=1)
    text = refused(looked_at(config))
    assert "test.json: no object counts: all 4 of the test pictures are ignored (iscrowd)" in text


def test_ignored_objects_are_told(tmp_path: Path) -> None:
    config = coco(tmp_path, [SOUND] * 8, [SOUND] * 4)
    path = tmp_path / "train.json"
    tables = json.loads(path.read_text())
    tables["annotations"][0]["ignore"] = 1
    path.write_text(json.dumps(tables))
    found = looked_at(config)
    assert found.notices == ["1 of 8 training objects are ignored (ignore)"]
    assert found.facts.counts["trainval"]["ignored_objects"] == 1


def test_classes_that_cannot_be_learnt_are_told(tmp_path: Path) -> None:
    config = coco(tmp_path, [SOUND] * 8, [SOUND] * 4)
    edit(config, "train.json", category_id=1)
    assert looked_at(config).notices == [
        "1 of 2 classes has no training object but test objects: b"
    ]


def test_a_group_of_classes_is_told(tmp_path: Path) -> None:
    config = coco(tmp_path, [SOUND] * 8, [SOUND] * 4)
    for path in (tmp_path / "train.json", tmp_path / "test.json"):
        tables = json.loads(path.read_text())
        for record in tables["categories"]:
            record["supercategory"] = "things"
        tables["categories"].insert(0, {"id": 0, "name": "things", "supercategory": "none"})
        path.write_text(json.dumps(tables))
    assert looked_at(config).notices == [
        "1 of 3 classes has no training object: things (a group of other classes)",
        "2 of 3 classes occur among the test objects",
    ]


@pytest.mark.parametrize(
    ("metric", "given", "notice"),
    [
        (BoxMetric.coco, None, "1 of 4 test pictures hold more objects of a class than the 100"),
        (BoxMetric.coco, 300, "1 of 4 test pictures hold more objects of a class than the 100"),
        (BoxMetric.coco, 100, "2 of 4 test pictures hold more objects than the 100 detections"),
        (BoxMetric.voc07, 300, None),
        (BoxMetric.voc07, 100, "2 of 4 test pictures hold more objects than the 100 detections"),
    ],
)
def test_crowded_pictures_are_told(
    tmp_path: Path, metric: BoxMetric, given: int | None, notice: str | None
) -> None:
    config = coco(tmp_path, [SOUND] * 8, [SOUND] * 600, per_picture=150)
    config.box_metric = metric
    path = tmp_path / "test.json"
    tables = json.loads(path.read_text())
    for number, record in enumerate(tables["annotations"]):  # 150, 110, 90 and 90 in a picture
        record["image_id"] = int(np.searchsorted([150, 260, 350], number, side="right"))
        record["category_id"] = 1 if number < 150 else record["category_id"]
    tables["annotations"] = tables["annotations"][:440]
    path.write_text(json.dumps(tables))
    told = looked_at(config, max_detections=given).notices
    notices = [one for one in told if "of another one" not in one]
    assert len(notices) == (notice is not None)
    assert all(told.startswith(str(notice)) for told in notices)


# Label maps


def maps(
    folder: Path, train: Sequence[Any], test: Sequence[Any], num_classes: int, zero: bool = False
) -> DataConfig:
    """ADE20K's layout: a map of 8x6 for each entry, of its values in equal parts or its picture."""
    for part, entries in {"training": train, "validation": test}.items():
        for kind in ("images", "annotations"):
            (folder / kind / part).mkdir(parents=True)
        for index, entry in enumerate(entries):
            noise(8, 6, 20 * index + len(part)).save(folder / f"images/{part}/{index}.png")
            if not isinstance(entry, Image.Image):
                values = np.resize(np.array(entry, dtype=np.uint8), (6, 8))
                entry = Image.fromarray(values)
            entry.save(folder / f"annotations/{part}/{index}.png")
    return DataConfig(
        name="odd",
        title="odd",
        reader="ade20k",
        root=str(folder),
        hold_out=0.25,
        num_classes=num_classes,
        zero_is_ignored=zero,
        lists={"train": "training", "test": "validation"},
    )


def test_sound_maps_are_counted_and_nothing_is_told(tmp_path: Path) -> None:
    found = looked_at(maps(tmp_path, [(0, 1)] * 4, [(0, 1)] * 2, 2))
    assert not found.problems
    assert not found.notices
    counts = {"classes": 2, "pixels": 192, "ignored_pixels": 0, "sampled": 4}
    assert found.facts.counts["trainval"] == counts


@pytest.mark.parametrize(
    ("values", "num_classes", "zero", "parts"),
    [
        (
            (0, 1),
            2,
            True,
            ("1 of 2 classes occurs in the 4 training maps", "zero_is_ignored=false"),
        ),
        ((0, 1), 1, True, ("1 of 1 classes", "data.zero_is_ignored=false data.num_classes=2")),
        ((0, 255), 2, False, ("1 of 2 classes", "in masks of 0 and 255 store the number")),
        ((0, 255), 2, True, ("no pixel of the 4 training maps is of any class", "0 and 255")),
        ((0, 0), 2, True, ("no pixel of the 4 training maps", "zero_is_ignored=false")),
        ((1, 2), 2, False, ("0.png holds 2", "data.zero_is_ignored=true", "data.num_classes=3")),
        ((0, 3, 4), 3, False, ("0.png holds 3, 4", "0 to 2", "data.num_classes=5")),
        ((0, 128), 2, False, ("0.png holds 128", "0, 128 are shades of classes: store 0, 1")),
        (range(40), 2, False, ("holds 2, 3, 4, 5, 6, ...", "38 such values are shades", "JPEG")),
    ],
)
def test_maps_that_mean_nothing_are_refused(
    tmp_path: Path, values: Sequence[int], num_classes: int, zero: bool, parts: Sequence[str]
) -> None:
    found = looked_at(maps(tmp_path, [values] * 4, [values] * 2, num_classes, zero))
    text = refused(found)
    assert "images/training: " in text
    for part in parts:
        assert part in text


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (Image.new("RGB", (8, 6), (128, 0, 0)), "its mode is RGB: it holds colours"),
        (Image.new("RGB", (8, 6), (1, 1, 1)), "its three channels are alike: store one of them"),
        (Image.new("RGBA", (8, 6)), "its mode is RGBA"),
        (Image.new("LA", (8, 6)), "its mode is LA"),
        (Image.new("I;16", (8, 6)), "16-bit: store it with 8 bits"),
        (Image.new("L", (8, 7)), "8x7"),
    ],
)
def test_maps_of_other_kinds_are_refused(tmp_path: Path, picture: Image.Image, reason: str) -> None:
    text = refused(looked_at(maps(tmp_path, [(0, 1)] * 3 + [picture], [(0, 1)] * 2, 2)))
    assert "1 of 4 training maps cannot be used:" in text
    assert f"{tmp_path}/annotations/training/3.png" in text
    assert reason in text


def test_ignored_pixels_are_told_with_their_value(tmp_path: Path) -> None:
    found = looked_at(maps(tmp_path, [(0, 1, 2, 255)] * 4, [(1, 2)] * 2, 2, zero=True))
    assert found.notices == ["50 % of training pixels are of no class (value 0 or 255)"]
    assert found.facts.counts["trainval"]["ignored_pixels"] == 96


def test_classes_without_pixels_are_told(tmp_path: Path) -> None:
    found = looked_at(maps(tmp_path, [(0, 1)] * 4, [(2, 2)] * 2, 4))
    assert found.notices == [
        "1 of 4 classes has no training pixel but test pixels: 2",
        "1 of 4 classes has no training pixel: 3",
        "1 of 4 classes occurs among the test pixels",
    ]


def test_large_data_sets_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vpeft_bench.data.inspect_maps.SMALLEST_SAMPLE", 4)
    monkeypatch.setattr("vpeft_bench.data.inspect_maps.SAMPLE_PIXELS", 4)
    rare = [(0, 1)] * 9 + [(0, 2)]  # the last place is always looked at
    config = maps(tmp_path, [*rare, *rare], [(0, 1)] * 5, 4)
    found = looked_at(config)
    assert found.facts.counts["trainval"]["sampled"] == 4
    assert not found.notices  # class 2 was found once: others may be as rare as it is
    found = looked_at(config, full=True)
    assert found.facts.counts["trainval"]["sampled"] == 20
    assert "1 of 4 classes has no training pixel: 3" in found.notices

    # A sample of one class settles nothing.
    for index in range(19):
        values = np.full((6, 8), int(index == 1), np.uint8)
        Image.fromarray(values).save(tmp_path / f"annotations/training/{index}.png")
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(tmp_path / "annotations/training/19.png")
    found = looked_at(config)
    assert found.facts.counts["trainval"] == {
        "classes": 2,
        "pixels": 960,
        "ignored_pixels": 0,
        "sampled": 20,
    }


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_maps_of_few_bits_hold_their_values(tmp_path: Path, bits: int) -> None:
    """Pillow stretches grey of fewer than 8 bits to the whole range."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    config = maps(tmp_path, [(0, 1)] * 4, [(0, 1)] * 2, 2)
    ones = sum(1 << place for place in range(0, 8, bits))  # every pixel is 1
    row = b"\0" + bytes([ones]) * bits
    header = struct.pack(">IIBBBBB", 8, 6, bits, 0, 0, 0, 0)
    content = [(b"IHDR", header), (b"IDAT", zlib.compress(row * 6)), (b"IEND", b"")]
    file = tmp_path / "annotations/training/3.png"
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in content))
    split: Any = open_dataset(config).split("trainval")
    assert np.unique(split.label_map(3)).tolist() == [1]


RED, GREEN, BLUE = (200, 0, 0), (0, 200, 0), (0, 0, 200)


def paint(config: DataConfig, palettes: Sequence[Sequence[tuple[int, int, int]]]) -> None:
    """Give the training maps these palettes in turn."""
    for index, palette in enumerate(palettes):
        file = Path(config.root) / f"annotations/training/{index}.png"
        image = Image.fromarray(np.array(Image.open(file)), mode="P")
        image.putpalette([value for colour in palette for value in colour])
        image.save(file)


def test_palettes_that_number_colours_anew_are_refused(tmp_path: Path) -> None:
    """A program that keeps the colours that occur makes class 2 class 1 where 1 does not occur."""
    config = maps(tmp_path, [(0, 1, 2), (0, 1), (0, 1)], [(0, 1, 2)] * 2, 3)
    black = (0, 0, 0)
    paint(config, [(black, RED, GREEN), (black, RED), (black, GREEN)])
    text = refused(looked_at(config))
    assert "1 maps number the colours of their palettes otherwise" in text
    assert f"2.png: colour {GREEN} is 1, and 2 in" in text
    assert "save all maps with one palette" in text


def test_other_colours_are_told_and_one_palette_is_fine(tmp_path: Path) -> None:
    config = maps(tmp_path, [(0, 1, 2), (0, 1)], [(0, 1, 2)] * 2, 3)
    black = (0, 0, 0)
    paint(config, [(black, RED, GREEN, BLUE), (black, RED)])
    assert not looked_at(config).notices
    paint(config, [(black, RED, GREEN), (black, BLUE)])
    told = "1 of 2 label maps with a palette give a value another colour than those before them"
    assert looked_at(config).notices == [told]
    paint(config, [(black, black, black), (black, black)])  # nothing tells them apart
    assert not looked_at(config).problems


def test_nothing_to_validate_on_is_refused_where_it_is_reported(tmp_path: Path) -> None:
    """Whoever trains on all of it and reports the test part does not need it."""
    config = coco(tmp_path, [SOUND] * 8, [SOUND] * 4)
    config.hold_out = 0.0
    tables = json.loads((tmp_path / "test.json").read_text()) | {"annotations": []}
    (tmp_path / "val").mkdir()
    for index in range(4):
        noise(40, 30, 70 + index).save(tmp_path / "val" / f"{index}.png")
    (tmp_path / "val.json").write_text(json.dumps(tables))
    config.lists |= {"val": "val.json", "val_images": "val"}
    assert not looked_at(config).problems
    text = refused(looked_at(config, evaluated="val"))
    assert "val.json: there is no object in any of the 4 validation pictures" in text


def test_maps_to_validate_on_are_looked_at_where_they_are_reported(tmp_path: Path) -> None:
    config = maps(tmp_path, [(0, 1)] * 6, [(0, 1)] * 2, 2)
    split: Any = open_dataset(config).split("val")
    for picture in split.pictures:
        Image.new("L", (8, 6), 255).save(picture.map_path)
    assert not looked_at(config).problems
    assert "no pixel of the" in refused(looked_at(config, evaluated="val"))
