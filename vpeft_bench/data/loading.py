"""From a split to batches: resize, augmentation, order, and keeping pictures in memory.

Batches are uint8; the task normalises them on its device, which moves a quarter of the bytes.
Order and augmentation follow from (seed, epoch, index) alone, so neither the number of workers,
nor the cache, nor an interruption between epochs changes what a run sees.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import random
from collections.abc import Hashable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data.auto_augment import RandAugment, rand_augment_transform
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from vpeft_bench import kept
from vpeft_bench.data.pictures import content_hash
from vpeft_bench.data.schema import Augmentation, DataConfig, Normalization, Resize
from vpeft_bench.data.splits import LabelledSplit
from vpeft_bench.data.workers import Loader, hands_over_errors
from vpeft_bench.kept import Kept

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

RANDAUGMENT = "rand-m9-mstd0.5-inc1"

Pixels = NDArray[np.uint8]
Batch = tuple[Tensor, Tensor]
BatchKey = tuple[int, NDArray[np.int64]]
"""What the sampler asks the data set for: the epoch, and the indices of one batch."""


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the network's input.

    Attributes:
        image_size: height and width of the input in pixels; None where it has any size.
        interpolation: Pillow's name of the resize filter, e.g. ``bilinear`` or ``bicubic``; Pillow
            always filters against aliasing when it shrinks.
        mean: per channel, of pixels scaled to 0 to 1.
        std: per channel, of pixels scaled to 0 to 1.
        resize: how any size becomes the input size.
        augmentation: what is done to training pictures.
        sides: where the input has any size, pixels of its shorter side in evaluation, and the most
            of its longer side.
    """

    image_size: tuple[int, int] | None
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: Resize
    augmentation: Augmentation
    sides: tuple[int, int] | None = None

    @property
    def height_and_width(self) -> tuple[int, int]:
        """Of an input that has one size."""
        assert self.image_size is not None
        return self.image_size

    def normalize(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 pictures as float32 input of the network, on their device."""
        mean, std = _channel_statistics(self.mean, self.std, images.device)
        return (images.float() - mean) / std


@functools.cache
def _channel_statistics(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of pixels from 0 to 255, shaped (3, 1, 1), on ``device``."""
    statistics = 255 * torch.tensor([mean, std], device=device)[..., None, None]
    return statistics[0], statistics[1]


def preprocessing_for(
    data_config: DataConfig,
    pretrained_cfg: Mapping[str, Any],
    image_size: int | tuple[int, int] | None,
    sides: tuple[int, int] | None = None,
) -> Preprocessing:
    """The preprocessing of a data set for given weights.

    Args:
        data_config: says resize, augmentation and whose normalisation.
        pretrained_cfg: timm's description of the weights; of it ``interpolation``, ``mean`` and
            ``std`` are read.
        image_size: input size of the network: height and width, or the side of a square; None
            where it reads any size.
        sides: what bounds the input there, see :class:`Preprocessing`.
    """
    mean, std = {
        Normalization.weights: (tuple(pretrained_cfg["mean"]), tuple(pretrained_cfg["std"])),
        Normalization.imagenet: (IMAGENET_MEAN, IMAGENET_STD),
        Normalization.none: ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    }[data_config.normalization]
    return Preprocessing(
        image_size=(image_size, image_size) if isinstance(image_size, int) else image_size,
        interpolation=pretrained_cfg["interpolation"],
        mean=mean,
        std=std,
        resize=data_config.resize,
        augmentation=data_config.augmentation,
        sides=sides if image_size is None else None,
    )


def build_loader(
    split: LabelledSplit,
    preprocessing: Preprocessing,
    *,
    train: bool,
    sampler: EpochSampler,
    seed: int,
    workers: int,
    cache_gib: float,
) -> DataLoader[Batch]:
    """Batches of ``(images, labels)``: (B, 3, H, W) uint8 and (B,) int64.

    ``loader.sampler.set_epoch(epoch)`` chooses the epoch; Lightning calls it by itself. The last
    batch may be smaller than the others: no picture is left out.

    Args:
        split: the pictures.
        preprocessing: how they are resized and, in training, augmented.
        train: augment; otherwise pictures are cropped at the centre.
        sampler: which pictures make each batch.
        seed: of augmentation.
        workers: processes that decode what is not kept in memory, and that compute RandAugment;
            none are started where there is neither to do.
        cache_gib: the split is kept in memory, resized, where that takes no more GiB than this.
    """
    batches = _Batches(split, preprocessing, train, seed, cache_gib)
    if batches.in_memory:
        batches.fill_memory()  # before training is timed, and before workers start and share it
        if batches.augmentation is not Augmentation.randaugment:
            workers = 0
    return Loader(
        batches,
        sampler=sampler,
        batch_size=None,  # the sampler's items are whole batches already
        num_workers=workers,
        persistent_workers=workers > 0,
    )


class EpochSampler(Sampler[BatchKey]):
    """Yields (epoch, indices) per batch, so that worker processes need no state of their own.

    Several devices read the same batches: in training each takes some of the parts of every batch,
    else (:meth:`take`) each takes some of the batches.

    Attributes:
        parts: each batch comes in this number of parts, of sizes that differ by one at most. Where
            it has fewer pictures than that, the first one comes again, with a share of 0.
        rank, ranks: of the parts, every ``ranks``-th is yielded, beginning with ``rank``.
    """

    def __init__(self, size: int, batch_size: int, seed: int, *, shuffle: bool) -> None:
        """Batches of ``batch_size`` from ``size`` pictures, the last one of what remains."""
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0
        self.parts = 1
        self.rank, self.ranks = 0, 1
        self._reach = range(size)
        self._done = (0, 0)

    def go_on(self, epoch: int, parts: int) -> None:
        """Choose an epoch of which some parts are done."""
        self.epoch, self._done = epoch, (epoch, parts)

    def take(self, rank: int, ranks: int) -> None:
        """Keep to a ``ranks``-th of the pictures: whole batches, unless there are too few of them.

        All shares one after another are the whole.
        """
        step = self.batch_size if -(-self.size // self.batch_size) >= ranks else 1
        pieces = -(-self.size // step)
        first, end = (min(self.size, step * (pieces * r // ranks)) for r in (rank, rank + 1))
        self._reach = range(first, end)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the augmentation of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Number of batches, or of their parts."""
        return self.batches * self.parts // self.ranks

    def __iter__(self) -> Iterator[BatchKey]:
        """The batches of the chosen epoch, or their parts in turn."""
        parts, (epoch, done) = self._parts(), self._done
        return itertools.islice(parts, done if epoch == self.epoch else 0, None)

    def _parts(self) -> Iterator[BatchKey]:
        order = self.order()
        for start in self._reach[:: self.batch_size]:
            batch = order[start : min(start + self.batch_size, self._reach.stop)]
            for part in np.array_split(batch, self.parts)[self.rank :: self.ranks]:
                yield self.epoch, part if len(part) else batch[:1]

    @property
    def batches(self) -> int:
        """Number of whole batches; the last may be smaller."""
        return -(-len(self._reach) // self.batch_size)

    def share(self, index: int) -> float:
        """Pictures of the ``index``-th part of an epoch, relative to the mean part of its batch.

        The mean over a batch is the mean over its parts of their own means, each times its share.
        """
        batch, mine = divmod(index, self.parts // self.ranks)
        part = mine * self.ranks + self.rank
        pictures = min(self.batch_size, self.size - batch * self.batch_size)
        return (pictures // self.parts + (part < pictures % self.parts)) * self.parts / pictures

    def order(self) -> NDArray[np.int64]:
        """All indices in the order of the chosen epoch."""
        if self.shuffle:
            return np.random.default_rng([self.seed, self.epoch]).permutation(self.size)
        return np.arange(self.size)


_pictures: Kept[tuple[Tensor | list[Tensor], dict[int, str]]] = Kept()
"""Resized pictures that runs of this process have read, and the hashes of their pixels."""


class _Batches(TorchDataset[Batch]):
    """Whole batches of a split by (epoch, indices), from memory where the split fits into it.

    Attributes:
        pixels: of the files that were decoded into memory, by index, the hash of their pixels.
    """

    def __init__(
        self,
        split: LabelledSplit,
        preprocessing: Preprocessing,
        train: bool,
        seed: int,
        cache_gib: float,
    ) -> None:
        self.split = split
        self.preprocessing = preprocessing
        self.augmentation = preprocessing.augmentation if train else Augmentation.none
        self.seed = seed
        self.labels = torch.from_numpy(split.labels)
        self._limit = int(cache_gib * 2**30)
        self.in_memory = self._estimated_bytes() <= self._limit
        self.pixels: dict[int, str] = {}
        self._memory: Tensor | list[Tensor] | None = None
        if self.augmentation is Augmentation.randaugment:
            self._randaugment = _randaugment(preprocessing)

    def __len__(self) -> int:
        return len(self.split)

    @hands_over_errors
    def __getitem__(self, key: BatchKey) -> Batch:
        epoch, indices = key
        if self.in_memory and self._memory is None:
            self.fill_memory()
        chosen = torch.from_numpy(indices)
        if isinstance(self._memory, Tensor) and self.augmentation is Augmentation.none:
            return self._memory[chosen], self.labels[chosen]
        images = [self._augmented(epoch, index) for index in indices.tolist()]
        return torch.stack(images), self.labels[chosen]

    def fill_memory(self) -> None:
        """Decode and resize every picture, unless an earlier run of the process has kept them."""
        key = self._kept_as()
        if key is not None and (found := _pictures.find(key)) is not None:
            self._memory, self.pixels = found
            return
        self._decode()
        if key is not None:
            assert self._memory is not None
            size = sum(picture.numel() for picture in self._memory)
            _pictures.put(key, (self._memory, self.pixels), size, self._limit)

    def _kept_as(self) -> Hashable | None:
        """The name of the resized pictures: all they depend on; None where they are not kept.

        Rendered pictures are quick to make again.
        """
        if not kept.wanted() or not (files := self.split.state()):
            return None
        digest = hashlib.sha256(repr(files).encode()).hexdigest()
        resized = replace(self.preprocessing, augmentation=Augmentation.none)
        return digest, resized, self._crops_at_random

    def _decode(self) -> None:
        """Pillow decodes and resizes outside the interpreter's lock."""
        with ThreadPoolExecutor() as threads:
            images = threads.map(self._remembered, range(len(self)))
            if self._crops_at_random:  # pictures of different sizes
                self._memory = list(images)
                return
            memory = torch.empty(
                len(self), 3, *self.preprocessing.height_and_width, dtype=torch.uint8
            )
            for slot, image in zip(memory, images, strict=True):
                slot.copy_(image)
            self._memory = memory

    def _estimated_bytes(self) -> int:
        """What the resized pictures take; before a random crop a shape of 4:3 is assumed."""
        height, width = self.preprocessing.height_and_width
        area = height * width
        if self._crops_at_random:
            area = _before_crop(height) * _before_crop(width) * 4 // 3
        return len(self) * 3 * area

    @property
    def _crops_at_random(self) -> bool:
        crop_flip = self.augmentation is Augmentation.crop_flip
        return crop_flip and self.preprocessing.resize is Resize.shorter_side

    def _remembered(self, index: int) -> Tensor:
        """Picture ``index`` for the memory, and its hash if it is a file."""
        image = self.split.image(index)
        if self.split.file(index) is not None and (content := content_hash(image)):
            self.pixels[index] = content
        return self._resized(image)

    def _resized(self, image: Image.Image) -> Tensor:
        """A picture as (3, H, W), cropped as well unless augmentation is to do that."""
        if self._crops_at_random:
            return _pixels(_resize(image, self.preprocessing)).contiguous()
        return as_input(image, self.preprocessing)

    def _augmented(self, epoch: int, index: int) -> Tensor:
        """Picture ``index`` as (3, image height, image width), as epoch ``epoch`` sees it."""
        if self._memory is None:
            pixels = self._resized(self.split.image(index))
        else:
            pixels = self._memory[index]
        if self.augmentation is Augmentation.none:
            return pixels
        rng = np.random.default_rng([self.seed, epoch, index])
        height, width = self.preprocessing.height_and_width
        top = rng.integers(pixels.shape[1] - height + 1)
        left = rng.integers(pixels.shape[2] - width + 1)
        pixels = pixels[:, top : top + height, left : left + width]
        if rng.integers(2):
            pixels = pixels.flip(-1)
        if self.augmentation is Augmentation.randaugment:
            with _global_seed(int(rng.integers(2**32))):
                image = self._randaugment(Image.fromarray(pixels.permute(1, 2, 0).numpy()))
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return pixels


def as_input(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """An RGB picture as (3, H, W) uint8 of the input size, as evaluation sees it."""
    pixels = _pixels(_resize(image, preprocessing))
    height, width = preprocessing.height_and_width
    # Rounded as torchvision's CenterCrop does.
    top = round((pixels.shape[1] - height) / 2)
    left = round((pixels.shape[2] - width) / 2)
    return pixels[:, top : top + height, left : left + width].contiguous()


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _before_crop(side: int) -> int:
    """The side to resize to before a crop of ``side``: 256 for 224, 438 for 384, 512 for 448."""
    return side * 256 // 224


def _resize(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """``image`` at the input size, or at the size that the crop is taken from."""
    height, width = preprocessing.height_and_width
    if preprocessing.resize is Resize.shorter_side:
        height, width = _before_crop(height), _before_crop(width)
        if image.width * height < image.height * width:
            height = image.height * width // image.width
        else:
            width = image.width * height // image.height
    filter_ = Image.Resampling[preprocessing.interpolation.upper()]
    return image.resize((width, height), filter_)


def _randaugment(preprocessing: Preprocessing) -> RandAugment:
    """RandAugment with the parameters that timm's training transform gives it."""
    options = {
        "translate_const": int(min(preprocessing.height_and_width) * 0.45),
        "img_mean": tuple(min(255, round(255 * mean)) for mean in preprocessing.mean),
        "interpolation": Image.Resampling[preprocessing.interpolation.upper()],
        # At magnitude 10, which the noise reaches now and then, timm has Pillow posterize to no
        # bits at all: a black picture with older versions of Pillow, an error with newer ones.
        "magnitude_max": 9.99,
    }
    transform: RandAugment = rand_augment_transform(RANDAUGMENT, options)
    return transform


@contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """Seed the global generators, which timm draws from, and put their states back after."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
