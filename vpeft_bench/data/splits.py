"""What a reader hands back: a data set, made of splits that give pictures and labels by index."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vpeft_bench.errors import ConfigError, VpeftBenchError, unknown_name

SPLITS = ("train", "val", "trainval", "test")


@dataclass(frozen=True, eq=False)
class Split(ABC):
    """Pictures and their classes, in the fixed order of their list.

    Attributes:
        labels: (N,) int64 classes from 0.
    """

    labels: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.labels)

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """Picture ``index`` as 8-bit RGB, at its own size."""


@dataclass(frozen=True, eq=False)
class FileSplit(Split):
    """Pictures that are files.

    Attributes:
        paths: one path per label.
    """

    paths: tuple[str, ...]

    def image(self, index: int) -> Image.Image:
        """Picture ``index`` as 8-bit RGB; raises VpeftBenchError where it cannot be decoded."""
        path = self.paths[index]
        try:
            with Image.open(path) as image:
                return image.convert("RGB")
        except OSError as error:
            # A plain message: loader workers re-raise errors from their text alone.
            raise VpeftBenchError(f"{path} cannot be read as a picture: {error}") from error


@dataclass(frozen=True, eq=False)
class ArraySplit(Split):
    """Pictures that are rendered, and not before the first of them is asked for.

    Attributes:
        pixels: called for the (N, H, W, 3) uint8 array of all pictures of the split. It is called
            for every picture, so it should remember its answer; a module-level function or a
            partial of one, so that worker processes can receive it.
    """

    pixels: Callable[[], NDArray[np.uint8]]

    def image(self, index: int) -> Image.Image:
        """Picture ``index`` as 8-bit RGB."""
        return Image.fromarray(self.pixels()[index])


@dataclass(frozen=True, eq=False)
class Dataset:
    """An opened data set: its lists have been read and checked, its pictures not yet decoded.

    Attributes:
        name: the name of its configuration.
        num_classes: number of classes.
        fingerprint: sha256 of the contents of its lists, or of the generator's identity.
        splits: ``train``, ``val``, ``trainval`` (the two joined) and ``test``.
        class_names: one name per class where the data set comes with them.
    """

    name: str
    num_classes: int
    fingerprint: str
    splits: Mapping[str, Split]
    class_names: tuple[str, ...] | None = None

    def split(self, name: str) -> Split:
        """The split ``name``; raises ConfigError for a name not in ``SPLITS``."""
        if name not in self.splits:
            raise ConfigError([unknown_name("split", name, self.splits)])
        return self.splits[name]
