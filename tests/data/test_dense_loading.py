"""Dense batches: pictures and truth stay aligned, and all that is random can be repeated."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from vpeft_bench.config.sections import IGNORED_LABEL, InputConfig
from vpeft_bench.data.dense_loading import (
    PADDING,
    DenseBatch,
    build_dense_loader,
)
from vpeft_bench.data.loading import EpochSampler
from vpeft_bench.data.splits import LabelMapSplit, Objects, ObjectSplit
from vpeft_bench.errors import VpeftBenchError
from vpeft_bench.sizes import resized_size

SIZES = [(40, 50), (33, 20), (25, 25), (64, 31), (48, 48), (30, 41), (20, 60), (52, 37), (35, 35)]
INPUT = InputConfig(
    shorter_sides=[24, 32], test_shorter_side=28, longer_side=50, crop=30, max_class_share=1.0
)
PLAIN = replace(INPUT, flip=0.0, photometric=False)


def picture(size: tuple[int, int], seed: int) -> Image.Image:
    """A smooth picture of (height, width), so that what was done to it can be undone."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class ToyObjects(ObjectSplit):
    """Rectangles of class 0 to 2, whose colour in the picture is 50 times their number."""

    sizes: list[tuple[int, int]] = field(default_factory=lambda: SIZES)
    masks: bool = True

    def __len__(self) -> int:
        return len(self.sizes)

    def image(self, index: int) -> Image.Image:
        pixels = np.zeros((*self.sizes[index], 3), dtype=np.uint8)
        for number, (left, top, right, bottom) in enumerate(self._boxes(index), start=1):
            pixels[top:bottom, left:right] = 50 * number
        return Image.fromarray(pixels)

    def objects(self, index: int, masks: bool = True) -> Objects:
        boxes = self._boxes(index)
        masks = np.zeros((len(boxes), *self.sizes[index]), dtype=np.bool_)
        for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
            mask[top:bottom, left:right] = True
        return Objects(
            boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
            labels=np.arange(len(boxes), dtype=np.int64),
            ignored=np.arange(len(boxes)) == 2,
            areas=masks.sum(axis=(1, 2)).astype(np.float64),
            masks=masks if self.masks else None,
        )

    def _boxes(self, index: int) -> list[tuple[int, int, int, int]]:
        """None in the third picture, else two, a third one that is ignored, and a thin one."""
        return (
            [] if index == 2 else [(2, 3, 9, 11), (10, 1, 14, 18), (1, 12, 7, 17), (15, 2, 15, 9)]
        )


@dataclass(frozen=True)
class ToyMaps(LabelMapSplit):
    """Label maps that say which quarter of the picture a pixel is in; also its colour tells it."""

    sizes: list[tuple[int, int]] = field(default_factory=lambda: SIZES)

    def __len__(self) -> int:
        return len(self.sizes)

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(np.repeat(60 * self.label_map(index)[..., None], 3, axis=2))

    def label_map(self, index: int) -> NDArray[np.uint8]:
        height, width = self.sizes[index]
        lower, right = np.arange(height) >= height / 2, np.arange(width) >= width / 2
        return (2 * lower[:, None] + right).astype(np.uint8)


@dataclass(frozen=True)
class GivenMaps(LabelMapSplit):
    """The given pictures and label maps."""

    images: list[Image.Image]
    maps: list[NDArray[np.uint8]]

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Image.Image:
        return self.images[index]

    def label_map(self, index: int) -> NDArray[np.uint8]:
        return self.maps[index]


def loader(
    split: ObjectSplit | LabelMapSplit,
    input: InputConfig = INPUT,
    train: bool = True,
    workers: int = 0,
    cache_gib: float = 0,
    seed: int = 0,
    interpolation: str = "bilinear",
) -> DataLoader[DenseBatch]:
    return build_dense_loader(
        split,
        input,
        train=train,
        sampler=EpochSampler(len(split), 4, seed, shuffle=train),
        seed=seed,
        workers=workers,
        cache_gib=cache_gib,
        interpolation=interpolation,
    )


def epoch(loader: DataLoader[DenseBatch], number: int = 0) -> tuple[list[Tensor], list[Any]]:
    """All images and targets of one epoch, in order."""
    loader.sampler.set_epoch(number)
    batches = list(loader)
    return [x for images, _ in batches for x in images], [x for _, all in batches for x in all]


def same(first: tuple[list[Tensor], list[Any]], second: tuple[list[Tensor], list[Any]]) -> bool:
    def parts(pictures: tuple[list[Tensor], list[Any]]) -> list[Tensor]:
        images, targets = pictures
        flat = [x for t in targets for x in (t.values() if isinstance(t, dict) else [t])]
        return [*images, *flat]

    pairs = zip(parts(first), parts(second), strict=True)
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def sample(
    split: ObjectSplit | LabelMapSplit, input: InputConfig, number: int, index: int = 0
) -> tuple[Tensor, Any]:
    """Picture ``index`` as epoch ``number`` sees it in training."""
    images, targets = loader(split, input).dataset[number, np.array([index])]
    return images[0], targets[0]


BOTH = pytest.mark.parametrize("split", [ToyObjects(), ToyMaps()], ids=["objects", "maps"])


@BOTH
def test_batches(split: ObjectSplit | LabelMapSplit) -> None:
    batches = list(loader(split))
    assert [len(images) for images, _ in batches] == [4, 4, 1]
    for images, targets in batches:
        assert len(images) == len(targets)
        assert all(image.dtype == torch.uint8 and len(image) == 3 for image in images)


@BOTH
def test_same_batches_whatever_serves_them(split: ObjectSplit | LabelMapSplit) -> None:
    expected = [epoch(loader(split), number) for number in (0, 1)]
    for workers, cache_gib in ((2, 0), (0, 1), (2, 1)):
        served = loader(split, workers=workers, cache_gib=cache_gib)
        for number in (0, 1):
            assert same(epoch(served, number), expected[number])
    evaluated = epoch(loader(split, train=False))
    assert same(epoch(loader(split, train=False, workers=2)), evaluated)
    assert same(epoch(loader(split, train=False, cache_gib=1)), evaluated)


def test_large_crops_are_the_same_from_workers() -> None:
    split, input = ToyMaps([(200, 300), (170, 90)]), replace(INPUT, shorter_sides=[256], crop=160)
    served = loader(split, input, workers=2, cache_gib=1)
    assert served.num_workers == 2
    assert same(epoch(served, 1), epoch(loader(split, input), 1))


@BOTH
def test_epochs_differ_and_can_be_repeated(split: ObjectSplit | LabelMapSplit) -> None:
    uninterrupted = loader(split, cache_gib=1)
    epochs = [epoch(uninterrupted, number) for number in range(3)]
    in_order = [uninterrupted.dataset[number, np.arange(len(split))] for number in range(3)]
    assert not same(in_order[0], in_order[1])  # augmentation differs, not only the order
    assert same(epoch(loader(split, cache_gib=1), 2), epochs[2])
    assert not same(epoch(loader(split, seed=1)), epochs[0])


@BOTH
def test_a_batch_may_be_changed_by_its_owner(split: ObjectSplit | LabelMapSplit) -> None:
    for train in (True, False):
        cached = loader(split, train=train, cache_gib=1)
        images, targets = epoch(cached)
        expected = epoch(loader(split, train=train))
        for part in (*images, *targets):
            for tensor in part.values() if isinstance(part, dict) else [part]:
                tensor.zero_()
        assert same(epoch(cached), expected)


@BOTH
def test_workers_of_any_start_method_get_the_same(split: ObjectSplit | LabelMapSplit) -> None:
    batches = loader(split, cache_gib=1).dataset
    key = (3, np.array([5, 0, 7]))
    assert same(pickle.loads(pickle.dumps(batches))[key], batches[key])


@BOTH
def test_empty_split(split: ObjectSplit | LabelMapSplit) -> None:
    for cache_gib in (0, 1):
        assert epoch(loader(replace(split, sizes=[]), train=False, cache_gib=cache_gib)) == ([], [])


def test_workers_only_where_they_help() -> None:
    large = replace(INPUT, crop=512)
    for split, input, train, cache_gib, expected in (
        (ToyObjects(), INPUT, True, 1, 0),
        (ToyObjects(), INPUT, True, 0, 2),
        (ToyMaps(), INPUT, True, 1, 0),
        (ToyMaps(), large, True, 1, 2),
        (ToyMaps(), large, False, 1, 0),
        (ToyMaps(), large, False, 0, 2),
    ):
        served = loader(split, input, train=train, workers=2, cache_gib=cache_gib)
        assert served.num_workers == expected


def test_memory_is_bounded() -> None:
    pixels = sum(height * width for height, width in SIZES)
    for split, channels in ((ToyObjects(), 3), (ToyMaps(), 4)):
        needed_gib = channels * pixels / 2**30
        assert loader(split, cache_gib=needed_gib).dataset.in_memory
        assert not loader(split, cache_gib=0.99 * needed_gib).dataset.in_memory
    many = ToyObjects([(10, 20)] * 1000)
    assert loader(many, cache_gib=600_000 / 2**30).dataset.in_memory
    assert not loader(many, cache_gib=599_000 / 2**30).dataset.in_memory


# Objects.


@pytest.mark.parametrize("masks", [True, False])
def test_objects_in_evaluation_are_those_of_the_split(masks: bool) -> None:
    split = ToyObjects(masks=masks)
    images, targets = epoch(loader(split, train=False), 5)
    for index, (image, target) in enumerate(zip(images, targets, strict=True)):
        truth = split.objects(index)
        assert np.array_equal(image.permute(1, 2, 0), np.asarray(split.image(index)))
        for name in ("boxes", "labels", "ignored", "areas"):
            values = getattr(truth, name)
            assert np.array_equal(target[name], values)
            assert target[name].numpy().dtype == values.dtype
        assert ("masks" in target) == masks
        if truth.masks is not None:
            assert target["masks"].dtype == torch.uint8
            assert np.array_equal(target["masks"], truth.masks)


def test_training_leaves_out_ignored_and_thin_objects() -> None:
    split = ToyObjects()
    for number in range(2):
        for index in (0, 2):
            _, target = sample(split, PLAIN, number, index)
            expected = [] if index == 2 else [0, 1]
            assert target["labels"].tolist() == expected
            assert not target["ignored"].any()
            assert {len(values) for values in target.values()} == {len(expected)}


def test_pictures_without_objects_have_empty_targets() -> None:
    for train in (True, False):
        [image], [target] = loader(ToyObjects(), train=train).dataset[0, np.array([2])]
        assert image.shape == (3, 25, 25)
        shapes = {name: tuple(values.shape) for name, values in target.items()}
        assert shapes == {
            "boxes": (0, 4),
            "labels": (0,),
            "ignored": (0,),
            "areas": (0,),
            "masks": (0, 25, 25),
        } | ({} if train else {"rank": ()})
        real = torch.float32 if train else torch.float64
        dtypes = [target[name].dtype for name in ("boxes", "labels", "ignored", "areas", "masks")]
        assert dtypes == [real, torch.int64, torch.bool, real, torch.uint8]


def test_evaluation_knows_the_order_of_ids() -> None:
    class Numbered(ToyObjects):
        def image_ids(self) -> list[int | str] | None:
            return [30, 4, 100, "a", *range(200, 200 + len(self) - 4)]

    split = Numbered()
    targets = [loader(split, train=False).dataset[0, np.array([n])][1][0] for n in range(4)]
    assert [int(target["rank"]) for target in targets] == [1, 0, 2, 8]
    plain = [loader(ToyObjects(), train=False).dataset[0, np.array([n])][1][0] for n in range(4)]
    assert [int(target["rank"]) for target in plain] == [0, 1, 2, 3]


def test_flips_move_picture_boxes_and_masks_together() -> None:
    split, flips = ToyObjects(), 0
    original = split.objects(0)
    for number in range(40):
        image, target = sample(split, INPUT, number)
        flipped = not np.array_equal(target["boxes"], original.boxes[:2])
        flips += flipped
        for place, (box, mask) in enumerate(zip(target["boxes"], target["masks"], strict=True)):
            rows, columns = torch.nonzero(mask, as_tuple=True)
            edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert [int(edge) for edge in edges] == box.tolist()
            # What the picture shows under the mask is this object, and one not left out.
            assert torch.equal(image[0] == 50 * (place + 1), mask.bool())
        if flipped:
            assert target["boxes"][0].tolist() == [50 - 9, 3, 50 - 2, 11]
    assert 10 <= flips <= 30
    always = sample(split, replace(INPUT, flip=1.0), 0)[0]
    assert np.array_equal(always.permute(1, 2, 0), np.asarray(split.image(0))[:, ::-1])


def test_masks_of_another_size_are_refused() -> None:
    @dataclass(frozen=True)
    class Wrong(ToyObjects):
        def image(self, index: int) -> Image.Image:
            return super().image(index).transpose(Image.Transpose.ROTATE_90)

    with pytest.raises(VpeftBenchError, match=r"picture 0 has 50 rows .* its masks 40 and 50"):
        epoch(loader(Wrong(), train=False))


# Label maps.


def test_label_map_of_another_size_is_refused() -> None:
    split = GivenMaps([picture((20, 30), 0)], [np.zeros((20, 31), dtype=np.uint8)])
    for train in (True, False):
        with pytest.raises(VpeftBenchError, match="its label map 20 and 31"):
            epoch(loader(split, train=train))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((400, 600), (800, 1200)),
        ((600, 400), (1200, 800)),
        ((480, 640), (800, 1067)),
        ((400, 800), (667, 1333)),
        ((1, 1), (800, 800)),
        ((4000, 50), (1333, 17)),
        ((50, 4000), (17, 1333)),
        ((5000, 1), (1333, 1)),
    ],
)
def test_resized_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resized_size(size, 800, 1333) == expected


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_resizes_the_picture_and_not_the_label_map(interpolation: str) -> None:
    split = GivenMaps(
        [picture(size, index) for index, size in enumerate(SIZES)],
        [ToyMaps().label_map(index) for index in range(len(SIZES))],
    )
    filter_ = v2.InterpolationMode(interpolation)
    images, maps = epoch(loader(split, train=False, interpolation=interpolation), 3)
    for index, (image, label_map) in enumerate(zip(images, maps, strict=True)):
        size = resized_size(SIZES[index], 28, 50)
        expected = np.asarray(v2.functional.resize(split.image(index), list(size), filter_))
        assert np.array_equal(image.permute(1, 2, 0), expected)
        assert label_map.dtype == torch.uint8
        assert np.array_equal(label_map, split.label_map(index))


def test_training_crops_are_crops_of_the_resized_picture() -> None:
    """With one scale and no other augmentation, a crop must be found in the resized picture."""
    split = GivenMaps(
        [picture((40, 60), 0)], [np.arange(2400, dtype=np.uint8).reshape(40, 60) % 251]
    )
    input = replace(PLAIN, shorter_sides=[52], longer_side=100, scale_range=[1.0, 1.0])
    resized = np.asarray(split.image(0).resize((78, 52), Image.Resampling.BILINEAR), dtype=int)
    tensor = torch.from_numpy(split.label_map(0))[None]
    labels = v2.functional.resize(tensor, [52, 78], v2.InterpolationMode.NEAREST_EXACT)[0]
    windows = {
        labels[top : top + 30, left : left + 30].contiguous().numpy().tobytes(): (top, left)
        for top in range(52 - 29)
        for left in range(78 - 29)
    }
    places = set()
    for number in range(30):
        image, label_map = sample(split, input, number)
        top, left = windows[label_map.contiguous().numpy().tobytes()]
        window = resized[top : top + 30, left : left + 30]
        error = np.abs(image.permute(1, 2, 0).numpy() - window)
        assert error.max() <= 2  # each of Pillow's two passes rounds
        assert error.mean() < 0.2
        places.add((top, left))
    assert len(places) > 25


def test_flips_move_picture_and_label_map_together() -> None:
    split, flips = ToyMaps(), 0
    for number in range(40):
        image, label_map = sample(split, replace(PLAIN, flip=0.5), number)
        inside = label_map != IGNORED_LABEL
        # Where quarters meet, the picture is a mixture of both.
        agree = (image[0].int() - 60 * label_map.int()).abs() < 25
        assert agree[inside].float().mean() > 0.85
        height, width = (int(inside.any(dim=d).sum()) for d in (1, 0))
        flips += bool(label_map[0, 0] > label_map[0, width - 1])
        assert inside[:height, :width].all()
    assert 10 <= flips <= 30


def test_scale_is_drawn_from_its_range() -> None:
    def sides(input: InputConfig) -> list[int]:
        """Heights after resizing, from crops that hold everything."""
        whole = replace(input, crop=400)
        maps = [sample(ToyMaps([(40, 50)]), whole, number)[1] for number in range(60)]
        return [int((label_map != IGNORED_LABEL).any(dim=1).sum()) for label_map in maps]

    fixed = replace(PLAIN, longer_side=1000, scale_range=[1.0, 1.0])
    assert Counter(sides(fixed)).keys() == {24, 32}
    assert set(sides(replace(fixed, longer_side=25))) == {20}  # the longer side decides
    doubled = replace(fixed, longer_side=25, scale_range=[2.0, 2.0])
    assert set(sides(doubled)) == {40}  # and grows with the factor

    drawn = sides(replace(PLAIN, longer_side=1000, shorter_sides=[100], scale_range=[0.5, 2.0]))
    assert 50 <= min(drawn) < 70
    assert 180 < max(drawn) <= 200
    assert 105 < np.mean(drawn) < 145


def test_small_pictures_are_padded_with_what_is_not_scored() -> None:
    split = GivenMaps([picture((10, 20), 0)], [np.full((10, 20), 7, dtype=np.uint8)])
    input = replace(
        INPUT, shorter_sides=[10], scale_range=[1.0, 1.0], max_class_share=0.75, flip=1.0
    )
    image, label_map = sample(split, input, 0)
    assert image.shape == (3, 30, 30)
    assert (label_map[:10, :20] == 7).all()
    outside = torch.ones(30, 30, dtype=torch.bool)
    outside[:10, :20] = False
    assert (label_map[outside] == IGNORED_LABEL).all()
    # Neither mirrored to the middle nor touched by the photometric distortion.
    assert torch.equal(
        image[:, outside].T.unique(dim=0), torch.tensor([PADDING], dtype=torch.uint8)
    )
    assert PADDING == (124, 116, 104)


def test_crops_that_one_class_fills_are_drawn_anew() -> None:
    """Two narrow columns of other classes: most crops miss them, unless they are drawn anew."""
    label_map = np.zeros((40, 200), dtype=np.uint8)
    label_map[:, 90:100], label_map[:, 100:110] = 1, 2
    label_map[:, :40] = IGNORED_LABEL
    split = GivenMaps([picture((40, 200), 0)], [label_map])
    input = replace(PLAIN, shorter_sides=[40], longer_side=200, scale_range=[1.0, 1.0])

    def shares(largest: float) -> list[float]:
        found = []
        for number in range(60):
            _, crop = sample(split, replace(input, max_class_share=largest), number)
            counts = np.bincount(crop[crop != IGNORED_LABEL], minlength=1)
            found.append(counts.max() / counts.sum() if counts.any() else 1.0)
        return found

    full = sum(share > 0.75 for share in shares(1.0))
    redrawn = sum(share > 0.75 for share in shares(0.75))
    assert full > 35  # three quarters of all places
    assert redrawn < 8  # and 0.75 ** 11 of all draws of eleven


def test_photometric_distortion() -> None:
    split = GivenMaps([picture((30, 30), 3)], [np.zeros((30, 30), dtype=np.uint8)])
    input = replace(PLAIN, shorter_sides=[30], scale_range=[1.0, 1.0])
    plain, label_map = sample(split, input, 0)
    assert np.array_equal(plain.permute(1, 2, 0), np.asarray(split.image(0)))
    changed = [sample(split, replace(input, photometric=True), number) for number in range(40)]
    images = [image for image, _ in changed]
    assert all(torch.equal(labels, label_map) for _, labels in changed)
    untouched = sum(torch.equal(image, plain) for image in images)
    assert untouched <= 8  # one in sixteen
    brightness = [float(image.float().mean() / plain.float().mean()) for image in images]
    assert min(brightness) < 0.8
    assert max(brightness) > 1.2
    # Black stays black by any factor; only what is added lightens it.
    black = replace(split, images=[Image.new("RGB", (30, 30))])
    lightest = [
        int(sample(black, replace(input, photometric=True), number)[0].max())
        for number in range(40)
    ]
    assert lightest.count(0) >= 20
    assert 15 < max(lightest) <= 1.5 * 32
    spread = [float(image.float().std(dim=0).mean()) for image in images]
    assert min(spread) < 0.8 * float(plain.float().std(dim=0).mean())


def test_augmentation_leaves_global_generators_alone() -> None:
    torch.manual_seed(0)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002  the global one
    for split in (ToyObjects(), ToyMaps()):
        split_loader = loader(split)
        split_loader.dataset[0, np.arange(len(split))]
    assert torch.equal(torch.get_rng_state(), state)
    assert np.random.get_state()[1].tolist() == numpy_state  # noqa: NPY002  the global one


EXTREME = [(1, 1), (4000, 50), (50, 4000), (5000, 1), (1, 7)]


@pytest.mark.parametrize("cache_gib", [0, 1])
def test_extreme_sizes(cache_gib: float) -> None:
    maps = ToyMaps(EXTREME)
    input = replace(INPUT, shorter_sides=[512], longer_side=2048, crop=96, max_class_share=0.75)
    for number in range(3):
        images, label_maps = epoch(loader(maps, input, cache_gib=cache_gib), number)
        for image, label_map in zip(images, label_maps, strict=True):
            assert image.shape == (3, 96, 96)
            assert label_map.shape == (96, 96)
            assert (label_map != IGNORED_LABEL).any()
    images, label_maps = epoch(loader(maps, input, train=False, cache_gib=cache_gib))
    for size, image, label_map in zip(EXTREME, images, label_maps, strict=True):
        assert image.shape == (3, *resized_size(size, input.test_shorter_side, 2048))
        assert label_map.shape == size

    @dataclass(frozen=True)
    class Tiny(ToyObjects):
        def _boxes(self, index: int) -> list[tuple[int, int, int, int]]:
            return [(0, 0, 1, 1)]

    images, targets = epoch(loader(Tiny(EXTREME), replace(INPUT, flip=1.0), cache_gib=cache_gib))
    for image, target in zip(images, targets, strict=True):
        right = image.shape[-1]
        assert target["boxes"].tolist() == [[right - 1, 0, right, 1]]
        assert target["masks"][0, 0, right - 1] == 1
