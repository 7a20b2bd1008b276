"""Pascal VOC's layout: lists of names in ``ImageSets``, boxes as XML, masks as palette PNGs.

``lists`` gives each split an image set: ``train`` is ``ImageSets/Main/train.txt`` for boxes and
``ImageSets/Segmentation/train.txt`` for masks, ``VOC2007/train`` the same below ``VOC2007``, and
``VOC2007/train + VOC2012/train`` joins two of them.
Source: the development kits of VOC2007 and VOC2012 (host.robots.ox.ac.uk/pascal/VOC).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from vpeft_bench.data.dense_files import (
    MOST_SIDE,
    PICTURE_SUFFIXES,
    FileMaps,
    FileObjects,
    Malformed,
    MapFile,
    ObjectFile,
    class_names,
    complete,
    files_by_stem,
    list_problems,
    listed_splits,
    number_of_classes,
)
from vpeft_bench.data.folders import (
    decoded,
    filled_lines,
    find_folder,
    fingerprint,
    missing_data,
    missing_images,
    missing_lists,
    shortened,
)
from vpeft_bench.data.schema import DataConfig
from vpeft_bench.data.splits import Dataset
from vpeft_bench.errors import Problem

IMAGES = "JPEGImages"
BOXES, BOX_LISTS = "Annotations", "ImageSets/Main"
MASKS, MASK_LISTS = "SegmentationClass", "ImageSets/Segmentation"
FLAG_WORDS = {
    **dict.fromkeys(("", "0", "0.0", "false", "f", "no", "n", "unspecified"), False),
    **dict.fromkeys(("1", "1.0", "true", "t", "yes", "y"), True),
}
"""What annotation tools write for a flag; a missing one and VOC's ``Unspecified`` are not set."""


@dataclass(frozen=True)
class _ImageSet:
    """One list of names.

    Attributes:
        place: the folder, below the data set's, of the year; ``.`` where there is one only.
        file: the list, below the data set's folder.
    """

    place: Path
    file: str


@dataclass(frozen=True)
class _Entry:
    """A picture that a list names.

    Attributes:
        name: as in the list.
        path: the picture.
        annotation: its XML file or label map.
    """

    name: str
    path: str
    annotation: str


@dataclass
class _Lists:
    """What the lists of a data set say.

    Attributes:
        files: the lists of each split that has one, as messages name them.
        entries: pictures of each split that has a list.
        contents: of the list files, for the fingerprint.
    """

    files: dict[str, str]
    entries: dict[str, list[_Entry]] = field(default_factory=dict)
    contents: list[bytes] = field(default_factory=list)


@dataclass(frozen=True)
class _Box:
    """An object of an XML file; the corners count from 0, right and bottom are exclusive."""

    label: str
    difficult: bool
    corners: tuple[float, float, float, float]


@dataclass(frozen=True)
class _Annotation:
    """What an XML file says of a picture.

    Attributes:
        boxes: its objects.
        size: width and height, pixels; None where there is no plausible one.
    """

    boxes: list[_Box]
    size: tuple[int, int] | None


def read_voc_boxes(config: DataConfig) -> Dataset:
    """Read the lists and XML files of a data set in VOC's layout.

    Classes are those of ``lists.classes``, else of ``classes.txt``, else the names found in the XML
    files in alphabetical order. Difficult objects are ``ignored``.

    Raises MissingDataError with everything that is wrong with the folder, its lists, the files that
    they name and the classes.
    """
    folder = find_folder(config)
    problems = list_problems(config, ["classes"])
    lists = _read_lists(config, folder, BOX_LISTS, BOXES, ".xml", problems)
    names = class_names(config, folder, problems) or ()
    malformed = Malformed(BOXES, folder, 0, config.skip_malformed)
    contents, annotations = _read_boxes(folder, lists, names, malformed, problems)
    problems += malformed.problems
    boxes = [box for annotation in annotations.values() for box in annotation.boxes]
    names = names or tuple(sorted({box.label for box in boxes}))
    problems += _class_problems(config, folder, names, annotations)
    pictures = {} if problems else complete(config, lists.entries, problems)
    if problems:
        raise missing_data(config, problems)
    numbers = {name: number for number, name in enumerate(names)}
    flags = ("difficult",) if any(box.difficult for box in boxes) else ()
    objects = {
        entry: _objects(entry, annotations[entry.annotation], numbers)
        for entries in pictures.values()
        for entry in entries
    }
    return Dataset(
        name=config.name,
        num_classes=len(names),
        fingerprint=fingerprint([*lists.contents, *contents, "\n".join(names).encode()]),
        splits={
            name: FileObjects(tuple(objects[entry] for entry in entries), flags=flags)
            for name, entries in pictures.items()
        },
        class_names=names,
        lists=lists.files,
        notices=tuple(malformed.notices),
    )


def read_voc_masks(config: DataConfig) -> Dataset:
    """Read the lists of a data set in VOC's layout whose label maps are palette PNGs.

    The maps lie in ``SegmentationClass``, or the folder that ``lists.maps`` names.

    Raises MissingDataError with everything that is wrong with the folder, its lists and the files
    that they name, or where nothing says how many classes there are.
    """
    folder = find_folder(config)
    problems = list_problems(config, ["classes", "maps"])
    maps = config.lists.get("maps") or MASKS
    lists = _read_lists(config, folder, MASK_LISTS, maps, ".png", problems)
    names = class_names(config, folder, problems)
    num_classes = number_of_classes(config, folder, names, problems)
    pictures = {} if problems else complete(config, lists.entries, problems)
    if problems or names is None:
        raise missing_data(config, problems)
    # The size stands for the content of a map: reading all of them takes minutes on slow disks.
    sizes = (
        f"{entry.name} {os.stat(entry.annotation).st_size}".encode()
        for entries in lists.entries.values()
        for entry in entries
    )
    return Dataset(
        name=config.name,
        num_classes=num_classes,
        fingerprint=fingerprint([*lists.contents, *sizes, "\n".join(names).encode()]),
        splits={
            name: FileMaps(
                tuple(MapFile(entry.name, entry.path, entry.annotation) for entry in entries),
                num_classes,
                config.zero_is_ignored,
            )
            for name, entries in pictures.items()
        },
        class_names=names if len(names) == num_classes else None,
        lists=lists.files,
    )


def _image_sets(value: str, below: str) -> list[_ImageSet]:
    """What ``lists`` says of one split, e.g. ``VOC2007/train + VOC2012/train``."""
    sets = [Path(part.strip()) for part in value.split("+")]
    return [_ImageSet(p.parent, str(p.parent / below / f"{p.name}.txt")) for p in sets]


def _read_lists(
    config: DataConfig,
    folder: Path,
    below: str,
    annotations: str,
    suffix: str,
    problems: list[Problem],
) -> _Lists:
    """The lists of all splits; missing lists, pictures and annotations are added to ``problems``.

    Args:
        config: of the data set.
        folder: where it lies.
        below: the folder of the lists.
        annotations: the folder of the XML files or label maps.
        suffix: of these.
        problems: found so far.
    """
    sets = {name: _image_sets(value, below) for name, value in listed_splits(config).items()}
    files = dict.fromkeys(part.file for parts in sets.values() for part in parts)
    problems += missing_lists(folder, files)
    listings = _Listings(config.image_folder or IMAGES, annotations, suffix)
    lists = _Lists({name: " + ".join(s.file for s in parts) for name, parts in sets.items()})
    for name, parts in sets.items():
        lists.entries[name] = []
        for part in parts:
            file = folder / part.file
            if not file.is_file():
                continue
            content = file.read_bytes()
            lists.contents.append(content)
            try:
                names = [name for _, name in filled_lines(decoded(content))]
            except ValueError as error:
                problems.append(Problem(str(file), str(error)))
                continue
            if not names:
                problems.append(Problem(str(file), "lists no pictures"))
            lists.entries[name] += listings.entries(file, folder / part.place, names, problems)
    return lists


class _Listings:
    """Finds pictures and annotations by name; every folder is listed once."""

    def __init__(self, images: str, annotations: str, suffix: str) -> None:
        self.images, self.annotations, self.suffix = images, annotations, suffix
        self._found: dict[Path, dict[str, os.DirEntry[str]]] = {}

    def entries(
        self, file: Path, place: Path, names: Sequence[str], problems: list[Problem]
    ) -> list[_Entry]:
        """The pictures ``names`` of the list ``file``, below ``place``; those without problems."""
        pictures = self._listing(place / self.images, PICTURE_SUFFIXES, problems)
        annotations = self._listing(place / self.annotations, (self.suffix,), problems)
        absent = [name for name in names if name not in pictures]
        problems += missing_images(
            file, (str(place / self.images / f"{name}{PICTURE_SUFFIXES[0]}") for name in absent)
        )
        if any(name.lower().endswith(PICTURE_SUFFIXES) for name in absent):
            what = "names pictures with their suffixes"
            problems.append(Problem(str(file), what, "lists of this layout have the name alone"))
        bare = [name for name in names if name in pictures and name not in annotations]
        if bare:
            what = f"{len(bare)} of its pictures have no file in {place / self.annotations}:"
            lines = shortened([f"{name}{self.suffix}" for name in bare])
            problems.append(Problem(str(file), what, "\n".join(lines)))
        return [
            _Entry(name, pictures[name].path, annotations[name].path)
            for name in names
            if name in pictures and name in annotations
        ]

    def _listing(
        self, folder: Path, suffixes: Sequence[str], problems: list[Problem]
    ) -> dict[str, os.DirEntry[str]]:
        if folder not in self._found:
            self._found[folder] = files_by_stem(folder, suffixes, problems)
        return self._found[folder]


def _read_boxes(
    folder: Path,
    lists: _Lists,
    names: Sequence[str],
    malformed: Malformed,
    problems: list[Problem],
) -> tuple[list[bytes], dict[str, _Annotation]]:
    """The contents of all XML files, and what each says by its path.

    Args:
        folder: of the data set.
        lists: name the pictures.
        names: of the classes; empty where they are not known.
        malformed: gets the objects that cannot be read.
        problems: gets the files that cannot be read.
    """
    contents, annotations = [], {}
    bad: list[str] = []
    wrong: list[str] = []
    unknown: dict[str, list[str]] = {}
    entries = (entry for listed in lists.entries.values() for entry in listed)
    for path in dict.fromkeys(entry.annotation for entry in entries):
        content = Path(path).read_bytes()
        contents.append(content)
        try:
            root = ElementTree.fromstring(content)
        except (ElementTree.ParseError, ValueError, LookupError) as error:  # or the encoding
            bad.append(f"{path}: not XML: {error}")
            continue
        boxes = []
        for number, element in enumerate(root.findall("object"), start=1):
            malformed.total += 1
            try:
                box = _box(element)
            except ValueError as error:
                wrong.append(f"{path}: object {number}: {error}")
                continue
            if names and box.label not in names:
                unknown.setdefault(box.label, []).append(path)
            else:
                boxes.append(box)
        annotations[path] = _Annotation(boxes, _size(root))
    if bad:
        what = f"{len(bad)} of its annotations cannot be read:"
        problems.append(Problem(str(folder), what, "\n".join(shortened(bad))))
    malformed.leave_out(len(wrong), "malformed objects", shortened(wrong))
    others = [f"{name}: {len(paths)}, first in {paths[0]}" for name, paths in unknown.items()]
    count = sum(map(len, unknown.values()))
    lines = [*shortened(others), f"known: {', '.join(names)}"]
    malformed.leave_out(count, "objects of unknown classes", lines)
    return contents, annotations


def _box(element: ElementTree.Element) -> _Box:
    """The object of an XML element; raises ValueError, with what is wrong, for a malformed one."""
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError("it has no name")
    corners = []
    for key in ("xmin", "ymin", "xmax", "ymax"):
        text = element.findtext(f"bndbox/{key}")
        try:
            corner = float(text or "")
        except ValueError:
            corner = math.nan
        if not abs(corner) < MOST_SIDE:  # a comparison that NaN fails
            raise ValueError(f"{key} of a {name} is {text!r}")
        corners.append(corner)
    left, top, right, bottom = corners
    # Pixels count from 1 in the files, and the last one belongs to the box.
    return _Box(name, _is_set(element, "difficult"), (left - 1, top - 1, right, bottom))


def _is_set(element: ElementTree.Element, flag: str) -> bool:
    """What a flag means, however it is spelled; raises ValueError for a word that is none."""
    word = (element.findtext(flag) or "").strip()
    if word.lower() in FLAG_WORDS:
        return FLAG_WORDS[word.lower()]
    raise ValueError(f"{flag} is {word!r}, which is neither yes (1, true) nor no (0, false)")


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    """Width and height by the XML file; some tools write none, or 0."""
    texts = [root.findtext(f"size/{side}") or "" for side in ("width", "height")]
    try:
        width, height = (int(float(text)) for text in texts)
    except (ValueError, OverflowError):
        return None
    return (width, height) if min(width, height) > 0 else None


def _class_problems(
    config: DataConfig, folder: Path, names: Sequence[str], annotations: Mapping[str, _Annotation]
) -> list[Problem]:
    """No class at all, or another number of them than the data set has."""
    problems = []
    if annotations and not names:
        problems.append(Problem(str(folder), "there is no object in any of its annotations"))
    if config.num_classes is not None and names and len(names) != config.num_classes:
        what = f"holds {len(names)} classes where {config.title} has {config.num_classes}"
        fix = "for a data set of your own in this layout: data=voc_xml data.root=DIR"
        problems.append(Problem(str(folder), what, fix))
    return problems


def _objects(entry: _Entry, annotation: _Annotation, numbers: dict[str, int]) -> ObjectFile:
    boxes = annotation.boxes
    corners = np.array([box.corners for box in boxes], dtype=np.float64).reshape(-1, 4)
    return ObjectFile(
        name=entry.name,
        path=entry.path,
        boxes=corners,
        labels=np.array([numbers[box.label] for box in boxes], dtype=np.int64),
        ignored=np.array([box.difficult for box in boxes], dtype=np.bool_),
        areas=(corners[:, 2:] - corners[:, :2]).clip(min=0).prod(axis=1),
        size=annotation.size,
    )
