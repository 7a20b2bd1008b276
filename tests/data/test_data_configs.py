"""Every file under configs/data composes, fits DataConfig and appears in the listing."""

from __future__ import annotations

import io
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from vpeft_bench.cli.data import (
    Listed,
    list_datasets,
    main,
    print_datasets,
)
from vpeft_bench.config.choices import choices_on_disk
from vpeft_bench.config.schema import register_schema
from vpeft_bench.data.composed import compose_data_configs
from vpeft_bench.data.schema import Augmentation, DataConfig, Resize


@pytest.fixture(scope="module")
def configs(config_dir: Path) -> dict[str, DataConfig]:
    names = choices_on_disk(config_dir)["data"]
    return dict(zip(names, compose_data_configs(config_dir, names), strict=True))


def test_all_are_there_and_carry_their_own_name(configs: dict[str, DataConfig]) -> None:
    counts = Counter(config.benchmark for config in configs.values())
    demos = {"demo": 4, "demo_dense": 3, "demo_retrieval": 1}
    assert counts == {"vtab1k": 19, "fgvc": 5, "dense": 4, "custom": 8, **demos}
    assert [config.name for config in configs.values()] == list(configs)


def test_vtab_facts(configs: dict[str, DataConfig]) -> None:
    tasks = [config for config in configs.values() if config.benchmark == "vtab1k"]
    groups = Counter(task.group for task in tasks)
    assert groups == {"natural": 7, "specialized": 4, "structured": 8}
    for task in tasks:
        assert task.folders[0] == task.name.removeprefix("vtab1k/")
        assert (task.train_size, task.val_size, task.final_train) == (800, 200, "trainval")
        assert (task.resize, task.augmentation) == (Resize.squash, Augmentation.none)
    assert sum(task.num_classes or 0 for task in tasks) == 940


def test_fgvc_facts(configs: dict[str, DataConfig]) -> None:
    tasks = [config for config in configs.values() if config.benchmark == "fgvc"]
    for task in tasks:
        assert task.final_train == "train"
        assert (task.resize, task.augmentation) == (Resize.shorter_side, Augmentation.crop_flip)
    assert sum(task.num_classes or 0 for task in tasks) == 200 + 555 + 102 + 120 + 196


def test_every_downloadable_set_says_where_to_get_it(configs: dict[str, DataConfig]) -> None:
    for config in configs.values():
        if config.benchmark in ("vtab1k", "fgvc", "dense"):
            assert config.source.startswith("http"), config.name
            assert config.licence, config.name
            assert config.test_size, config.name


def test_dense_sets_choose_their_task_and_head(
    config_dir: Path, configs: dict[str, DataConfig]
) -> None:
    """As the primary config composes them for a run; the listing composes less."""
    heads = {
        "coco": "cascade_mask_rcnn",
        "coco_json": "faster_rcnn",
        "voc0712": "retinanet",
        "voc_xml": "faster_rcnn",
        "ade20k": "upernet",
        "ade20k_folders": "upernet",
        "voc2012_masks": "upernet",
        "voc_masks": "upernet",
    }
    register_schema()
    with initialize_config_dir(str(config_dir), version_base="1.3"):
        for name, head in heads.items():
            config = compose("config", overrides=[f"data={name}"])
            assert config.head.name == head, name
            detects = config.data.reader in ("coco", "voc_boxes")
            assert config.task["name"] == ("detection" if detects else "segmentation"), name
            assert config.data == OmegaConf.structured(configs[name]), name


@pytest.mark.parametrize("line", ["augmentation: cutmix", "augmentations: none", "val_size: x"])
def test_misspelt_files_are_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text(f"name: mine\n{line}\n")
    with pytest.raises(OmegaConfBaseException, match=line.split(":")[0]):
        compose_data_configs(tmp_path, ["mine"])


def test_listing(config_dir: Path, shared_data: Path) -> None:
    roots = {
        "vtab1k": str(shared_data / "vtab-1k"),
        "fgvc": str(shared_data / "fgvc"),
        "dense": str(shared_data),
    }
    listed = {row.config.name: row for row in list_datasets(config_dir, roots)}
    assert len(listed) == 44
    there = {name for name, row in listed.items() if row.status == "yes"}
    demo = {name for name in listed if name.startswith("demo/")}
    assert there == demo | {"vtab1k/dsprites_loc", "vtab1k/dsprites_ori", "coco"}
    # The stand-in at hand has 12 of the 102 classes: it must not pass for the real one.
    assert listed["fgvc/oxford_flowers"].status == "1 problem"
    assert listed["vtab1k/svhn"].status == "no"
    tasks = Counter(row.task for row in listed.values())
    assert tasks == {
        "classification": 19 + 5 + 4 + 4,
        "detection": 6,
        "segmentation": 5,
        "retrieval": 1,
    }
    assert listed["voc0712"].task == "detection"
    assert listed["voc2012_masks"].task == "segmentation"

    console = Console(file=io.StringIO(), record=True, width=140)
    print_datasets(list(listed.values()), console)
    text = console.export_text()
    assert "2,000 of 73,728" in text
    assert "27 of 5,000" in text
    assert "12 classes where Oxford Flowers 102 has 102" in text


def test_command_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    configs: dict[str, DataConfig],
) -> None:
    asked = []

    def list_two(directory: Path, roots: dict[str, str], own: Path | None) -> list[Listed]:
        asked.append(roots)
        return [Listed(configs["demo/digits"], None), Listed(configs["fgvc/cub"], None)]

    monkeypatch.setattr("vpeft_bench.cli.data.list_datasets", list_two)
    assert main(["--vtab1k", "somewhere", "--dense", "elsewhere"]) == 0
    assert asked == [{"vtab1k": "somewhere", "dense": "elsewhere"}]
    shown = capsys.readouterr().out
    assert "demo: comes with the package" in shown
    assert "fgvc: looked in data/fgvc" in shown


def test_listing_needs_no_torch() -> None:
    code = "import sys, vpeft_bench.cli.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
