"""From a split with objects or label maps to batches: resize, augmentation, order and memory.

As for classification, pictures stay uint8, and order and augmentation follow from (seed, epoch,
index) alone: neither the number of workers, nor the cache, nor an interruption between epochs
changes what a run sees.

Pictures with objects keep their own size; the detector resizes them on its device. Training crops
of segmentation are made as in the published ADE20K recipes, those of Swin (arXiv 2103.14030) and
Mona (arXiv 2408.08345) among them: resize, crop, flip, photometric distortion, padding.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms.v2 import functional as transforms

from vpeft_bench.config.sections import IGNORED_LABEL, InputConfig
from vpeft_bench.data.loading import IMAGENET_MEAN, BatchKey, EpochSampler, Pixels
from vpeft_bench.data.pictures import content_hash
from vpeft_bench.data.splits import LabelMapSplit, ObjectSplit
from vpeft_bench.data.workers import Loader, hands_over_errors
from vpeft_bench.errors import VpeftBenchError
from vpeft_bench.sizes import resized_size

DetectionTarget = dict[str, Tensor]
"""``boxes labels ignored areas`` and, where there are any, ``masks`` of one picture."""
DenseBatch = tuple[list[Tensor], list[DetectionTarget] | list[Tensor]]
"""Pictures, and their objects or their label maps."""

PADDING = tuple(round(255 * mean) for mean in IMAGENET_MEAN)
"""RGB beyond the picture: the ImageNet mean, which is close to 0 after any normalisation."""

Decoded = tuple[Pixels, Pixels | None]
"""A picture (H, W, 3) and, for segmentation, its label map (H, W)."""

_SAMPLES = 16  # pictures whose sizes stand for those of the split
_REDRAWS = 10  # of a crop that one class fills
_CHEAP_CROP = 128  # pixels; smaller training crops cost less than sending them between processes


def build_dense_loader(
    split: ObjectSplit | LabelMapSplit,
    input: InputConfig,
    *,
    train: bool,
    sampler: EpochSampler,
    seed: int,
    workers: int,
    cache_gib: float,
    interpolation: str,
    masks: bool = True,
) -> DataLoader[DenseBatch]:
    """Batches of ``(images, targets)``, two lists of equal length.

    Images are (3, h, w) uint8. The target of a picture with n objects is a dict of ``boxes`` (n, 4)
    as in :class:`~vpeft_bench.data.splits.Objects`, ``labels`` (n,) int64 from 0, ``ignored``
    (n,) bool, ``areas`` (n,) and, where wanted and there, ``masks`` (n, h, w) uint8. Training
    leaves out ignored objects and boxes narrower than a pixel, which may leave none, and has boxes
    and areas in float32; evaluation has them in float64, and adds ``crowds`` (n,) bool where there
    are any, and ``rank`` (), the place of the picture by its id: COCO's metric takes equal scores
    in this order.

    The target of segmentation is a (H, W) uint8 label map: in training of the picture's size, which
    is ``input.crop`` squared; in evaluation of the original size, while the picture is resized to
    ``input.test_shorter_side`` and ``input.longer_side``.

    ``loader.sampler.set_epoch(epoch)`` chooses the epoch; Lightning calls it by itself. The last
    batch may be smaller than the others: no picture is left out.

    Args:
        split: the pictures.
        input: sizes and augmentation.
        train: augment; otherwise pictures come as they are.
        sampler: which pictures make each batch.
        seed: of augmentation.
        workers: processes that decode what is not kept in memory, and that augment large crops;
            none are started where there is neither to do.
        cache_gib: the split is kept in memory where that takes, judged by some of its pictures, no
            more GiB than this.
        interpolation: Pillow's name of the resize filter of pictures, e.g. ``bilinear``; label maps
            take the nearest pixel.
        masks: whether the masks of objects are wanted.

    A picture that is not of the size of its masks or label map raises VpeftBenchError when it is
    read.
    """
    batches = _Batches(split, input, train, seed, cache_gib, interpolation, masks)
    if batches.in_memory:
        batches.fill_memory()  # before training is timed, and before workers start and share it
        if not batches.crops or input.crop <= _CHEAP_CROP:
            workers = 0
    return Loader(
        batches,
        sampler=sampler,
        batch_size=None,  # the sampler's items are whole batches already
        num_workers=workers,
        persistent_workers=workers > 0,
    )


class _Batches(TorchDataset[DenseBatch]):
    """Whole batches of a split by (epoch, indices), from memory where the split fits into it.

    Attributes:
        pixels: of the files that were decoded into memory, by index, the hash of their pixels.
    """

    def __init__(
        self,
        split: ObjectSplit | LabelMapSplit,
        input: InputConfig,
        train: bool,
        seed: int,
        cache_gib: float,
        interpolation: str,
        masks: bool,
    ) -> None:
        self.split = split
        self.input = input
        self.train = train
        self.seed = seed
        self.masks = masks
        self.filter = Image.Resampling[interpolation.upper()]
        self.crops = train and isinstance(split, LabelMapSplit)
        self.in_memory = self._estimated_bytes() <= cache_gib * 2**30
        self.pixels: dict[int, str] = {}
        self._memory: list[Decoded] | None = None
        self._ranks = [] if train else _ranks(split)

    def __len__(self) -> int:
        return len(self.split)

    @hands_over_errors
    def __getitem__(self, key: BatchKey) -> DenseBatch:
        epoch, indices = key
        if self.in_memory and self._memory is None:
            self.fill_memory()
        if isinstance(self.split, ObjectSplit):
            pictures = [self._with_objects(epoch, index) for index in indices.tolist()]
            return [image for image, _ in pictures], [target for _, target in pictures]
        maps = [self._with_label_map(epoch, index) for index in indices.tolist()]
        return [image for image, _ in maps], [label_map for _, label_map in maps]

    def fill_memory(self) -> None:
        """Decode every picture; Pillow does so outside the interpreter's lock."""
        with ThreadPoolExecutor() as threads:
            self._memory = list(threads.map(self._remembered, range(len(self))))

    def _estimated_bytes(self) -> float:
        """What the decoded pictures take, if those looked at are like the others."""
        if not len(self):
            return 0
        places = np.linspace(0, len(self) - 1, min(_SAMPLES, len(self))).astype(int).tolist()
        samples = [part for index in places for part in self._decode(index) if part is not None]
        return sum(part.nbytes for part in samples) * len(self) / len(places)

    def _remembered(self, index: int) -> Decoded:
        """Picture ``index`` for the memory; its hash is noted if it is a file."""
        image = self.split.image(index)
        if self.split.file(index) is not None and (content := content_hash(image)):
            self.pixels[index] = content
        return self._prepared(index, image)

    def _decode(self, index: int) -> Decoded:
        """Picture ``index`` and its label map, with all done that no draw decides."""
        return self._prepared(index, self.split.image(index))

    def _prepared(self, index: int, image: Image.Image) -> Decoded:
        if isinstance(self.split, ObjectSplit):
            return np.array(image), None
        label_map = self.split.label_map(index)
        _check_size(index, image, "label map", label_map.shape)
        if not self.train:
            shorter, longer = self.input.test_shorter_side, self.input.longer_side
            height, width = resized_size((image.height, image.width), shorter, longer)
            image = image.resize((width, height), self.filter)
        return np.array(image), label_map

    def _decoded(self, index: int) -> Decoded:
        return self._decode(index) if self._memory is None else self._memory[index]

    def _with_objects(self, epoch: int, index: int) -> tuple[Tensor, DetectionTarget]:
        """Picture ``index`` and its objects, as epoch ``epoch`` sees them."""
        assert isinstance(self.split, ObjectSplit)
        image = _channels_first(self._decoded(index)[0])
        objects = self.split.objects(index, self.masks)
        target = {
            "boxes": torch.tensor(objects.boxes),
            "labels": torch.tensor(objects.labels),
            "ignored": torch.tensor(objects.ignored),
            "areas": torch.tensor(objects.areas),
        }
        if objects.masks is not None:
            _check_size(index, image, "masks", objects.masks.shape[1:])
            target["masks"] = torch.tensor(objects.masks, dtype=torch.uint8)
        if not self.train:
            if objects.crowds is not None:
                target["crowds"] = torch.tensor(objects.crowds)
            return image, target | {"rank": torch.tensor(self._ranks[index])}
        target |= {name: target[name].float() for name in ("boxes", "areas")}
        sides = target["boxes"][:, 2:] - target["boxes"][:, :2]
        usable = ~target["ignored"] & (sides >= 1).all(dim=1)
        target = {name: values[usable] for name, values in target.items()}
        if self._rng(epoch, index).random() < self.input.flip:
            image = image.flip(-1)
            target["boxes"][:, [0, 2]] = image.shape[-1] - target["boxes"][:, [2, 0]]
            if "masks" in target:
                target["masks"] = target["masks"].flip(-1)
        return image, target

    def _with_label_map(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """Picture ``index`` and its label map, as epoch ``epoch`` sees them."""
        pixels, label_map = self._decoded(index)
        assert label_map is not None
        if not self.train:
            return _channels_first(pixels), torch.tensor(label_map)
        rng = self._rng(epoch, index)
        pixels, label_map = _random_crop(pixels, label_map, self.input, self.filter, rng)
        image, labels = _channels_first(pixels), torch.from_numpy(label_map)
        if rng.random() < self.input.flip:
            image, labels = image.flip(-1), labels.flip(-1)
        if self.input.photometric:
            image = _distorted(image, rng)
        return _padded(image, labels, self.input.crop)

    def _rng(self, epoch: int, index: int) -> Generator:
        return np.random.default_rng([self.seed, epoch, index])


def _ranks(split: ObjectSplit | LabelMapSplit) -> list[int]:
    """The place of each picture of a split by its id, and without ids by its index."""
    ids = split.image_ids() if isinstance(split, ObjectSplit) else None
    if ids is None:
        return list(range(len(split)))
    order = sorted(range(len(ids)), key=lambda index: (type(ids[index]).__name__, ids[index]))
    ranks = [0] * len(ids)
    for rank, index in enumerate(order):
        ranks[index] = rank
    return ranks


def _check_size(index: int, image: Image.Image | Tensor, what: str, size: tuple[int, ...]) -> None:
    """Raise VpeftBenchError where masks or a label map of ``size`` do not fit the picture."""
    height, width = image.shape[1:] if isinstance(image, Tensor) else (image.height, image.width)
    if size != (height, width):
        raise VpeftBenchError(
            f"picture {index} has {height} rows and {width} columns, "
            f"its {what} {size[0]} and {size[1]}"
        )


def _channels_first(pixels: Pixels) -> Tensor:
    """A copy of (H, W, 3) pixels as (3, H, W)."""
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))


def _random_crop(
    pixels: Pixels,
    label_map: Pixels,
    input: InputConfig,
    filter_: Image.Resampling,
    rng: Generator,
) -> tuple[Pixels, Pixels]:
    """A part of the resized picture, at most ``input.crop`` a side, and of its label map."""
    whole_height, whole_width = label_map.shape
    shorter = input.shorter_sides[rng.integers(len(input.shorter_sides))]
    smallest, largest = input.scale_range
    factor = rng.uniform(smallest, largest)
    size = resized_size(label_map.shape, factor * shorter, factor * input.longer_side)
    height, width = (min(side, input.crop) for side in size)
    rows, columns = _nearest(whole_height, size[0]), _nearest(whole_width, size[1])
    for _ in range(1 + _REDRAWS):
        top = int(rng.integers(size[0] - height + 1))
        left = int(rng.integers(size[1] - width + 1))
        cropped = label_map[rows[top : top + height, None], columns[left : left + width]]
        if _largest_share(cropped) <= input.max_class_share or (height, width) == size:
            break
    # Only what is in the crop is computed. Pillow's filter looks beyond the box, so that this is
    # the same as a crop of the resized picture, but for rounding.
    down, right = whole_height / size[0], whole_width / size[1]
    box = (
        left * right,
        top * down,
        min((left + width) * right, whole_width),
        min((top + height) * down, whole_height),
    )
    image = Image.fromarray(pixels).resize((width, height), filter_, box=box)
    return np.array(image), cropped


def _nearest(size: int, resized: int) -> NDArray[np.int64]:
    """For each of ``resized`` places, the one of ``size`` in which its middle lies."""
    return (2 * np.arange(resized) + 1) * size // (2 * resized)


def _largest_share(label_map: Pixels) -> float:
    """The share of the commonest class among the pixels that have one; 1 where none has."""
    counts = np.bincount(label_map.ravel(), minlength=256)[:IGNORED_LABEL]
    return float(counts.max() / counts.sum()) if counts.any() else 1.0


def _distorted(image: Tensor, rng: Generator) -> Tensor:
    """Brightness, contrast, saturation and hue changed at random, each with probability one half.

    Brightness adds up to 32 of 255, contrast multiplies, before the colours are changed or after,
    by 0.5 to 1.5, saturation is scaled by 0.5 to 1.5, and hues turn by up to 18 degrees.
    """
    brighten, contrast, contrast_last, saturate, turn = (
        bool(bit) for bit in rng.integers(2, size=5)
    )
    added = int(rng.integers(-32, 33))
    multiplied, saturation = rng.uniform(0.5, 1.5, size=2).tolist()
    hue = float(rng.uniform(-18, 18)) / 360
    if brighten:
        image = (image.to(torch.int16) + added).clamp(0, 255).to(torch.uint8)
    # torchvision calls a factor on the values brightness.
    if contrast and not contrast_last:
        image = transforms.adjust_brightness(image, multiplied)
    if saturate:
        image = transforms.adjust_saturation(image, saturation)
    if turn:
        image = transforms.adjust_hue(image, hue)
    if contrast and contrast_last:
        image = transforms.adjust_brightness(image, multiplied)
    return image


def _padded(image: Tensor, label_map: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Both filled up on the right and below: with ``PADDING`` and ``IGNORED_LABEL``."""
    height, width = label_map.shape
    if (height, width) == (side, side):
        return image.contiguous(), label_map.contiguous()
    canvas = torch.tensor(PADDING, dtype=torch.uint8)[:, None, None].repeat(1, side, side)
    labels = torch.full((side, side), IGNORED_LABEL, dtype=torch.uint8)
    canvas[:, :height, :width] = image
    labels[:height, :width] = label_map
    return canvas, labels
