"""The demo data sets, which need no download: scikit-learn's digits, and what is rendered.

Their pictures are kept in a cache folder (``$VPEFT_BENCH_CACHE``, else ``vpeft_bench`` below
``$XDG_CACHE_HOME`` or ``~/.cache``), under a name that holds the generator's version.
"""

from __future__ import annotations

import functools
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vpeft_bench.data import glyphs, scenes, sprites
from vpeft_bench.data.folders import fingerprint
from vpeft_bench.data.schema import DataConfig
from vpeft_bench.data.splits import (
    ArraySplit,
    Dataset,
    LabelMapSplit,
    Objects,
    ObjectSplit,
    Split,
)
from vpeft_bench.errors import MissingDataError, Problem, unknown_name
from vpeft_bench.files import cache_folder

DIGITS_VERSION = 1
DIGITS_SIZE = 32

# Where each split lies in the fixed order of a demo data set; test is all that follows.
_RANGES = {
    "train": slice(0, 800),
    "val": slice(800, 1000),
    "trainval": slice(0, 1000),
    "test": slice(1000, None),
}

_SCENE_RANGES = {
    "train": range(0, 400),
    "val": range(400, 500),
    "trainval": range(0, 500),
    "test": range(500, scenes.IMAGES),
}

_GLYPH_CLASSES = {
    "retrieval": {
        "train": range(0, 40),
        "val": range(40, 50),
        "trainval": range(0, 50),
        "test": range(50, 100),
    }
}

Arrays = dict[str, NDArray[np.generic]]


def read_digits(config: DataConfig) -> Dataset:
    """scikit-learn's 1,797 handwritten digits, enlarged from 8x8 to 32x32 RGB.

    Raises MissingDataError where scikit-learn is not installed. Source: the test part of the
    "Optical Recognition of Handwritten Digits" set of the UCI repository.
    """
    try:
        labels = _digits()["labels"].astype(np.int64)
    except ImportError as error:
        problem = Problem(f"data={config.name}", str(error), "pip install scikit-learn")
        raise MissingDataError([problem]) from error
    return Dataset(
        name=config.name,
        num_classes=10,
        fingerprint=fingerprint([f"digits {DIGITS_VERSION}".encode()]),
        splits={
            name: ArraySplit(labels[range_], functools.partial(_digit_pixels, name))
            for name, range_ in _RANGES.items()
        },
        class_names=tuple("0123456789"),
    )


def read_sprites(config: DataConfig) -> Dataset:
    """The rendered sprites of ``config.variant``, see ``vpeft_bench.data.sprites``.

    Raises MissingDataError for a variant that does not exist.
    """
    variant = config.variant
    if variant not in sprites.NUM_CLASSES:
        raise MissingDataError([unknown_name("data.variant", variant, sprites.NUM_CLASSES)])
    labels = sprites.draw_labels(variant)
    return Dataset(
        name=config.name,
        num_classes=sprites.NUM_CLASSES[variant],
        fingerprint=fingerprint([f"sprites {variant} {sprites.VERSION}".encode()]),
        splits={
            name: ArraySplit(labels[range_], functools.partial(_sprite_pixels, variant, name))
            for name, range_ in _RANGES.items()
        },
    )


def read_scenes(config: DataConfig) -> Dataset:
    """The rendered scenes, see ``vpeft_bench.data.scenes``, with the truth ``config.variant``.

    ``detection`` has boxes, ``instances`` has masks as well, ``segmentation`` has label maps, in
    which the background is a class of its own. The pictures are the same for all of them.

    Raises MissingDataError for a variant that does not exist.
    """
    variant = config.variant
    if variant not in _SCENE_SPLITS:
        raise MissingDataError([unknown_name("data.variant", variant, _SCENE_SPLITS)])
    names: tuple[str, ...] = scenes.CLASS_NAMES
    if variant == "segmentation":
        names = ("background", *names)
    return Dataset(
        name=config.name,
        num_classes=len(names),
        fingerprint=fingerprint([f"scenes {variant} {scenes.VERSION}".encode()]),
        splits={name: _SCENE_SPLITS[variant](range_) for name, range_ in _SCENE_RANGES.items()},
        class_names=names,
    )


def read_glyphs(config: DataConfig) -> Dataset:
    """The rendered glyphs, see ``vpeft_bench.data.glyphs``, each split with classes of its own.

    Raises MissingDataError for a variant, a way to divide the classes, that does not exist.
    """
    variant = config.variant
    if variant not in _GLYPH_CLASSES:
        raise MissingDataError([unknown_name("data.variant", variant, _GLYPH_CLASSES)])
    labels = glyphs.labels()
    return Dataset(
        name=config.name,
        num_classes=glyphs.CLASSES,
        fingerprint=fingerprint([f"glyphs {variant} {glyphs.VERSION}".encode()]),
        splits={
            name: ArraySplit(
                labels[_glyphs_of(classes)], functools.partial(_glyph_pixels, variant, name)
            )
            for name, classes in _GLYPH_CLASSES[variant].items()
        },
    )


@dataclass(frozen=True)
class _SceneSplit(Split):
    """The scenes ``places``, which are not rendered before the first of them is asked for."""

    places: range

    def __len__(self) -> int:
        return len(self.places)

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(_scenes("pixels")[self.places[index]])

    def _truth(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The map of shapes and the classes of scene ``index``."""
        place = self.places[index]
        return _scenes("instances")[place], _scenes("classes")[place]


@dataclass(frozen=True)
class _SceneBoxes(_SceneSplit, ObjectSplit):
    def objects(self, index: int, masks: bool = True) -> Objects:
        return scenes.objects(*self._truth(index), with_masks=False)


@dataclass(frozen=True)
class _SceneMasks(_SceneSplit, ObjectSplit):
    has_masks: bool = True

    def objects(self, index: int, masks: bool = True) -> Objects:
        return scenes.objects(*self._truth(index), with_masks=masks)


@dataclass(frozen=True)
class _SceneLabelMaps(_SceneSplit, LabelMapSplit):
    def label_map(self, index: int) -> NDArray[np.uint8]:
        return scenes.label_map(*self._truth(index))


_SCENE_SPLITS: dict[str, Callable[[range], Split]] = {
    "detection": _SceneBoxes,
    "instances": _SceneMasks,
    "segmentation": _SceneLabelMaps,
}


def cached(name: str, build: Callable[[], Arrays]) -> Arrays:
    """The arrays stored under ``name`` in the cache folder, built and stored where there are none.

    A cache that cannot be read or written costs time and nothing else.
    """
    file = cache_folder() / f"{name}.npz"
    try:
        with np.load(file) as stored:
            return dict(stored)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        arrays = build()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            unfinished = Path(folder) / file.name
            np.savez_compressed(unfinished, allow_pickle=False, **arrays)
            unfinished.replace(file)
    except OSError:
        pass
    return arrays


@functools.cache
def _digits() -> Arrays:
    return cached(f"digits-v{DIGITS_VERSION}", _build_digits)


def _digit_pixels(split: str) -> NDArray[np.uint8]:
    return _digits()["pixels"][_RANGES[split]].astype(np.uint8, copy=False)


def _build_digits() -> Arrays:
    # Imported here because it takes seconds; a cached run does without it.
    from sklearn.datasets import load_digits

    digits = load_digits()
    # The original order runs from writer to writer; mixed, every split has all of them.
    order = sprites.permutation(len(digits.target), seed=0)
    grey = np.round(digits.images[order] * (255 / 16)).astype(np.uint8)
    size = (DIGITS_SIZE, DIGITS_SIZE)
    enlarged = [
        Image.fromarray(image).resize(size, Image.Resampling.BICUBIC).convert("RGB")
        for image in grey
    ]
    return {
        "pixels": np.stack([np.asarray(image) for image in enlarged]),
        "labels": digits.target[order].astype(np.int64),
    }


@functools.cache
def _sprites(variant: str) -> Arrays:
    name = f"sprites-{variant}-v{sprites.VERSION}"
    return cached(name, lambda: {"pixels": sprites.render(variant)})


def _sprite_pixels(variant: str, split: str) -> NDArray[np.uint8]:
    return _sprites(variant)["pixels"][_RANGES[split]].astype(np.uint8, copy=False)


@functools.cache
def _all_scenes() -> Arrays:
    return cached(f"scenes-v{scenes.VERSION}", _build_scenes)


def _scenes(name: str) -> NDArray[np.uint8]:
    return _all_scenes()[name].astype(np.uint8, copy=False)


def _build_scenes() -> Arrays:
    pixels, instances, classes = scenes.render()
    return {"pixels": pixels, "instances": instances, "classes": classes}


@functools.cache
def _glyphs() -> Arrays:
    return cached(f"glyphs-v{glyphs.VERSION}", lambda: {"pixels": glyphs.render()})


def _glyph_pixels(variant: str, split: str) -> NDArray[np.uint8]:
    chosen = _glyphs_of(_GLYPH_CLASSES[variant][split])
    return _glyphs()["pixels"][chosen].astype(np.uint8, copy=False)


def _glyphs_of(classes: range) -> slice:
    """Where the pictures of neighbouring classes lie."""
    each = glyphs.PICTURES_PER_CLASS
    return slice(each * classes.start, each * classes.stop)
