"""Batches: resize as torchvision does it, and order and augmentation that can be repeated."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from vpeft_bench.data.dataset import open_dataset
from vpeft_bench.data.loading import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    EpochSampler,
    Preprocessing,
    build_loader,
    preprocessing_for,
)
from vpeft_bench.data.schema import Augmentation, DataConfig, Normalization, Resize
from vpeft_bench.data.splits import Split
from vpeft_bench.errors import VpeftBenchError

PRETRAINED = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bicubic"}
PLAIN = preprocessing_for(DataConfig(), PRETRAINED, 28)
CROP_FLIP = replace(PLAIN, resize=Resize.shorter_side, augmentation=Augmentation.crop_flip)
RANDAUGMENT = replace(PLAIN, augmentation=Augmentation.randaugment)
ALL = pytest.mark.parametrize(
    "preprocessing", [PLAIN, CROP_FLIP, RANDAUGMENT], ids=["plain", "crop_flip", "randaugment"]
)


@pytest.fixture
def split(image_list: Callable[..., DataConfig]) -> Split:
    return open_dataset(image_list()).split("trainval")


def loader(
    split: Split,
    preprocessing: Preprocessing,
    train: bool = True,
    workers: int = 0,
    cache_gib: float = 0,
    seed: int = 0,
) -> DataLoader:
    return build_loader(
        split,
        preprocessing,
        train=train,
        sampler=EpochSampler(len(split), 4, seed, shuffle=train),
        seed=seed,
        workers=workers,
        cache_gib=cache_gib,
    )


def epoch(loader: DataLoader, number: int) -> tuple[Tensor, Tensor]:
    """All images and labels of one epoch, in order."""
    loader.sampler.set_epoch(number)
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def same(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_batches(split: Split) -> None:
    batches = list(loader(split, PLAIN, cache_gib=1))
    assert [len(images) for images, _ in batches] == [4, 4, 1]
    images, labels = batches[0]
    assert images.shape == (4, 3, 28, 28)
    assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
    assert len(loader(split, PLAIN)) == 3


@pytest.mark.parametrize("cache_gib", [0, 1])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resizes_as_torchvision(split: Split, interpolation: str, cache_gib: float) -> None:
    filter_ = v2.InterpolationMode(interpolation)
    reference = {
        Resize.squash: v2.Resize((28, 28), filter_),
        Resize.shorter_side: v2.Compose([v2.Resize(32, filter_), v2.CenterCrop(28)]),
    }
    for resize, transform in reference.items():
        preprocessing = replace(CROP_FLIP, resize=resize, interpolation=interpolation)
        images, labels = epoch(loader(split, preprocessing, train=False, cache_gib=cache_gib), 0)
        assert labels.tolist() == split.labels.tolist()
        for index, image in enumerate(images):
            expected = np.asarray(transform(split.image(index)))
            assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize(("side", "before"), [(224, 256), (384, 438), (448, 512)])
def test_crop_is_taken_from_the_published_size(
    image_list: Callable[..., DataConfig], side: int, before: int
) -> None:
    split = open_dataset(image_list()).split("val")
    preprocessing = replace(CROP_FLIP, image_size=(side, side))
    transform = v2.Compose([v2.Resize(before, v2.InterpolationMode.BICUBIC), v2.CenterCrop(side)])
    images, _ = epoch(loader(split, preprocessing, train=False), 0)
    for index, image in enumerate(images):
        expected = np.asarray(transform(split.image(index)))
        assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)


def test_oblong_input(split: Split) -> None:
    for preprocessing in (PLAIN, CROP_FLIP):
        oblong = replace(preprocessing, image_size=(20, 28))
        assert epoch(loader(split, oblong), 0)[0].shape == (9, 3, 20, 28)


def test_normalization() -> None:
    images = torch.randint(0, 256, (2, 3, 5, 5), dtype=torch.uint8)
    weights = preprocessing_for(DataConfig(), PRETRAINED, 28)
    assert torch.allclose(weights.normalize(images), images / 127.5 - 1, atol=1e-6)

    config = DataConfig(normalization=Normalization.imagenet)
    imagenet = preprocessing_for(config, PRETRAINED, (28, 28))
    assert imagenet.interpolation == "bicubic"
    expected = v2.functional.normalize(images / 255, IMAGENET_MEAN, IMAGENET_STD)
    assert torch.allclose(imagenet.normalize(images), expected, atol=1e-5)
    none = preprocessing_for(DataConfig(normalization=Normalization.none), PRETRAINED, (28, 28))
    assert torch.allclose(none.normalize(images), images / 255, atol=1e-6)


@ALL
def test_same_batches_whatever_serves_them(split: Split, preprocessing: Preprocessing) -> None:
    expected = [epoch(loader(split, preprocessing), number) for number in (0, 1)]
    for workers, cache_gib in ((2, 0), (0, 1), (2, 1)):
        served = loader(split, preprocessing, workers=workers, cache_gib=cache_gib)
        for number in (0, 1):
            assert same(epoch(served, number), expected[number])


@ALL
def test_epochs_differ_and_can_be_repeated(split: Split, preprocessing: Preprocessing) -> None:
    uninterrupted = loader(split, preprocessing, cache_gib=1)
    epochs = [epoch(uninterrupted, number) for number in range(3)]
    assert not torch.equal(epochs[0][0], epochs[1][0])
    resumed = loader(split, preprocessing, cache_gib=1)
    assert same(epoch(resumed, 2), epochs[2])
    assert not same(epoch(loader(split, preprocessing, seed=1), 0), epochs[0])


@ALL
def test_evaluation_neither_shuffles_nor_augments(
    split: Split, preprocessing: Preprocessing
) -> None:
    evaluation = loader(split, preprocessing, train=False)
    first = epoch(evaluation, 0)
    assert same(epoch(evaluation, 1), first)
    assert first[1].tolist() == split.labels.tolist()


def test_every_picture_once_per_epoch(split: Split) -> None:
    in_order, _ = epoch(loader(split, PLAIN, train=False), 0)
    shuffled, _ = epoch(loader(split, PLAIN), 0)
    assert {image.numpy().tobytes() for image in shuffled} == {
        image.numpy().tobytes() for image in in_order
    }
    assert len(shuffled) == len(in_order)


def test_crops_come_from_the_resized_picture_and_half_are_flipped(split: Split) -> None:
    train = loader(split, CROP_FLIP, cache_gib=1)
    index = 4
    resized = np.asarray(v2.Resize(32, v2.InterpolationMode.BICUBIC)(split.image(index)))
    windows = {
        np.ascontiguousarray(window).tobytes(): flipped
        for top in range(resized.shape[0] - 27)
        for left in range(resized.shape[1] - 27)
        for window in [resized[top : top + 28, left : left + 28]]
        for flipped, window in [(False, window), (True, window[:, ::-1])]
    }
    flips, crops = 0, set()
    for number in range(40):
        images, _ = train.dataset[number, np.array([index])]
        crop = images[0].permute(1, 2, 0).contiguous().numpy().tobytes()
        flips += windows[crop]
        crops.add(crop)
    assert 10 <= flips <= 30
    assert len(crops) > 25


def test_randaugment_leaves_global_generators_alone(split: Split) -> None:
    python_state = random.getstate()
    numpy_state = np.random.get_state()[1].tolist()  # noqa: NPY002  the global one
    epoch(loader(split, RANDAUGMENT), 0)
    assert random.getstate() == python_state
    assert np.random.get_state()[1].tolist() == numpy_state  # noqa: NPY002  the global one


def test_every_randaugment_operation_works_at_its_strongest(split: Split) -> None:
    randaugment = loader(split, RANDAUGMENT).dataset._randaugment
    image = split.image(0)
    for operation in randaugment.ops:
        operation.prob, operation.magnitude, operation.magnitude_std = 1.0, 100, 0
        assert operation(image).size == image.size, operation


@ALL
def test_workers_of_any_start_method_get_the_same(
    split: Split, preprocessing: Preprocessing
) -> None:
    batches = loader(split, preprocessing, cache_gib=1).dataset
    key = (3, np.array([5, 0, 7]))
    sent = pickle.loads(pickle.dumps(batches))
    assert same(sent[key], batches[key])


def test_workers_only_where_they_help(split: Split) -> None:
    assert loader(split, PLAIN, workers=2, cache_gib=1).num_workers == 0
    assert loader(split, CROP_FLIP, workers=2, cache_gib=1).num_workers == 0
    assert loader(split, PLAIN, workers=2, cache_gib=0).num_workers == 2
    assert loader(split, RANDAUGMENT, workers=2, cache_gib=1).num_workers == 2


def test_memory_is_bounded(split: Split) -> None:
    needed_gib = len(split) * 3 * 28 * 28 / 2**30
    assert loader(split, PLAIN, cache_gib=needed_gib).dataset.in_memory
    assert not loader(split, PLAIN, cache_gib=0.99 * needed_gib).dataset.in_memory


@pytest.mark.parametrize("cache_gib", [0, 1])
def test_unreadable_picture_is_named(
    image_list: Callable[..., DataConfig], cache_gib: float
) -> None:
    config = image_list()
    (Path(config.root) / "toy" / "images" / "2.png").write_bytes(b"not a picture")
    split = open_dataset(config).split("train")
    with pytest.raises(VpeftBenchError, match=r"2\.png cannot be read as a picture"):
        list(loader(split, PLAIN, cache_gib=cache_gib))


def test_real_pictures(shared_data: Path) -> None:
    config = DataConfig(name="mnist", folders=["mnist"], root=str(shared_data / "vtab-1k"))
    split = open_dataset(config).split("trainval")
    images, labels = epoch(loader(split, PLAIN, train=False, cache_gib=1), 0)
    assert np.array_equal(labels.numpy(), split.labels)
    for index in (0, 999):  # already of the input's size: not a pixel changes
        pixels = images[index].permute(1, 2, 0).contiguous().numpy()
        assert Image.fromarray(pixels).tobytes() == split.image(index).tobytes()
