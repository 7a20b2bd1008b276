"""A run that is stopped and taken up again ends with the weights of one that never was."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import Cli
from tests.running import run_here, signal_after_epoch
from tests.runs.test_dense_run import boxes_on_grey
from tests.runs.test_run import record_of, wait_for_epochs
from vpeft_bench.records.run_record import Status, read
from vpeft_bench.runs.checkpoint import EpochCheckpoint, Progress
from vpeft_bench.runs.interruption import Interrupted
from vpeft_bench.tasks.base import Task

__all__ = ["boxes_on_grey"]

STORED = ("delta.safetensors", "head.safetensors")


@pytest.fixture(scope="session")
def maps_of_halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VOC folder of label maps: pictures that are dark on one side, 10 to train on, 4 to test."""
    root = tmp_path_factory.mktemp("halves")
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", 10), ("val", 4)):
        names = [f"{part}{index}" for index in range(count)]
        (root / "ImageSets/Segmentation" / f"{part}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            edge = int(rng.integers(20, 60))
            labels = np.zeros((64, 80), np.uint8)
            labels[:, edge:] = 1
            pixels = np.stack([40 + 150 * labels] * 3, axis=-1) + rng.integers(40, size=(64, 80, 1))
            Image.fromarray(pixels.astype(np.uint8)).save(root / "JPEGImages" / f"{name}.jpg")
            Image.fromarray(labels).save(root / "SegmentationClass" / f"{name}.png")
    return root


def assert_resumed_like_unbroken(
    tmp_path: Path, patch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    """Stop after two of four epochs, go on, and compare every byte that is stored."""
    options = (*options, "train.epochs=4", "train.warmup_epochs=1")
    whole = run_here(tmp_path / "whole", *options)
    with patch.context() as stopping:
        signal_after_epoch(stopping, 2, signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM"):
            run_here(tmp_path / "stopped", *options)
    directory = tmp_path / "stopped" / whole.directory.relative_to(tmp_path / "whole")
    assert read(directory / "record.json").status is Status.INTERRUPTED
    assert (directory / "last.ckpt").exists()
    resumed = run_here(tmp_path / "stopped", *options)
    assert whole.record is not None
    assert resumed.record is not None
    assert resumed.record.happened.resumed == 1
    assert (
        resumed.record.happened.curves["train_loss"] == whole.record.happened.curves["train_loss"]
    )
    assert resumed.record.happened.last_epoch == whole.record.happened.last_epoch
    assert resumed.record.happened.checksums == whole.record.happened.checksums
    for name in STORED:
        assert (directory / name).read_bytes() == (whole.directory / name).read_bytes()


def cases_of_classification() -> list[Any]:
    """Every augmentation, with and without loader processes, kept in memory or decoded anew.

    No process is started where there is nothing to do for it. At once there is one; segmentation
    is the one with loader processes.
    """
    at_once = ("crop_flip", 0, True)
    return [
        pytest.param(*case, marks=() if case == at_once else pytest.mark.slow)
        for case in itertools.product(("none", "crop_flip", "randaugment"), (0, 2), (True, False))
        if case[0] == "randaugment" or not (case[1] and case[2])
    ]


@pytest.mark.parametrize(("augmentation", "workers", "kept"), cases_of_classification())
def test_classification(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_data: Path,
    augmentation: str,
    workers: int,
    kept: bool,
) -> None:
    options = (
        "data=imagelist",
        f"data.root={tiny_data}",
        f"data.augmentation={augmentation}",
        f"data.cache_gib={1 if kept else 0}",
        f"hardware.workers={workers}",
        "hardware.feature_cache=off",
        "train.batch_size=40",
        "method=bitfit",
    )
    assert_resumed_like_unbroken(tmp_path, monkeypatch, options)


def test_mixed_pictures_and_sgd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_data: Path
) -> None:
    options = (
        "data=imagelist",
        f"data.root={tiny_data}",
        "task.mixup=0.5",
        "task.cutmix=1",
        "train.optimizer=sgd",
        "train.batch_size=40",
        "method=bitfit",
    )
    assert_resumed_like_unbroken(tmp_path, monkeypatch, options)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_detection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boxes_on_grey: Path, workers: int
) -> None:
    options = (
        "data=coco_json",
        f"data.root={boxes_on_grey}",
        "head=mask_rcnn",  # which draws boxes to train on
        "head.channels=16",
        "head.hidden=32",
        "data.cache_gib=0",
        f"hardware.workers={workers}",
        "train.batch_size=4",
        "method=bitfit",
    )
    assert_resumed_like_unbroken(tmp_path, monkeypatch, options)


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_segmentation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, maps_of_halves: Path, workers: int
) -> None:
    options = (
        "data=voc_masks",
        f"data.root={maps_of_halves}",
        "data.num_classes=2",
        "head=linear",
        "data.cache_gib=0",
        f"hardware.workers={workers}",
        "train.batch_size=3",
        "method=bitfit",
    )
    assert_resumed_like_unbroken(tmp_path, monkeypatch, options)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_outright(cli: Cli, tmp_path: Path, tiny_data: Path, workers: int) -> None:
    """``kill -9`` in a later epoch, with loader processes that are killed by nobody."""
    options = (
        "data=imagelist",
        f"data.root={tiny_data}",
        "data.augmentation=randaugment",
        "data.cache_gib=0",
        f"hardware.workers={workers}",
        "hardware.threads=1",
        "hardware=cpu",
        "method=bitfit",
        "train.batch_size=10",
        "train.epochs=8",
    )
    assert cli(*options, "results_dir=whole").returncode == 0
    command = [sys.executable, "-m", "vpeft_bench", *options, "results_dir=killed"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    wait_for_epochs(tmp_path / "killed", 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list((tmp_path / "killed").rglob("record.json"))
    assert cli(*options, "results_dir=killed").returncode == 0
    assert record_of(tmp_path / "killed")["happened"]["resumed"] == 1
    for name in STORED:
        (expected,) = (tmp_path / "whole").rglob(name)
        (got,) = (tmp_path / "killed").rglob(name)
        assert got.read_bytes() == expected.read_bytes()


@pytest.mark.slow
def test_retrieval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxies of the classes go on as well, which no stored file has."""
    options = ("data=demo/glyphs_retrieval", "method=linear", "task.width=16", "train.lr=1e-2")
    assert_resumed_like_unbroken(tmp_path, monkeypatch, options)


def test_a_checkpoint_of_before_a_metric_was_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_data: Path
) -> None:
    """The run goes on; of the epochs before, that metric was not measured, and is null."""
    options = ("data=imagelist", f"data.root={tiny_data}", "method=linear", "protocol=select")
    options = (*options, "train.epochs=2")
    with monkeypatch.context() as stopping:
        signal_after_epoch(stopping, 1, signal.SIGTERM)
        with pytest.raises(Interrupted):
            run_here(tmp_path, *options)
    (path,) = tmp_path.rglob("last.ckpt")
    content = torch.load(path, weights_only=True)
    curves = content["callbacks"]["Curves"]["curves"]
    del curves["val_mean_per_class_accuracy"]
    curves["val_forgotten"] = [1.0]
    torch.save(content, path)

    record = run_here(tmp_path, *options).record
    assert record is not None
    assert record.happened.resumed == 1
    assert record.happened.curves["val_mean_per_class_accuracy"][0] is None
    assert record.happened.curves["val_mean_per_class_accuracy"][1] is not None
    assert record.happened.curves["val_forgotten"] == [1.0, None]


@pytest.mark.parametrize("accumulate", [(1, 1), (2, 1)])
def test_a_run_goes_on_in_the_middle_of_an_epoch(
    tmp_path: Path,
    tiny_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    accumulate: tuple[int, int],
) -> None:
    """Bit for bit with batches in as many parts as before; else with the same pictures."""
    options = ("data=imagelist", f"data.root={tiny_data}", "method=lora", "method.dropout=0.1")
    options = (*options, "train.epochs=3", "hardware.checkpoint_minutes=0", "protocol=select")
    before, after = (f"hardware.accumulate={parts}" for parts in accumulate)
    whole = run_here(tmp_path / "whole", *options, before).record
    assert whole is not None
    write = EpochCheckpoint.on_train_batch_end

    def write_and_signal(self: EpochCheckpoint, trainer: Any, *arguments: Any) -> None:
        write(self, trainer, *arguments)
        # After the third of five steps of the second epoch.
        if trainer.global_step == 8 and self._done == Progress(1, 3 * accumulate[0]):
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(EpochCheckpoint, "on_train_batch_end", write_and_signal)
        with pytest.raises(Interrupted):
            run_here(tmp_path / "stopped", *options, before)
    steps = 0
    train = Task.training_step

    def counted(self: Task, batch: Any, batch_idx: int) -> Any:
        nonlocal steps
        steps += 1
        return train(self, batch, batch_idx)

    monkeypatch.setattr(Task, "training_step", counted)
    resumed = run_here(tmp_path / "stopped", *options, after).record
    assert resumed is not None
    assert steps == (2 + 5) * accumulate[1]
    images = [
        r.happened.train_images_per_second * r.happened.seconds.train for r in (whole, resumed)
    ]  # type: ignore[operator]
    assert images == pytest.approx([480, 480])
    losses = [r.happened.curves["train_loss"] for r in (whole, resumed)]
    if accumulate[0] == accumulate[1]:
        assert resumed.happened.checksums == whole.happened.checksums
        assert losses[0] == losses[1]
    else:
        assert losses[1] == pytest.approx(losses[0], rel=0.2)
