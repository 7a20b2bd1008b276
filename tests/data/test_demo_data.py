"""The demo data sets: the same pictures everywhere, whatever becomes of the cache."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from tests.data.conftest import check
from vpeft_bench.data import demo, sprites
from vpeft_bench.data.composed import compose_data_configs
from vpeft_bench.data.dataset import open_dataset
from vpeft_bench.data.schema import DataConfig
from vpeft_bench.data.splits import Dataset

# First 16 hex digits of sha256: of the fingerprint's input, and of all pixels and labels. A change
# of pixels must come with a new VERSION, which changes the fingerprint as well.
PINNED = {
    "demo/digits": ("5acac37de946b8aa", "4412a7fbaeb76cba"),
    "demo/sprites_count": ("6579cd507d16ddca", "95f2b8790eeed8ba"),
    "demo/sprites_location": ("fb7dfb2789c042f0", "ecad679aaedf6a57"),
    "demo/sprites_orientation": ("8adcae8c5f4aec07", "7f8a49aad99e403e"),
}


def open_demo(config_dir: Path, name: str) -> Dataset:
    [config] = compose_data_configs(config_dir, [name])
    return open_dataset(config)


def content_hash(dataset: Dataset) -> str:
    digest = hashlib.sha256()
    for name in ("trainval", "test"):
        split = dataset.split(name)
        digest.update(split.labels.astype("<i8").tobytes())
        for index in range(len(split)):
            digest.update(split.image(index).tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("name", PINNED)
def test_contents_are_pinned(config_dir: Path, name: str) -> None:
    dataset = open_demo(config_dir, name)
    assert (dataset.fingerprint[:16], content_hash(dataset)[:16]) == PINNED[name]


@pytest.mark.parametrize("name", PINNED)
def test_configured_facts_hold(config_dir: Path, name: str) -> None:
    [config] = compose_data_configs(config_dir, [name])
    dataset = open_dataset(config)
    assert dataset.num_classes == config.num_classes
    sizes = (config.train_size, config.val_size, config.test_size)
    assert tuple(len(dataset.split(split)) for split in ("train", "val", "test")) == sizes
    assert dataset.split("test").image(0).size == (32, 32)
    for split in ("train", "val", "test"):
        counts = np.bincount(dataset.split(split).labels, minlength=dataset.num_classes)
        # Drawn at random: no class is missing, and none dominates.
        assert counts.min() > 0
        assert counts.max() < 3 * counts.mean()
    joint = [*dataset.split("train").labels.tolist(), *dataset.split("val").labels.tolist()]
    assert dataset.split("trainval").labels.tolist() == joint


def test_location_is_where_the_sprite_is(config_dir: Path) -> None:
    split = open_demo(config_dir, "demo/sprites_location").split("test")
    errors = []
    for index in range(200):
        pixels = np.asarray(split.image(index), dtype=np.float64)
        background = np.median(pixels, axis=(0, 1))
        strength = np.abs(pixels - background).sum(axis=2)
        weight = np.where(strength > 0.6 * strength.max(), strength, 0).sum(axis=0)
        x = (weight * (np.arange(32) + 0.5)).sum() / weight.sum()
        errors.append(abs((x - 4) / 1.5 - 0.5 - split.labels[index]))
    assert np.median(errors) < 0.5


def test_cache_is_used_and_dispensable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def build() -> demo.Arrays:
        calls.append(1)
        return {"pixels": np.arange(6, dtype=np.uint8)}

    monkeypatch.setenv("VPEFT_BENCH_CACHE", str(tmp_path / "cache"))
    for _ in range(2):
        assert demo.cached("set-v1", build)["pixels"].tolist() == [0, 1, 2, 3, 4, 5]
    assert len(calls) == 1
    assert [file.name for file in (tmp_path / "cache").iterdir()] == ["set-v1.npz"]

    (tmp_path / "cache" / "set-v1.npz").write_bytes(b"PK\x03\x04 cut short")
    demo.cached("set-v1", build)
    demo.cached("set-v1", build)
    assert len(calls) == 2

    (tmp_path / "file").write_text("no folder can be made below this")
    monkeypatch.setenv("VPEFT_BENCH_CACHE", str(tmp_path / "file" / "cache"))
    assert demo.cached("set-v1", build)["pixels"].tolist() == [0, 1, 2, 3, 4, 5]
    assert len(calls) == 3


def test_cache_folder_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VPEFT_BENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert demo.cache_folder() == tmp_path / "vpeft_bench"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert demo.cache_folder() == tmp_path / ".cache" / "vpeft_bench"


def test_unknown_variant_names_the_nearest() -> None:
    config = DataConfig(name="demo/x", reader="sprites", variant="locations")
    [problem] = check(config)
    assert "did you mean data.variant=location" in problem.fix
    assert "data.root" not in problem.fix
    assert set(sprites.NUM_CLASSES) == {"location", "count", "orientation"}
