"""What is told, refused and recorded of the pictures of a data set."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vpeft_bench.data.dataset import open_dataset
from vpeft_bench.data.findings import Inspection
from vpeft_bench.data.inspect_pictures import SAMPLE, data_identity, inspect_pictures, sample
from vpeft_bench.data.schema import DataConfig
from vpeft_bench.data.splits import LabelMapSplit
from vpeft_bench.errors import VpeftBenchError

MakeImageList = Callable[..., DataConfig]


def looked_at(config: DataConfig, *, full: bool = False) -> Inspection:
    inspection = Inspection(full=full)
    inspect_pictures(open_dataset(config), config, inspection)
    return inspection


def files(config: DataConfig) -> list[Path]:
    return sorted((Path(config.root) / "toy" / "images").iterdir())


def identity(config: DataConfig) -> str:
    return data_identity(open_dataset(config), looked_at(config))


def rewrite(config: DataConfig, change: Callable[[Image.Image], Image.Image]) -> None:
    for path in files(config):
        with Image.open(path) as image:
            changed = change(image)
        changed.save(path)


def test_format_and_pixels_are_facts(image_list: MakeImageList) -> None:
    config = image_list()
    found = looked_at(config)
    assert found.problems == []
    assert found.notices == []
    assert found.facts.image_format == "png"
    assert set(found.facts.pixels) == {"train", "val", "trainval", "test"}
    assert len(set(found.facts.pixels.values())) == 4
    assert looked_at(config).facts == found.facts
    assert looked_at(config, full=True).facts == found.facts
    files(config)[0].write_bytes(b"")
    Image.new("RGB", (8, 8)).save(files(config)[0], "JPEG")
    assert looked_at(config).facts.image_format == "jpeg+png"


def test_a_sample_is_the_same_every_time() -> None:
    assert sample(3) == [0, 1, 2]
    assert sample(1000) == sample(1000) == sorted(set(sample(1000)))
    assert len(sample(1000)) == SAMPLE


def test_other_pixels_are_other_data(image_list: MakeImageList) -> None:
    config = image_list()
    before = identity(config)
    assert before == identity(config) != open_dataset(config).fingerprint
    rewrite(config, lambda image: image.point(lambda value: value ^ 1))
    assert identity(config) != before
    rewrite(config, lambda image: image.point(lambda value: value ^ 1))
    assert identity(config) == before


def test_16_bits_are_the_data_of_their_8_bit_twin(image_list: MakeImageList) -> None:
    config = image_list()
    rewrite(config, lambda image: image.convert("L"))
    before = identity(config)

    def widened(image: Image.Image) -> Image.Image:
        return Image.fromarray(np.asarray(image).astype(np.uint16) * 257)

    rewrite(config, widened)
    assert identity(config) == before
    assert looked_at(config).notices == []
    rewrite(config, lambda image: Image.fromarray(np.asarray(image) >> 4))
    [notice] = looked_at(config).notices
    assert notice == "16-bit pictures use 6.2% of their range: dark in 8 bits"


@pytest.mark.parametrize("reader", ["digits", "sprites", "scenes"])
def test_rendered_pictures_keep_their_fingerprint(reader: str) -> None:
    variant = {"sprites": "count", "scenes": "detection"}.get(reader, "")
    config = DataConfig(name="demo", reader=reader, variant=variant)
    dataset = open_dataset(config)
    inspection = Inspection()
    inspect_pictures(dataset, config, inspection)
    assert inspection.facts.image_format == "array"
    assert inspection.facts.pixels == {}
    assert data_identity(dataset, inspection) == dataset.fingerprint


def test_transparency_is_told(image_list: MakeImageList) -> None:
    config = image_list()

    def black(image: Image.Image) -> Image.Image:
        hidden = Image.new("RGB", image.size)
        hidden.putalpha(image.convert("L"))
        return hidden

    rewrite(config, black)
    transparent, one_colour = looked_at(config).notices
    assert transparent.startswith("transparent pixels: 12 of 12 pictures looked at, read without")
    assert "data.background=COLOUR" in transparent
    assert one_colour == "one colour each: 12 of 12 pictures looked at"
    before = identity(config)
    config.background = "white"
    [transparent] = looked_at(config).notices
    assert transparent.endswith("composited onto white")
    assert identity(config) != before


def test_jpeg_of_what_was_lossless_is_told(image_list: MakeImageList) -> None:
    config = image_list()
    assert looked_at(replace(config, original_format="png")).notices == []
    for path in files(config):
        with Image.open(path) as image:
            image.save(path, "JPEG")
    for original, told in (("array", 1), ("png", 1), ("jpeg", 0), ("", 0)):
        notices = looked_at(replace(config, original_format=original)).notices
        expected = f"JPEG pictures, lossless in the original ({original})"
        assert notices == [expected] * told


def test_every_unreadable_picture_is_a_problem(image_list: MakeImageList) -> None:
    config = image_list()
    files(config)[0].write_bytes(b"")
    files(config)[3].write_bytes(files(config)[3].read_bytes()[:200])
    found = looked_at(config, full=True)
    assert sorted(problem.where for problem in found.problems) == [
        str(files(config)[0]),
        str(files(config)[3]),
    ]
    for problem in found.problems:
        assert problem.what.startswith("cannot be read as a picture: ")
    unreadable = {str(files(config)[0]), str(files(config)[3])}
    dataset = open_dataset(config)
    for name, split in dataset.splits.items():
        readable = {i for i in range(len(split)) if split.file(i) not in unreadable}
        assert set(found.pixels[name]) == readable


def test_one_picture_under_two_names_has_one_hash(image_list: MakeImageList) -> None:
    config = image_list()
    files(config)[0].write_bytes(files(config)[-1].read_bytes())
    hashes = looked_at(config, full=True).pixels
    dataset = open_dataset(config)
    named = {
        name: {Path(split.file(i) or "").name: h for i, h in hashes[name].items()}
        for name, split in dataset.splits.items()
    }
    same = set(named["train"].values()) & set(named["test"].values())
    assert same == {named["train"]["0.png"]}


@pytest.fixture
def turned_coco(tmp_path: Path) -> Callable[[tuple[int, int]], DataConfig]:
    """Pictures stored as 48x64 that EXIF turns to 64x48, white in the top left quarter then."""
    upright = np.zeros((48, 64, 3), dtype=np.uint8)
    upright[:24, :32] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90)

    def make(size: tuple[int, int]) -> DataConfig:
        for part, count in (("train", 5), ("test", 2)):
            images = [
                {"id": i, "file_name": f"{part}{i}.jpg", "width": size[0], "height": size[1]}
                for i in range(count)
            ]
            for image in images:
                stored.save(tmp_path / str(image["file_name"]), exif=exif)
            content = {"images": images, "categories": [{"id": 1, "name": "a"}], "annotations": []}
            (tmp_path / f"{part}.json").write_text(json.dumps(content))
        lists = {"train": "train.json", "test": "test.json"}
        root = str(tmp_path)
        return DataConfig("turned", "coco", root=root, hold_out=0.2, lists=lists)

    return make


def test_boxes_of_the_turned_picture_fit(
    turned_coco: Callable[[tuple[int, int]], DataConfig],
) -> None:
    config = turned_coco((64, 48))
    found = looked_at(config)
    assert (found.problems, found.notices) == ([], [])
    image = open_dataset(config).split("test").image(0)
    assert image.size == (64, 48)
    assert (np.asarray(image)[4:20, 4:28] > 200).all()
    assert (np.asarray(image)[28:, 36:] < 50).all()


def test_boxes_of_the_stored_picture_are_errors_that_name_exif(
    turned_coco: Callable[[tuple[int, int]], DataConfig],
) -> None:
    config = turned_coco((48, 64))
    found = looked_at(config)
    assert len(found.problems) == 7
    assert all("EXIF orientation 6" in problem.what for problem in found.problems)
    assert all("exiftool" in problem.what for problem in found.problems)


def turned(pixels: np.ndarray, path: Path, orientation: int, turn: Image.Transpose) -> None:
    """Store the picture so that its EXIF orientation turns it into ``pixels``."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).transpose(turn).save(path, exif=exif)


@pytest.fixture
def turned_maps(tmp_path: Path) -> Callable[..., DataConfig]:
    """Pictures of 64x48, stored turned, and label maps of any making."""
    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)

    def make(orientation: int, turn: Image.Transpose, save: Callable[[Path], None]) -> DataConfig:
        for part, count in (("training", 5), ("validation", 2)):
            for kind in ("images", "annotations"):
                (tmp_path / kind / part).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                turned(picture, tmp_path / "images" / part / f"{i}.png", orientation, turn)
                save(tmp_path / "annotations" / part / f"{i}.png")
        lists = {"train": "training", "test": "validation"}
        config = DataConfig("maps", "ade20k", root=str(tmp_path), hold_out=0.2, lists=lists)
        config.num_classes = 3
        return config

    return make


LABELS = np.random.default_rng(1).integers(0, 3, (48, 64), dtype=np.uint8)


def test_label_maps_fit_the_turned_picture(turned_maps: Callable[..., DataConfig]) -> None:
    for save in (
        lambda path: Image.fromarray(LABELS).save(path),
        lambda path: turned(LABELS, path, 6, Image.Transpose.ROTATE_90),  # with their own EXIF
    ):
        config = turned_maps(6, Image.Transpose.ROTATE_90, save)
        split = open_dataset(config).split("test")
        assert isinstance(split, LabelMapSplit)
        assert split.image(0).size == (64, 48)
        assert np.array_equal(split.label_map(0), LABELS)
        assert looked_at(config).notices == []


def test_label_maps_of_the_stored_picture_are_errors(
    turned_maps: Callable[..., DataConfig],
) -> None:
    config = turned_maps(
        6, Image.Transpose.ROTATE_90, lambda path: Image.fromarray(LABELS.T.copy()).save(path)
    )
    split = open_dataset(config).split("test")
    assert isinstance(split, LabelMapSplit)
    with pytest.raises(VpeftBenchError, match=r"0\.png is stored as 48x64.*EXIF orientation 6"):
        split.label_map(0)


def test_half_turns_are_told_of_dense_data(turned_maps: Callable[..., DataConfig]) -> None:
    config = turned_maps(
        3, Image.Transpose.ROTATE_180, lambda path: Image.fromarray(LABELS).save(path)
    )
    [notice] = looked_at(config).notices
    assert notice.startswith("turned by EXIF: 7 of 7 pictures looked at; annotations")
