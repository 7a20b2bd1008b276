"""Readers of lists on disk: what they read, and everything they complain about at once."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import check
from vpeft_bench.data.composed import compose_data_configs
from vpeft_bench.data.dataset import SPLITS, open_dataset
from vpeft_bench.data.schema import DataConfig
from vpeft_bench.errors import ConfigError, MissingDataError, VpeftBenchError

MakeImageList = Callable[..., DataConfig]


@pytest.mark.parametrize("task", ["dsprites_loc", "dsprites_ori"])
def test_real_vtab_tasks(config_dir: Path, shared_data: Path, task: str) -> None:
    [config] = compose_data_configs(config_dir, [f"vtab1k/{task}"])
    config.root = str(shared_data / "vtab-1k")
    dataset = open_dataset(config)
    assert dataset.num_classes == 16
    assert {name: len(dataset.split(name)) for name in SPLITS} == {
        "train": 800,
        "val": 200,
        "trainval": 1000,
        "test": 2000,
    }
    train, val, joint = (dataset.split(name) for name in ("train", "val", "trainval"))
    assert joint.labels.tolist() == [*train.labels.tolist(), *val.labels.tolist()]
    assert joint.labels.dtype == np.int64
    image = joint.image(999)
    assert (image.mode, image.size) == ("RGB", (64, 64))
    assert image.tobytes() == val.image(199).tobytes()


@pytest.mark.parametrize(("name", "side"), [("cifar10", 32), ("mnist", 28)])
def test_real_image_lists(config_dir: Path, shared_data: Path, name: str, side: int) -> None:
    [config] = compose_data_configs(config_dir, ["imagelist"])
    config.root = str(shared_data / "vtab-1k" / name)
    dataset = open_dataset(config)
    assert dataset.num_classes == 10
    assert len(dataset.split("test")) == 2000
    assert dataset.split("test").image(0).size == (side, side)
    if name == "cifar10":
        assert dataset.class_names is not None
        assert dataset.class_names[0] == "airplane"


def test_real_json_splits(config_dir: Path, shared_data: Path) -> None:
    [config] = compose_data_configs(config_dir, ["fgvc_json"])
    config.root = str(shared_data / "fgvc" / "OxfordFlower")
    dataset = open_dataset(config)
    assert dataset.num_classes == 12
    assert dataset.class_names is not None
    assert dataset.class_names[0] == "bluebell"
    sizes = {name: len(dataset.split(name)) for name in SPLITS}
    assert sizes == {"train": 600, "val": 120, "trainval": 720, "test": 240}
    for name in SPLITS:
        assert np.unique(dataset.split(name).labels).tolist() == list(range(12))
    assert dataset.split("test").image(0).size == (224, 224)


def test_list_is_followed_and_fingerprinted(image_list: MakeImageList) -> None:
    config = image_list()
    dataset = open_dataset(config)
    assert dataset.num_classes == 3
    assert dataset.split("val").labels.tolist() == [0, 1, 2]
    assert open_dataset(config).fingerprint == dataset.fingerprint

    test_list = Path(config.root) / "toy" / "test.txt"
    test_list.write_text("".join(reversed(test_list.read_text().splitlines(keepends=True))))
    assert open_dataset(config).fingerprint != dataset.fingerprint
    assert open_dataset(config).split("test").labels.tolist() == [2, 1, 0]


def test_splits_can_be_sent_to_workers(image_list: MakeImageList) -> None:
    split = open_dataset(image_list()).split("train")
    assert pickle.loads(pickle.dumps(split)).image(3).tobytes() == split.image(3).tobytes()


def test_unknown_split_names_the_valid_ones(image_list: MakeImageList) -> None:
    with pytest.raises(ConfigError, match=r"(?s)did you mean split=trainval.*valid: test, train"):
        open_dataset(image_list()).split("train_val")


def test_missing_folder_gives_directions(tmp_path: Path) -> None:
    config = DataConfig(
        name="vtab1k/cifar",
        title="CIFAR-100",
        folders=["cifar", "cifar100"],
        root=str(tmp_path),
        source="https://example.org/data",
    )
    [problem] = check(config)
    with pytest.raises(MissingDataError) as raised:
        open_dataset(config)
    text = str(raised.value)
    assert str(problem) in text
    for part in (
        "data=vtab1k/cifar",
        f"{tmp_path / 'cifar'}, {tmp_path / 'cifar100'}",
        "get it from https://example.org/data",
        f"put it at {tmp_path / 'cifar'}",
        "data.root=DIR where it lies at DIR/cifar or DIR/cifar100",
    ):
        assert part in text


def test_custom_set_without_a_folder(config_dir: Path) -> None:
    [config] = compose_data_configs(config_dir, ["imagelist"])
    [problem] = check(config)
    assert "data.root=DIR" in problem.fix


def test_second_folder_name_and_folder_itself(image_list: MakeImageList) -> None:
    config = image_list()
    root = config.root
    config.folders = ["other", "toy"]
    assert check(config) == []
    config.root = f"{root}/toy"
    assert check(config) == []
    config.folders = ["other"]  # another task's folder is not taken for this one
    assert len(check(config)) == 1


def test_all_problems_of_image_lists_at_once(image_list: MakeImageList) -> None:
    config = image_list(
        {
            "train800.txt": "images/0.png 0\nimages/1.png\n\nimages/2.png x\nimages/3.png -1\n"
            "images/4.png 3\n",
            "val200.txt": "images/7.png 1\nimages/gone.png 1\nnowhere/1.png 0\n",
            "train800val200.txt": None,
            "test.txt": "\n",
        }
    )
    config.num_classes = 3
    problems = check(config)
    text = "\n".join(map(str, problems))
    assert len(problems) == 4
    assert "no train800val200.txt in it" in text
    assert "4 malformed lines" in text
    for number, reason in (
        (2, "not a path and a label"),
        (4, "label 'x' is not an integer"),
        (5, "label '-1' is not an integer from 0"),
        (6, "label 3 but there are 3 classes"),
    ):
        assert any(f"line {number}:" in line and reason in line for line in text.splitlines())
    assert "2 of the pictures it lists are not there" in text
    assert "images/gone.png" in text
    assert "test.txt: lists no pictures" in text
    assert "data.root=DIR" in problems[-1].fix


def test_many_problems_are_counted_not_listed(image_list: MakeImageList) -> None:
    config = image_list({"test.txt": "".join(f"images/{i}.jpg 0\n" for i in range(1000))})
    [problem] = check(config)
    assert problem.what.startswith("1000 of")
    assert "... and 995 more" in problem.fix


def test_unreadable_picture_is_named(image_list: MakeImageList) -> None:
    config = image_list()
    (Path(config.root) / "toy" / "images" / "2.png").write_bytes(b"not a picture")
    split = open_dataset(config).split("train")
    with pytest.raises(VpeftBenchError, match=r"2\.png cannot be read as a picture"):
        split.image(2)


@pytest.fixture
def json_splits(tmp_path: Path) -> Callable[[dict[str, str]], DataConfig]:
    def make(lists: dict[str, str]) -> DataConfig:
        (tmp_path / "pictures").mkdir()
        for number in range(4):
            Image.new("L", (8, 6)).save(tmp_path / "pictures" / f"{number}.png")
        for file, text in lists.items():
            (tmp_path / file).write_text(text)
        return DataConfig(
            name="fgvc_json",
            reader="json_splits",
            title="birds",
            root=str(tmp_path),
            image_folder="pictures",
        )

    return make


def test_json_classes_are_numbered_by_train(
    json_splits: Callable[[dict[str, str]], DataConfig],
) -> None:
    config = json_splits(
        {
            "train.json": json.dumps({"0.png": 70, "1.png": 9, "2.png": 12}),
            "val.json": json.dumps({"3.png": 70}),
            "test.json": json.dumps({"0.png": 12, "1.png": 70}),
        }
    )
    dataset = open_dataset(config)
    assert dataset.num_classes == 3
    assert dataset.split("trainval").labels.tolist() == [2, 0, 1, 2]
    assert dataset.split("test").labels.tolist() == [1, 2]  # by itself it would be [0, 1]
    assert dataset.split("val").image(0).mode == "RGB"


def test_all_problems_of_json_splits_at_once(
    json_splits: Callable[[dict[str, str]], DataConfig],
) -> None:
    config = json_splits(
        {
            "train.json": json.dumps({"0.png": 1, "1.png": 2, "2.png": 2.5, "9.png": 1}),
            "val.json": '{"3.png": 1,\n "2.png" 2}',
            "test.json": json.dumps({"0.png": 1, "1.png": 7, "2.png": 8}),
        }
    )
    config.num_classes = 3
    problems = check(config)
    text = "\n".join(map(str, problems))
    assert len(problems) == 5
    assert "1 class ids are neither" in text
    assert "val.json: is not JSON" in text
    assert "line 2" in text
    assert "holds 2 classes where birds has 3" in text
    assert "2 class ids are not in train.json" in text
    assert "7, 8" in text
    assert "9.png" in text
