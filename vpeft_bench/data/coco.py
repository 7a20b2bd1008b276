"""COCO's layout: one JSON file per split with ``images``, ``annotations`` and ``categories``.

``lists`` gives each split its JSON file, and ``SPLIT_images`` the folder that its file names start
from. Category ids may start anywhere and leave gaps: classes are numbered from 0 in their order.

Pictures without annotations are kept, in training too: a detector learns from them that everything
there is background. (Some published recipes leave them out of training.) Boxes without area are
dropped; smaller ones than a pixel are not, so that scores are those of COCO's own code.
Source: the format description at cocodataset.org.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vpeft_bench.data.dense_files import (
    FileObjects,
    ObjectFile,
    complete,
    list_problems,
    listed_splits,
)
from vpeft_bench.data.folders import (
    find_folder,
    fingerprint,
    missing_data,
    missing_images,
    missing_lists,
    shortened,
)
from vpeft_bench.data.schema import DataConfig
from vpeft_bench.data.splits import SPLITS, Dataset, Objects
from vpeft_bench.errors import Problem, VpeftBenchError

TABLES = ("images", "annotations", "categories")
IGNORED_FIELDS = ("iscrowd", "ignore", "difficult")
"""An annotation in which one of these is set is not trained on; nor is it counted as missed, but
that COCO's metric, like COCO's own code, leaves out those with ``iscrowd`` alone."""

Id = int | str
Record = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class RunLengths:
    """A mask as run lengths, down the columns, beginning with the background.

    Attributes:
        counts: (R,) uint32 the lengths, pixels.
    """

    counts: NDArray[np.uint32]


Outline = tuple[NDArray[np.float64], ...] | RunLengths
"""What is kept of a mask until it is asked for: polygons (x0, y0, x1, ...), or run lengths."""


@dataclass(frozen=True)
class _Annotated:
    """What is read of an annotation; ``corners`` are left, top, right, bottom."""

    corners: tuple[float, float, float, float]
    label: int
    ignored: bool
    crowd: bool
    area: float
    outline: Outline | None


@dataclass(frozen=True, eq=False)
class CocoPicture(ObjectFile):
    """A picture, its boxes and their masks.

    Attributes:
        id: in its JSON file.
        size: width and height, pixels.
        outlines: of every object; None where it has no mask.
        crowds: (N,) bool: COCO's own code leaves these out and no others that are ignored.
    """

    id: Id
    size: tuple[int, int]
    outlines: tuple[Outline | None, ...]
    crowds: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class CocoSplit(FileObjects):
    """Pictures, their boxes and, where the data set has them, masks.

    Attributes:
        pictures: in the order of the JSON file.
    """

    pictures: Sequence[CocoPicture]

    def image(self, index: int) -> Image.Image:
        """Picture ``index`` as 8-bit RGB.

        Raises VpeftBenchError where it cannot be decoded or has another size than its record says.
        """
        picture, image = self.pictures[index], super().image(index)
        if image.size != picture.size:
            sizes = "{}x{}, but its record says {}x{}".format(*image.size, *picture.size)
            raise VpeftBenchError(f"{picture.path} is {sizes}")
        return image

    def entry(self, index: int) -> str:
        """Picture ``index`` as a message names it: its file and the id of its record."""
        return f"{self.pictures[index].path} (image {self.pictures[index].id})"

    def objects(self, index: int, masks: bool = True) -> Objects:
        """The objects of picture ``index``; masks are drawn now, where there are any.

        An ignored region without a mask of its own fills its box.
        """
        picture = self.pictures[index]
        drawn = _draw(picture) if masks and self.has_masks else None
        return Objects(
            picture.boxes, picture.labels, picture.ignored, picture.areas, drawn, picture.crowds
        )

    def image_ids(self) -> list[Id]:
        """The id of every picture in its JSON file."""
        return [picture.id for picture in self.pictures]


def read_coco(config: DataConfig) -> Dataset:
    """Read the JSON files of a data set in COCO's layout.

    The data set has masks if every annotation that is not ignored has a ``segmentation``.

    Raises MissingDataError with everything that is wrong with the folder, its JSON files and the
    pictures they name.
    """
    folder = find_folder(config)
    problems = list_problems(config, [f"{split}_images" for split in SPLITS])
    files = listed_splits(config)
    problems += missing_lists(folder, dict.fromkeys(files.values()))
    listed: dict[str, tuple[CocoPicture, ...]] = {}
    contents = []
    categories: dict[Id, str] = {}
    for split, name in files.items():
        file = folder / name
        if not file.is_file():
            continue
        content = file.read_bytes()
        contents.append(content)
        tables = _tables(file, content, problems)
        if tables is None:
            continue
        categories = categories or _categories(config, file, tables["categories"], problems)
        problems += _other_categories(file, tables["categories"], categories)
        images = folder / config.image_folder / config.lists.get(f"{split}_images", "")
        listed[split] = _pictures(file, tables, images, list(categories), problems)
        problems += missing_images(file, (picture.path for picture in listed[split]))
    pictures = {} if problems else complete(config, listed, problems)
    if problems:
        raise missing_data(config, problems)
    has_masks = _have_masks([picture for split in listed.values() for picture in split])
    return Dataset(
        name=config.name,
        num_classes=len(categories),
        fingerprint=fingerprint(contents),
        splits={name: CocoSplit(split, has_masks) for name, split in pictures.items()},
        class_names=tuple(categories.values()),
        category_ids=tuple(categories),
        lists=files,
    )


def _tables(file: Path, content: bytes, problems: list[Problem]) -> dict[str, list[Record]] | None:
    """The three tables of ``file``; None, and a problem, where it is something else."""
    try:
        parsed = json.loads(content)
    except ValueError as error:  # not UTF-8, or not JSON: the message names the line
        problems.append(Problem(str(file), f"is not JSON: {error}"))
        return None
    found = parsed if isinstance(parsed, dict) else {}
    absent = [
        name
        for name in TABLES
        if not isinstance(found.get(name), list)
        or not all(isinstance(record, dict) for record in found[name])
    ]
    if absent:
        problems.append(Problem(str(file), f"has no list of records {', '.join(absent)}"))
        return None
    if not found["images"]:
        problems.append(Problem(str(file), "lists no pictures"))
        return None
    return {name: found[name] for name in TABLES}


def _categories(
    config: DataConfig, file: Path, records: Sequence[Record], problems: list[Problem]
) -> dict[Id, str]:
    """Names by id, in the order that numbers the classes."""
    ids = [record.get("id") for record in records]
    bad = [str(id_) for id_ in ids if type(id_) not in (int, str) or ids.count(id_) > 1]
    if bad or not ids:
        what = f"{len(bad)} category ids are missing or not unique:" if ids else "has no categories"
        problems.append(Problem(str(file), what, ", ".join(shortened(bad))))
        return {}
    if config.num_classes is not None and len(ids) != config.num_classes:
        what = f"holds {len(ids)} classes where {config.title} has {config.num_classes}"
        fix = "for a data set of your own in this layout: data=coco_json data.root=DIR"
        problems.append(Problem(str(file), what, fix))
    # Numbers and texts in one data set sort by their type first, so that ids always have an order.
    ordered = sorted(records, key=lambda record: (type(record["id"]).__name__, record["id"]))
    return {record["id"]: str(record.get("name", record["id"])) for record in ordered}


def _other_categories(
    file: Path, records: Sequence[Record], categories: Mapping[Id, str]
) -> list[Problem]:
    """Categories of ``file`` that are called otherwise in the first file, or are not in it."""
    if not categories:
        return []
    named = {
        _identity(record.get("id")): str(record.get("name", record.get("id"))) for record in records
    }
    other = [f"{id_}: {name}" for id_, name in named.items() if categories.get(id_) != name]
    if not other:
        return []
    what = f"{len(other)} categories are not those of the training pictures:"
    return [Problem(str(file), what, "\n".join(shortened(other)))]


def _pictures(
    file: Path,
    tables: Mapping[str, Sequence[Record]],
    images: Path,
    category_ids: Sequence[Id],
    problems: list[Problem],
) -> tuple[CocoPicture, ...]:
    """The well-formed pictures of ``file``; what is wrong with it is added to ``problems``."""
    records: dict[Id, Record] = {}
    bad = []
    for record in tables["images"]:
        reason = _wrong_image(record)
        if not reason and record["id"] in records:
            reason = "another one has this id"
        if reason:
            bad.append(f"image {record.get('id')}: {reason}")
        else:
            records[record["id"]] = record
    problems += _counted(file, "malformed images", bad)

    labels = {id_: number for number, id_ in enumerate(category_ids)}
    by_image: dict[Id, list[Record]] = defaultdict(list)
    for record in tables["annotations"]:
        by_image[_identity(record.get("image_id"))].append(record)
    strangers = [
        f"annotation {record.get('id')}: image_id {record.get('image_id')!r}"
        for id_, annotations in by_image.items()
        if id_ not in records
        for record in annotations
    ]
    # A picture with a malformed record is a problem already; its annotations are not another one.
    if not bad:
        problems += _counted(file, "annotations of images that are not in it", strangers)

    wrong: list[str] = []
    pictures = []
    for id_, record in records.items():
        sound = []
        for annotation in by_image.get(id_, ()):
            try:
                sound.append(_annotated(annotation, labels, record))
            except ValueError as error:
                wrong.append(f"annotation {annotation.get('id')}: {error}")
        pictures.append(_picture(record, sound, images))
    problems += _counted(file, "malformed annotations", wrong)
    return tuple(pictures)


def _counted(file: Path, what: str, lines: Sequence[str]) -> list[Problem]:
    """One problem that counts ``lines`` and shows the first of them, or none."""
    if not lines:
        return []
    return [Problem(str(file), f"{len(lines)} {what}:", "\n".join(shortened(lines)))]


def _identity(id_: Any) -> Id:
    """The id; a text that is none of the ids where it is not one."""
    return id_ if type(id_) in (int, str) else f"malformed {id_!r}"


def _wrong_image(record: Record) -> str:
    if type(record.get("id")) not in (int, str):
        return "its id is neither an integer nor a text"
    if not isinstance(record.get("file_name"), str) or not record["file_name"]:
        return "it has no file_name"
    sides = (record.get("width"), record.get("height"))
    if not all(type(side) is int and side > 0 for side in sides):
        return "width {!r}, height {!r}".format(*sides)
    return ""


def _annotated(record: Record, labels: Mapping[Id, int], image: Record) -> _Annotated:
    """An annotation of ``image``; raises ValueError, with what is wrong, for a malformed one."""
    category = _identity(record.get("category_id"))
    if category not in labels:
        raise ValueError(f"category_id {record.get('category_id')!r} is not in categories")
    box = record.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise ValueError(f"bbox {box!r} is not [left, top, width, height]")
    area = record.get("area", box[2] * box[3])
    if not _is_number(area):
        raise ValueError(f"area {area!r} is not a number")
    left, top, width, height = box
    return _Annotated(
        corners=(left, top, left + width, top + height),
        label=labels[category],
        ignored=any(map(record.get, IGNORED_FIELDS)),
        crowd=bool(record.get("iscrowd")),
        area=area,
        outline=_outline(record.get("segmentation"), image),
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _outline(segmentation: Any, image: Record) -> Outline | None:
    """A compact form of a ``segmentation``: COCO's 40 million corners fit in memory.

    Raises ValueError, with what is wrong, for a malformed one.
    """
    if not segmentation:
        return None
    if isinstance(segmentation, dict):
        return _run_lengths(segmentation, image)
    try:
        polygons = tuple(np.array(polygon, dtype=np.float64) for polygon in segmentation)
    except (TypeError, ValueError):
        polygons = ()
    if not polygons or not all(map(_is_polygon, polygons)):
        message = "its segmentation is neither run lengths nor polygons of three corners or more"
        raise ValueError(message)
    return polygons


def _is_polygon(values: NDArray[np.float64]) -> bool:
    flat = values.ndim == 1 and len(values) >= 6 and len(values) % 2 == 0
    return flat and bool(np.isfinite(values).all())


def _run_lengths(segmentation: Record, image: Record) -> RunLengths:
    counts, height, width = segmentation.get("counts"), image["height"], image["width"]
    if segmentation.get("size") != [height, width]:
        size = segmentation.get("size")
        raise ValueError(f"size {size!r} of its run lengths is not {[height, width]}")
    if isinstance(counts, str):
        lengths = _decompressed(counts)
    elif isinstance(counts, list) and all(type(count) is int for count in counts):
        lengths = counts
    else:
        raise ValueError("its run lengths are neither integers nor a text")
    # The decoder trusts the lengths: wrong ones would write beyond the end of its memory.
    if any(length < 0 for length in lengths) or sum(lengths) != height * width:
        raise ValueError(f"its run lengths do not make up {height}x{width} pixels")
    return RunLengths(np.array(lengths, dtype=np.uint32))


def _decompressed(text: str) -> list[int]:
    """The lengths in COCO's compressed text; a negative one where it breaks off.

    Each character carries five bits, from code 48 on, the lowest first, and a sixth that says
    whether the number goes on; from the fourth length on the difference to the last but one is
    stored. Source: the format of ``maskApi.c`` in cocodataset/cocoapi.
    """
    lengths: list[int] = []
    value, shift, open_ = 0, 0, False
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return [-1]
        value |= (bits & 31) << shift
        shift += 5
        open_ = bool(bits & 32)
        if not open_:
            if bits & 16:
                value -= 1 << shift
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value, shift = 0, 0
    return [-1] if open_ else lengths


def _picture(image: Record, annotations: Sequence[_Annotated], images: Path) -> CocoPicture:
    """One picture and its objects: those whose boxes have no area are left out."""
    boxes = np.array([item.corners for item in annotations], dtype=np.float64).reshape(-1, 4)
    (has_area,) = np.nonzero((boxes[:, 2:] > boxes[:, :2]).all(axis=1))
    kept = [annotations[index] for index in has_area.tolist()]
    return CocoPicture(
        name=image["file_name"],
        path=str(images / image["file_name"]),
        boxes=boxes[has_area],
        labels=np.array([item.label for item in kept], dtype=np.int64),
        ignored=np.array([item.ignored for item in kept], dtype=np.bool_),
        areas=np.array([item.area for item in kept], dtype=np.float64),
        id=image["id"],
        size=(image["width"], image["height"]),
        outlines=tuple(item.outline for item in kept),
        crowds=np.array([item.crowd for item in kept], dtype=np.bool_),
    )


def _have_masks(pictures: Sequence[CocoPicture]) -> bool:
    """Whether there are objects, and each has a mask or is an ignored region."""
    masked = [
        outline is not None
        for picture in pictures
        for outline, ignored in zip(picture.outlines, picture.ignored.tolist(), strict=True)
        if not ignored
    ]
    return bool(masked) and all(masked)


def _draw(picture: CocoPicture) -> NDArray[np.bool_]:
    """(N, H, W) the masks of a picture's objects."""
    # Imported here because it takes longer than reading a small data set.
    from faster_coco_eval.core import mask as coco_mask

    width, height = picture.size
    masks = np.zeros((len(picture.outlines), height, width), dtype=np.bool_)
    for drawn, outline, box in zip(masks, picture.outlines, picture.boxes, strict=True):
        if isinstance(outline, RunLengths):
            lengths = {"size": [height, width], "counts": outline.counts.tolist()}
            encoded = coco_mask.frPyObjects(lengths, height, width)
        else:
            polygons = outline or (box[[0, 1, 2, 1, 2, 3, 0, 3]],)
            lists = [polygon.tolist() for polygon in polygons]
            encoded = coco_mask.merge(coco_mask.frPyObjects(lists, height, width))
        drawn[...] = coco_mask.decode(encoded)
    return masks
