"""What a reader hands back: a data set, made of splits that give pictures and targets by index."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vpeft_bench.data.pictures import Size, read_picture, require_size
from vpeft_bench.errors import ConfigError, Problem, unknown_name

SPLITS = ("train", "val", "trainval", "test")


class Split(ABC):
    """Pictures in the fixed order of their list.

    Attributes:
        task: what belongs to each of them decides which task they are for.
    """

    task: ClassVar[str]

    @abstractmethod
    def __len__(self) -> int:
        """Number of pictures."""

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """Picture ``index`` as 8-bit RGB, at its own size."""

    def file(self, index: int) -> str | None:
        """The path of picture ``index``; None where it is rendered."""
        return None

    def entry(self, index: int) -> str:
        """Picture ``index`` as a message names it, so that it can be found in its list."""
        return self.file(index) or f"picture {index}"


@dataclass(frozen=True, eq=False)
class PictureFiles(Split):
    """Pictures that are files.

    Attributes:
        background: the colour that transparent pixels are composited onto; None keeps the colours
            stored under them.
    """

    background: str | None = field(default=None, kw_only=True)

    @abstractmethod
    def file(self, index: int) -> str:
        """The path of picture ``index``."""

    def annotated_size(self, index: int) -> Size | None:
        """Width and height that its annotation says; None where it says nothing."""
        return None

    def image(self, index: int) -> Image.Image:
        """Picture ``index`` as 8-bit RGB.

        Raises VpeftBenchError where it cannot be decoded or has another size than its annotation
        says.
        """
        image = read_picture(self.file(index), self.background)
        self.require_size(index, image.size)
        return image

    def require_size(self, index: int, size: Size) -> None:
        """Raise VpeftBenchError where picture ``index`` is annotated with another size."""
        annotated = self.annotated_size(index)
        if annotated is not None:
            require_size(self.file(index), size, annotated, "its annotation says")


@dataclass(frozen=True, eq=False)
class LabelledSplit(Split):
    """Pictures and their classes.

    Attributes:
        labels: (N,) int64 classes from 0.
    """

    task = "classification"
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.labels)

    @abstractmethod
    def taken(self, chosen: NDArray[np.int64]) -> LabelledSplit:
        """Pictures ``chosen`` alone, in that order."""

    @abstractmethod
    def state(self) -> list[list[object]]:
        """What tells, beside the data set's fingerprint, which pictures, and if any changed."""


@dataclass(frozen=True)
class Objects:
    """The objects of one picture, N of them (0 is allowed).

    Attributes:
        boxes: (N, 4) float64 left, top, right, bottom in pixels, from 0 at the picture's corner;
            the right and bottom edges are exclusive.
        labels: (N,) int64 classes from 0.
        ignored: (N,) bool: regions that are neither trained on nor counted as missed (COCO's
            crowds, Pascal VOC's difficult objects).
        areas: (N,) float64 pixels, by which COCO's metric tells small from large.
        masks: (N, H, W) bool, or None where the data set has none.
        crowds: (N,) bool: those of the ignored that COCO's metric leaves out; None: all of them.
    """

    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    ignored: NDArray[np.bool_]
    areas: NDArray[np.float64]
    masks: NDArray[np.bool_] | None = None
    crowds: NDArray[np.bool_] | None = None


class ObjectSplit(Split):
    """Pictures and the objects in them.

    Attributes:
        has_masks: whether objects have masks.
    """

    task = "detection"
    has_masks: bool = False

    @abstractmethod
    def objects(self, index: int, masks: bool = True) -> Objects:
        """The objects of picture ``index``; without their masks where they are not wanted."""

    def image_ids(self) -> list[int | str] | None:
        """The id of every picture in its annotation file; None where it has none."""
        return None


class LabelMapSplit(Split):
    """Pictures and a class for every pixel."""

    task = "segmentation"

    @abstractmethod
    def label_map(self, index: int) -> NDArray[np.uint8]:
        """(H, W) classes from 0 of picture ``index``; ``IGNORED_LABEL`` where there is none."""

    def file_values(self, label_map: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A map of classes from 0 as the data set's own files would hold it."""
        return label_map


@dataclass(frozen=True, eq=False)
class FileSplit(LabelledSplit, PictureFiles):
    """Pictures that are files, and their classes.

    Attributes:
        paths: one path per label.
    """

    paths: tuple[str, ...]

    def taken(self, chosen: NDArray[np.int64]) -> FileSplit:
        """Pictures ``chosen`` alone, in that order."""
        paths = tuple(self.paths[index] for index in chosen)
        return replace(self, labels=self.labels[chosen], paths=paths)

    def state(self) -> list[list[object]]:
        """How they are read, and path, size and time of change of every file."""
        found = [(path, Path(path).stat()) for path in self.paths]
        files = [[str(Path(p).absolute()), stat.st_size, stat.st_mtime_ns] for p, stat in found]
        return [[self.background], *files]

    def file(self, index: int) -> str:
        """The path of picture ``index``."""
        return self.paths[index]


@dataclass(frozen=True, eq=False)
class ArraySplit(LabelledSplit):
    """Pictures that are rendered, and not before the first of them is asked for.

    Attributes:
        pixels: called for the (N, H, W, 3) uint8 array of all pictures of the split. It is called
            for every picture, so it should remember its answer; a module-level function or a
            partial of one, so that worker processes can receive it.
        places: (N,) int64, where each picture is among them; None: they are all of them.
    """

    pixels: Callable[[], NDArray[np.uint8]]
    places: NDArray[np.int64] | None = None

    def image(self, index: int) -> Image.Image:
        """Picture ``index`` as 8-bit RGB."""
        return Image.fromarray(self.pixels()[index if self.places is None else self.places[index]])

    def taken(self, chosen: NDArray[np.int64]) -> ArraySplit:
        """Pictures ``chosen`` alone, in that order."""
        places = chosen if self.places is None else self.places[chosen]
        return replace(self, labels=self.labels[chosen], places=places)

    def state(self) -> list[list[object]]:
        """Which pictures they are."""
        return [] if self.places is None else [self.places.tolist()]


@dataclass(frozen=True, eq=False)
class Dataset:
    """An opened data set: its lists have been read and checked, its pictures not yet decoded.

    Attributes:
        name: the name of its configuration.
        num_classes: number of classes.
        fingerprint: sha256 of the contents of its lists, or of the generator's identity.
        splits: ``train``, ``val``, ``trainval`` (the two joined) and ``test``.
        class_names: one name per class where the data set comes with them.
        category_ids: what its files call each class, where that is not its number.
        parents: classes that are the groups of others (COCO's supercategories).
        unmasked: what keeps a data set from having masks where some of its objects have them.
        notices: what its reader left out or changed, and what else belongs beside every result on
            it, one short clause each.
        named_by_class: whether its lists call classes by their names.
        lists: the file or folder that lists each split, as messages name it; a split that is made
            of others is not in it.
    """

    name: str
    num_classes: int
    fingerprint: str
    splits: Mapping[str, Split]
    class_names: tuple[str, ...] | None = None
    category_ids: tuple[int | str, ...] | None = None
    parents: frozenset[int] = frozenset()
    unmasked: tuple[Problem, ...] = ()
    notices: tuple[str, ...] = ()
    named_by_class: bool = False
    lists: Mapping[str, str] = field(default_factory=dict)

    @property
    def task(self) -> str:
        """The task that it is for."""
        return self.split("test").task

    @property
    def has_masks(self) -> bool:
        """Whether its objects have masks."""
        splits = self.splits.values()
        return all(isinstance(split, ObjectSplit) and split.has_masks for split in splits)

    def split(self, name: str) -> Split:
        """The split ``name``; raises ConfigError for a name not in ``SPLITS``."""
        if name not in self.splits:
            raise ConfigError([unknown_name("split", name, self.splits)])
        return self.splits[name]

    def listed_in(self, split: str) -> str:
        """The file or folder that lists a split, or those that list what it is made of.

        The name of the split where nothing lists it.
        """
        made_of = {"trainval": ("train", "val")}.get(split, ())
        joined = dict.fromkeys(self.lists[part] for part in made_of if part in self.lists)
        return self.lists.get(split, " and ".join(joined) or split)

    def listed_label(self, label: int) -> str:
        """Class ``label`` as the lists call it."""
        if self.named_by_class and self.class_names is not None:
            return self.class_names[label]
        return str(label if self.category_ids is None else self.category_ids[label])
