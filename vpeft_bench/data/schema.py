"""The typed configuration of a data set: what every file under ``configs/data`` must fit."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, StrEnum

from vpeft_bench.fields import setting
from vpeft_bench.metric_names import BoxMetric


class Reader(StrEnum):
    """The readers that come with the package, for use from Python; plug-ins add others by name."""

    image_list = "image_list"
    image_folder = "image_folder"
    csv = "csv"
    json_splits = "json_splits"
    digits = "digits"
    sprites = "sprites"
    scenes = "scenes"
    glyphs = "glyphs"
    coco = "coco"
    voc_boxes = "voc_boxes"
    voc_masks = "voc_masks"
    ade20k = "ade20k"


RENDERED = ("digits", "sprites", "scenes", "glyphs")
"""Readers whose pictures are no files."""


LOSSLESS = ("array", "png", "bmp", "tiff", "ppm")
"""Formats in which a picture is what it was before it was stored."""
ORIGINAL_FORMATS = (*LOSSLESS, "jpeg")


class Normalization(Enum):
    """Whose mean and standard deviation the pixels are normalised with."""

    weights = "weights"
    """The pretrained weights' own, from their timm configuration."""
    imagenet = "imagenet"
    """ImageNet's, as in most published VTAB-1k tables, whatever the weights were trained with."""
    none = "none"
    """None: numbers from 0 to 1, as some published VTAB-1k code has it."""


class Resize(Enum):
    """How a picture of any size reaches the size of the network's input."""

    squash = "squash"
    """To the input size at once; the aspect ratio is not kept."""
    shorter_side = "shorter_side"
    """The shorter side to 256/224 of the input size, then a crop of the input size."""


class Augmentation(Enum):
    """What happens to training pictures after the resize; evaluation never augments."""

    none = "none"
    crop_flip = "crop_flip"
    """Random crop (after ``resize=shorter_side``), then a flip with probability 0.5."""
    randaugment = "randaugment"
    """Horizontal flip with probability 0.5, then RandAugment ``rand-m9-mstd0.5-inc1``."""


@dataclass
class DataConfig:
    """One data set, as chosen by ``data=NAME``.

    Attributes:
        name: the config's own path below ``configs/data``, e.g. ``vtab1k/cifar``.
        reader: the layout on disk, a name in :data:`vpeft_bench.data.readers.READERS`.
        benchmark: ``vtab1k``, ``fgvc``, ``demo`` or ``custom``.
        group: ``natural``, ``specialized`` or ``structured`` for VTAB-1k, else empty.
        title: the name people know it by.
        folders: names its folder may have below ``root``; empty when ``root`` is the folder itself.
        image_folder: folder, below the data set's, that the paths of the FGVC lists start from.
        num_classes: number of classes, or None to count them in the lists.
        root: where the data set folders lie; relative to the working directory.
        final_train: split of the final training: ``trainval`` for VTAB-1k, ``train`` for FGVC.
        train_size: number of training pictures as published; for listings only.
        val_size: number of validation pictures as published; for listings only.
        test_size: number of test pictures as published; a run on another number is labelled.
        normalization: whose mean and standard deviation are used.
        resize: how pictures reach the input size.
        augmentation: what is done to training pictures.
        cache_gib: a split whose decoded pictures fit this many GiB is kept in memory.
        licence: terms as far as known; the source's own page counts.
        source: where to get it.
        variant: which of the rendered sprite sets: ``location``, ``count`` or ``orientation``; of
            the rendered scenes: ``detection``, ``instances`` or ``segmentation``; how the classes
            of the rendered glyphs are divided: ``retrieval``.
        lists: where the readers of dense data sets find each split: name of the split to the file,
            the folder or the image set, relative to the data set's folder; and further places and
            names that each reader describes.
        hold_out: share of the training pictures (of each class, where a picture has one) that
            ``protocol=select`` validates on, for data sets without a validation part beside the one
            that is reported (COCO, ADE20K); 0: the data set has one.
        test_share: share of the pictures of each class that is the test part, for data sets that
            come with none (``image_folder``, ``csv``); 0: it has one.
        split_seed: decides which pictures these shares are.
        per_class: train on this many pictures of each class alone, of a smaller class on all;
            None: on all. ``seed`` draws them, the same ones for every method, and those of a
            smaller number are among those of a larger one. What is evaluated is whole.
        box_metric: the headline of a detection data set.
        zero_is_ignored: label maps count classes from 1, and 0 is no class (ADE20K).
        allow_duplicates: run although pictures of the evaluated split are, by content, in the
            training part under other names. The record says so; numbers are the same either way.
        allow_unseen_classes: classify although test pictures are of classes that no training
            picture is of. The record says so; numbers are the same either way.
        skip_malformed: objects that cannot be read are left out, counted and told, instead of
            refused.
        background: the colour, a name or ``#rrggbb``, that transparent pixels are composited onto;
            None: they keep the colours stored under them.
        original_format: format that the pictures were published in, e.g. ``array``, ``png`` or
            ``jpeg``; empty where that is not known. Lossless ones that are JPEG here are labelled.
    """

    name: str = ""
    reader: str = "image_list"
    benchmark: str = "custom"
    group: str = ""
    title: str = setting("", identity=False)
    folders: list[str] = setting(list, identity=False)
    image_folder: str = ""
    num_classes: int | None = setting(None, minimum=1, maximum=1_000_000)
    root: str = setting("", identity=False)
    final_train: str = setting("trainval", choices=("trainval", "train"))
    train_size: int | None = setting(None, identity=False)
    val_size: int | None = setting(None, identity=False)
    test_size: int | None = setting(None, identity=False)
    normalization: Normalization = Normalization.weights
    resize: Resize = Resize.squash
    augmentation: Augmentation = Augmentation.none
    cache_gib: float = setting(2.0, identity=False, minimum=0)
    licence: str = setting("", identity=False)
    source: str = setting("", identity=False)
    variant: str = ""
    lists: dict[str, str] = field(default_factory=dict)
    hold_out: float = setting(0.0, minimum=0, maximum=0.9)
    test_share: float = setting(0.0, minimum=0, maximum=0.9)
    split_seed: int = setting(0, minimum=0)
    per_class: int | None = setting(None, minimum=1)
    box_metric: BoxMetric = BoxMetric.coco
    zero_is_ignored: bool = False
    allow_duplicates: bool = setting(False, identity=False)
    allow_unseen_classes: bool = setting(False, identity=False)
    skip_malformed: bool = False
    background: str | None = None
    original_format: str = setting("", identity=False, choices=("", *ORIGINAL_FORMATS))
