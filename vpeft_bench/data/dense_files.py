"""What the readers of boxes, masks and label maps on disk share: splits of files, and their lists.

``DataConfig.lists`` says where ``train``, ``val``, ``trainval`` and ``test`` are listed. Only
``train`` and ``test`` must be: without a list of its own, ``trainval`` is ``train`` then ``val``,
and ``val`` is a share of ``train`` that depends on the names of the pictures alone.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vpeft_bench.config.sections import IGNORED_LABEL
from vpeft_bench.data.folders import filled_lines, is_left_over, read_text, shortened
from vpeft_bench.data.pictures import Size, look, read_label_map, require_size
from vpeft_bench.data.schema import DataConfig
from vpeft_bench.data.splits import (
    SPLITS,
    LabelMapSplit,
    Objects,
    ObjectSplit,
    PictureFiles,
)
from vpeft_bench.errors import Problem, VpeftBenchError, nearest

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
MOST_CLASSES = IGNORED_LABEL
"""A label map is 8-bit, and its last value is kept for pixels without a class."""

MOST_SIDE = 2**20
"""No picture has this many pixels a side: a coordinate beyond is a slip, and float32 still holds a
sixteenth of a pixel below."""

_NUMBERED_LINE = re.compile(r"(\d+)\s+(\S.*)")


class Named(Protocol):
    """A picture known by the name that its list gives it."""

    @property
    def name(self) -> str:
        """Decides, where there is no list of validation pictures, whether it is one."""


Item = TypeVar("Item", bound=Named)
Id = TypeVar("Id")


@dataclass(frozen=True, eq=False)
class ObjectFile:
    """A picture that is a file, and the boxes in it.

    Attributes:
        name: as in its list.
        path: the file.
        boxes: (N, 4) float64 left, top, right, bottom; see :class:`Objects`.
        labels: (N,) int64 classes from 0.
        ignored: (N,) bool.
        areas: (N,) float64 pixels.
        size: width and height in pixels by the annotations; None where they do not say.
    """

    name: str
    path: str
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    ignored: NDArray[np.bool_]
    areas: NDArray[np.float64]
    size: Size | None

    def mask_bounds(self) -> NDArray[np.float64]:
        """(N, 4) left, top, right, bottom of the masks; NaN where an object has none."""
        return np.full((len(self.labels), 4), np.nan)


@dataclass(frozen=True, eq=False)
class FileObjects(ObjectSplit, PictureFiles):
    """Pictures that are files, and the boxes in them.

    Attributes:
        pictures: in the order of their list.
        has_masks: whether ``objects`` gives masks.
        flags: what annotations are called that make an object ignored, of those that are set.
    """

    pictures: Sequence[ObjectFile]
    has_masks: bool = False
    flags: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.pictures)

    def file(self, index: int) -> str:
        """The path of picture ``index``."""
        return self.pictures[index].path

    def annotated_size(self, index: int) -> Size | None:
        """Width and height that its annotation says; None where it says nothing."""
        return self.pictures[index].size

    def objects(self, index: int, masks: bool = True) -> Objects:
        """The objects of picture ``index``, which have no masks."""
        picture = self.pictures[index]
        return Objects(picture.boxes, picture.labels, picture.ignored, picture.areas)


@dataclass(frozen=True, eq=False)
class MapFile:
    """A picture and its label map, both files.

    Attributes:
        name: as in its list.
        path: the picture.
        map_path: its label map.
    """

    name: str
    path: str
    map_path: str


@dataclass(frozen=True, eq=False)
class FileMaps(LabelMapSplit, PictureFiles):
    """Pictures and their label maps that are files.

    Attributes:
        pictures: in the order of their list.
        num_classes: any other value of a map than these and ``IGNORED_LABEL`` is an error.
        zero_is_ignored: in the files 0 is no class, and classes count from 1.
    """

    pictures: Sequence[MapFile]
    num_classes: int
    zero_is_ignored: bool = False

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.pictures)

    def file(self, index: int) -> str:
        """The path of picture ``index``."""
        return self.pictures[index].path

    def values(self, index: int) -> NDArray[np.uint8]:
        """(H, W) what is in the file of map ``index``.

        Raises VpeftBenchError where the map cannot be decoded, or has another size than its
        picture.
        """
        picture = self.pictures[index]
        values = read_label_map(picture.map_path)
        size = values.shape[1], values.shape[0]
        require_size(picture.path, look(picture.path).size, size, f"{picture.map_path} is")
        return values

    def label_map(self, index: int) -> NDArray[np.uint8]:
        """(H, W) classes from 0 of picture ``index``; ``IGNORED_LABEL`` where there is none.

        Raises VpeftBenchError where the map cannot be decoded, has another size than its picture,
        or holds a value that is no class.
        """
        values = self.values(index)
        first = int(self.zero_is_ignored)
        wrong = (values >= self.num_classes + first) & (values != IGNORED_LABEL)
        if wrong.any():
            last = self.num_classes - 1 + first
            raise VpeftBenchError(
                f"{self.pictures[index].map_path} holds {int(values[wrong].min())}, which is no "
                f"class: {self.num_classes} classes are {first} to {last}, and {IGNORED_LABEL} is "
                "none"
            )
        if not self.zero_is_ignored:
            return values
        # In 8 bits 0 - 1 is 255: without a class, as it should be.
        return np.where(values == IGNORED_LABEL, values, values - np.uint8(1))

    def file_values(self, label_map: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A map of classes from 0 as the data set's own files would hold it."""
        if not self.zero_is_ignored:
            return label_map
        return np.where(label_map == IGNORED_LABEL, label_map, label_map + np.uint8(1))


@dataclass
class Malformed:
    """What of a file's objects cannot be read: refused, or left out and told.

    Attributes:
        name: of the file, in notices.
        where: it lies, in problems.
        total: number of its objects.
        skipped: whether what is malformed is left out.
        problems: of what is refused.
        notices: of what is left out.
    """

    name: str
    where: Path
    total: int
    skipped: bool
    problems: list[Problem] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def leave_out(self, count: int, what: str, lines: Sequence[str]) -> None:
        """Refuse or leave out ``count`` objects; ``lines`` name them and say what is wrong."""
        if count and self.skipped:
            told = f"{count} of {self.total} objects of {self.name} are left out"
            self.notices.append(f"{told} ({what})")
        elif count:
            skip = ["to leave them out: data.skip_malformed=true"] if count < self.total else []
            fix = "\n".join([*lines, *skip])
            self.problems.append(Problem(str(self.where), f"{count} {what}:", fix))

    def tell(self, what: str, lines: Sequence[str]) -> None:
        """Objects that are kept without ``what``; ``lines`` name each and say what is wrong."""
        if lines:
            count = f"{len(lines)} of {self.total} objects"
            self.notices.append(f"{count} of {self.name} are without {what} ({lines[0]})")


def alike(where: str, what: str, names: Mapping[Id, str]) -> list[Problem]:
    """One problem that tells which of ``names``, by id, are the same, or none.

    Args:
        where: they stand.
        what: has these names: ``categories``, ``classes``.
        names: by what else identifies them.
    """
    ids: dict[str, list[Id]] = {}
    for id_, name in names.items():
        ids.setdefault(name, []).append(id_)
    repeated = {name: those for name, those in ids.items() if len(those) > 1}
    if not repeated:
        return []
    lines = [f"{name}: {', '.join(map(str, those))}" for name, those in repeated.items()]
    fix = "\n".join([*shortened(lines), "give each a name of its own, or merge them"])
    return [Problem(where, f"{len(lines)} names are those of several {what}:", fix)]


def listed_splits(config: DataConfig) -> dict[str, str]:
    """Of ``config.lists`` the splits that have a list, in the order of ``SPLITS``."""
    return {split: config.lists[split] for split in SPLITS if config.lists.get(split)}


def list_problems(config: DataConfig, further_keys: Iterable[str] = ()) -> list[Problem]:
    """What is wrong with ``lists`` and ``hold_out`` themselves, whatever lies on disk.

    Args:
        config: of the data set.
        further_keys: what ``lists`` may hold besides splits.
    """
    keys = (*SPLITS, *further_keys)
    problems = [_unknown_list(key, keys) for key in config.lists if key not in keys]
    listed = listed_splits(config)
    problems += [
        Problem(f"data.lists.{split}", "is not given", f"type data.lists.{split}=...")
        for split in ("train", "test")
        if split not in listed
    ]
    if not 0 <= config.hold_out < 1:
        problems.append(Problem(f"data.hold_out={config.hold_out}", "is not a share, 0 to below 1"))
    elif "val" not in listed and config.hold_out == 0:
        what = "there are no validation pictures"
        fix = "hold training pictures out: data.hold_out=0.1, or type data.lists.val=..."
        problems.append(Problem(f"data={config.name}", what, fix))
    return problems


def _unknown_list(key: str, keys: Sequence[str]) -> Problem:
    close = nearest(key, keys)
    fix = [f"did you mean data.lists.{close}=..."] if close else []
    fix.append(f"valid: {', '.join(keys)}")
    return Problem(f"data.lists.{key}", "no such list", "\n".join(fix))


def complete(
    config: DataConfig, listed: Mapping[str, Sequence[Item]], problems: list[Problem]
) -> dict[str, tuple[Item, ...]]:
    """All of ``SPLITS``, made of those that are listed; see the top of this module.

    Args:
        config: of the data set; ``hold_out`` counts where ``val`` is not listed.
        listed: ``train``, ``test`` and perhaps others.
        problems: gets one more where there are too few pictures.
    """
    train, test = tuple(listed["train"]), tuple(listed["test"])
    if "val" in listed:
        val = tuple(listed["val"])
        both = train + val
    else:
        count = max(1, round(config.hold_out * len(train)))
        by_hash = sorted(train, key=lambda item: (_hash(item.name), item.name))
        held_out = {id(item) for item in by_hash[:count]}
        both = train
        val = tuple(item for item in both if id(item) in held_out)
        train = tuple(item for item in both if id(item) not in held_out)
        if both and not train:
            what = f"too few training pictures to hold some out: {len(both)}"
            problems.append(Problem(f"data.hold_out={config.hold_out}", what))
    trainval = tuple(listed.get("trainval", both))
    return {"train": train, "val": val, "trainval": trainval, "test": test}


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def files_by_stem(
    folder: Path, suffixes: Sequence[str], problems: list[Problem]
) -> dict[str, os.DirEntry[str]]:
    """The files of ``folder`` that end in one of ``suffixes``, by what stands before it.

    What file managers leave is left out. A folder that does not exist is empty.

    Args:
        folder: that holds them.
        suffixes: in lower case.
        problems: gets names that occur with several suffixes: which of them is annotated?
    """
    if not folder.is_dir():
        return {}
    found: dict[str, os.DirEntry[str]] = {}
    twins = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        stem, suffix = os.path.splitext(entry.name)
        if suffix.lower() not in suffixes or is_left_over(entry.name) or not entry.is_file():
            continue  # a link may lead nowhere
        if found.setdefault(stem, entry) is not entry:
            twins.append(f"{found[stem].name} and {entry.name}")
    if twins:
        what = f"{len(twins)} names occur with several suffixes:"
        fix = [*shortened(twins), "keep those that the annotations are of"]
        problems.append(Problem(str(folder), what, "\n".join(fix)))
    return found


def class_names(
    config: DataConfig, folder: Path, problems: list[Problem]
) -> tuple[str, ...] | None:
    """The names in ``lists.classes``, else those in the folder's ``classes.txt``, else none.

    ``lists.classes`` separates them by commas; ``classes.txt`` has one per line, which may begin
    with the class's number. Where the file cannot be read there is None, and a problem.

    Args:
        config: of the data set.
        folder: where it lies.
        problems: gets names that occur twice, numbers that leave a gap, and a file that is no text.
    """
    file = folder / "classes.txt"
    if given := config.lists.get("classes"):
        names = tuple(name.strip() for name in given.split(","))
        problems += alike("data.lists.classes", "classes", dict(enumerate(names)))
        return names
    if not file.is_file():
        return ()
    try:
        stripped = [line for _, line in filled_lines(read_text(file))]
    except ValueError as error:
        problems.append(Problem(str(file), str(error)))
        return None
    numbered = [_NUMBERED_LINE.fullmatch(line) for line in stripped]
    pairs = sorted((int(match[1]), match[2]) for match in numbered if match)
    if not pairs or len(pairs) < len(stripped):
        pairs = list(enumerate(stripped))
    numbers = [number for number, _ in pairs]
    if any(after != before + 1 for before, after in pairwise(numbers)):
        what = f"the {len(numbers)} numbers of its classes, {numbers[0]} to {numbers[-1]}, leave "
        what += "gaps or repeat themselves"
        problems.append(Problem(str(file), what, "number the classes one by one, from 0 or 1"))
    problems += alike(str(file), "classes", dict(pairs))
    return tuple(name for _, name in pairs)


def number_of_classes(
    config: DataConfig, folder: Path, names: Sequence[str] | None, problems: list[Problem]
) -> int:
    """``num_classes``, else as many as there are names; a problem where neither is given.

    Names that cannot be read (None) are a problem already.
    """
    if names is None:
        return config.num_classes or 0
    count = len(names) if config.num_classes is None else config.num_classes
    if not names and config.num_classes is None:
        what = "the number of classes is not known: it has no classes.txt"
        fix = "type data.num_classes=N, or write classes.txt with one class per line"
        problems.append(Problem(str(folder), what, fix))
    elif not 1 <= count <= MOST_CLASSES:
        what = f"label maps hold 1 to {MOST_CLASSES} classes"
        problems.append(Problem(f"data.num_classes={count}", what))
    return count
