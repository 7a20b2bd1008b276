"""COCO's layout: one JSON file per split with ``images``, ``annotations`` and ``categories``.

``lists`` gives each split its JSON file, and ``SPLIT_images`` the folder that its file names start
from. Category ids may start anywhere and leave gaps: classes are numbered from 0 in their order.

Pictures without annotations are kept, in training too: a detector learns from them that everything
there is background. (Some published recipes leave them out of training.) Boxes without area are
kept as well, so that scores are those of COCO's own code; training leaves them out.
Source: the format description at cocodataset.org.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vpeft_bench.data.coco_masks import Outline, bounds, draw, outline_of
from vpeft_bench.data.dense_files import (
    MOST_SIDE,
    FileObjects,
    Malformed,
    ObjectFile,
    alike,
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
from vpeft_bench.data.pictures import Size
from vpeft_bench.data.schema import DataConfig
from vpeft_bench.data.splits import SPLITS, Dataset, Objects
from vpeft_bench.errors import Problem

TABLES = ("images", "annotations", "categories")
IGNORED_FIELDS = ("iscrowd", "ignore", "difficult")
"""An annotation in which one of these is set is not trained on; nor is it counted as missed, but
that COCO's metric, like COCO's own code, leaves out those with ``iscrowd`` alone."""

MOST_PIXELS = 2**32
"""Of a picture: run lengths are 32-bit."""
SKIP_UNMASKED = "to ignore these objects where masks are predicted: data.skip_malformed=true"

Id = int | str
Record = Mapping[str, Any]


@dataclass(slots=True)
class _Annotated:
    """What is read of an annotation; ``corners`` are left, top, right, bottom."""

    corners: tuple[float, float, float, float]
    label: int
    flags: tuple[str, ...]
    area: float
    outline: Outline | None


@dataclass
class _Read:
    """What is read of a JSON file.

    Attributes:
        pictures: in its order.
        flags: of ``IGNORED_FIELDS`` those that are set somewhere.
        has_outlines: whether any object that is not ignored has a mask.
        missing: the objects that are not ignored and have no segmentation.
        malformed: the objects that have one that cannot be drawn.
    """

    pictures: list[CocoPicture] = field(default_factory=list)
    flags: set[str] = field(default_factory=set)
    has_outlines: bool = False
    missing: list[str] = field(default_factory=list)
    malformed: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class CocoPicture(ObjectFile):
    """A picture, its boxes and their masks.

    Attributes:
        id: in its JSON file.
        outlines: of every object; None where it has no mask.
        crowds: (N,) bool: COCO's own code leaves these out and no others that are ignored.
    """

    id: Id
    size: Size
    outlines: tuple[Outline | None, ...]
    crowds: NDArray[np.bool_]

    def mask_bounds(self) -> NDArray[np.float64]:
        """(N, 4) left, top, right, bottom of the masks; NaN where an object has none."""
        found = [bounds(outline, self.size) for outline in self.outlines]
        return np.array(found, dtype=np.float64).reshape(-1, 4)


@dataclass(frozen=True, eq=False)
class CocoSplit(FileObjects):
    """Pictures, their boxes and, where the data set has them, masks.

    Attributes:
        pictures: in the order of the JSON file.
    """

    pictures: Sequence[CocoPicture]

    def entry(self, index: int) -> str:
        """Picture ``index`` as a message names it: its file and the id of its record."""
        return f"{self.pictures[index].path} (image {self.pictures[index].id})"

    def objects(self, index: int, masks: bool = True) -> Objects:
        """The objects of picture ``index``; masks are drawn now, where there are any.

        With masks, an object that has none of its own is ignored: what it should be is not known.
        Its mask fills its box, as that of an ignored region does.
        """
        picture = self.pictures[index]
        if not (masks and self.has_masks):
            return replace(super().objects(index), crowds=picture.crowds)
        unknown = np.array([outline is None for outline in picture.outlines], dtype=np.bool_)
        return Objects(
            picture.boxes,
            picture.labels,
            picture.ignored | unknown,
            picture.areas,
            draw(picture.outlines, picture.boxes, picture.size),
            picture.crowds | unknown,
        )

    def image_ids(self) -> list[Id]:
        """The id of every picture in its JSON file."""
        return [picture.id for picture in self.pictures]


def read_coco(config: DataConfig) -> Dataset:
    """Read the JSON files of a data set in COCO's layout.

    The data set has masks if every annotation that is not ignored has a ``segmentation``; a
    malformed one counts, and its object is ignored where masks are asked for. With
    ``skip_malformed`` the same holds for those that have none.

    Raises MissingDataError with everything that is wrong with the folder, its JSON files and the
    pictures they name.
    """
    folder = find_folder(config)
    problems = list_problems(config, [f"{split}_images" for split in SPLITS])
    files = listed_splits(config)
    problems += missing_lists(folder, dict.fromkeys(files.values()))
    read: dict[str, _Read] = {}
    contents = []
    notices: list[str] = []
    categories: dict[Id, str] = {}
    parents: frozenset[int] = frozenset()
    for split, name in files.items():
        file = folder / name
        if not file.is_file():
            continue
        content = file.read_bytes()
        contents.append(content)
        tables = _tables(file, content, problems)
        if tables is None:
            continue
        if not categories:
            categories = _categories(config, file, tables["categories"], problems)
            parents = _parents(tables["categories"], categories)
        problems += _other_categories(file, tables["categories"], categories)
        images = folder / config.image_folder / config.lists.get(f"{split}_images", "")
        annotations = Malformed(name, file, len(tables["annotations"]), config.skip_malformed)
        read[split] = _pictures(file, tables, images, list(categories), annotations, problems)
        problems += annotations.problems
        notices += annotations.notices
        problems += missing_images(file, (picture.path for picture in read[split].pictures))
    listed = {split: part.pictures for split, part in read.items()}
    pictures = {} if problems else complete(config, listed, problems)
    if problems:
        raise missing_data(config, problems)
    has_masks = any(part.has_outlines for part in read.values())
    has_masks = has_masks and (config.skip_malformed or not any(p.missing for p in read.values()))
    for split, part in read.items() if has_masks else ():
        if part.missing:
            count = f"{len(part.missing)} objects of {files[split]}"
            notices.append(f"{count} are without a segmentation ({part.missing[0]})")
    flags = tuple(sorted({flag for part in read.values() for flag in part.flags}))
    return Dataset(
        name=config.name,
        num_classes=len(categories),
        fingerprint=fingerprint(contents),
        splits={name: CocoSplit(split, has_masks, flags) for name, split in pictures.items()},
        class_names=tuple(categories.values()),
        category_ids=tuple(categories),
        lists=files,
        parents=parents,
        unmasked=() if has_masks else _unmasked(folder, files, read),
        notices=tuple(notices),
    )


def _tables(file: Path, content: bytes, problems: list[Problem]) -> dict[str, list[Record]] | None:
    """The three tables of ``file``; None, and a problem, where it is something else."""
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:  # the message names the line, or the depth
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
    ids = Counter(_identity(record.get("id")) for record in records)
    bad = [str(id_) for id_, count in ids.items() if count > 1]
    bad += [str(record.get("id")) for record in records if not _is_id(record.get("id"))]
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
    names = {record["id"]: str(record.get("name", record["id"])) for record in ordered}
    problems += alike(str(file), "categories", names)
    return names


def _parents(records: Sequence[Record], categories: Mapping[Id, str]) -> frozenset[int]:
    """The classes that other categories name as their supercategory."""
    named = {
        record.get("supercategory")
        for record in records
        if isinstance(record.get("supercategory"), str)
        and record["supercategory"] != record.get("name")
    }
    return frozenset(number for number, name in enumerate(categories.values()) if name in named)


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
    malformed: Malformed,
    problems: list[Problem],
) -> _Read:
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
    problems += _repeated(file, tables["annotations"])

    by_image: dict[Id, list[Record]] = defaultdict(list)
    for record in tables["annotations"]:
        by_image[_identity(record.get("image_id"))].append(record)
    # A picture with a malformed record is a problem already; its annotations are not another one.
    if not bad:
        strangers = [
            f"{_name(record)}: image_id {record.get('image_id')!r}"
            for id_, annotations in by_image.items()
            if id_ not in records
            for record in annotations
        ]
        what = "annotations of images that are not in it"
        malformed.leave_out(len(strangers), what, shortened(strangers))

    labels = {id_: number for number, id_ in enumerate(category_ids)}
    read = _Read()
    wrong: list[str] = []
    for id_, record in records.items():
        size = (record["width"], record["height"])
        sound = []
        for annotation in by_image.get(id_, ()):
            try:
                item = _annotated(annotation, labels)
            except ValueError as error:
                wrong.append(f"{_name(annotation)}: {error}")
                continue
            if segmentation := annotation.get("segmentation"):
                item.outline, reason = outline_of(segmentation, size)
                if reason:
                    read.malformed.append(f"{_name(annotation)}: {reason}")
            elif not item.flags:
                read.missing.append(_name(annotation))
            read.has_outlines |= item.outline is not None and not item.flags
            read.flags.update(item.flags)
            sound.append(item)
        read.pictures.append(_picture(record, sound, images))
    malformed.leave_out(len(wrong), "malformed annotations", shortened(wrong))
    malformed.tell("a sound segmentation", read.malformed)
    return read


def _counted(file: Path, what: str, lines: Sequence[str]) -> list[Problem]:
    """One problem that counts ``lines`` and shows the first of them, or none."""
    if not lines:
        return []
    return [Problem(str(file), f"{len(lines)} {what}:", "\n".join(shortened(lines)))]


def _repeated(file: Path, annotations: Sequence[Record]) -> list[Problem]:
    """Ids that several annotations have: COCO's own code would keep one object of each."""
    ids = [record["id"] for record in annotations if _is_id(record.get("id"))]
    if len(set(ids)) == len(ids):
        return []
    lines = [f"annotation {id_}: {count} times" for id_, count in Counter(ids).items() if count > 1]
    fix = [*shortened(lines), "give every object an id of its own"]
    what = f"{len(lines)} annotation ids are listed twice or more:"
    return [Problem(str(file), what, "\n".join(fix))]


def _name(annotation: Record) -> str:
    """An annotation as messages name it."""
    return f"annotation {annotation.get('id')}"


def _is_id(value: Any) -> bool:
    return type(value) in (int, str)


def _identity(id_: Any) -> Id:
    """The id; a text that is none of the ids where it is not one."""
    return id_ if type(id_) in (int, str) else f"malformed {id_!r}"


def _wrong_image(record: Record) -> str:
    if not _is_id(record.get("id")):
        return "its id is neither an integer nor a text"
    if not isinstance(record.get("file_name"), str) or not record["file_name"]:
        return "it has no file_name"
    sides = (record.get("width"), record.get("height"))
    if not all(type(side) is int and 0 < side < MOST_SIDE for side in sides):
        return "width {!r}, height {!r}".format(*sides)
    if record["width"] * record["height"] >= MOST_PIXELS:
        return "width {}, height {}".format(*sides)
    return ""


def _annotated(record: Record, labels: Mapping[Id, int]) -> _Annotated:
    """An annotation without its mask; raises ValueError, with what is wrong with it."""
    category = _identity(record.get("category_id"))
    if category not in labels:
        raise ValueError(f"category_id {record.get('category_id')!r} is not in categories")
    box = record.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_length, box)):
        raise ValueError(f"bbox {box!r} is not [left, top, width, height] in pixels")
    left, top, width, height = box
    area = record.get("area", width * height)
    # A comparison that NaN fails, and that an integer of any size can pass.
    if type(area) not in (int, float) or not abs(area) < MOST_SIDE**2:
        raise ValueError(f"area {area!r} is not a number of pixels")
    return _Annotated(
        corners=(left, top, left + width, top + height),
        label=labels[category],
        flags=_flags(record),
        area=area,
        outline=None,
    )


def _is_length(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < MOST_SIDE


def _flags(record: Record) -> tuple[str, ...]:
    """Those of ``IGNORED_FIELDS`` that are set; raises ValueError where one is no flag."""
    flags: tuple[str, ...] = ()
    for name in IGNORED_FIELDS:
        value = record.get(name, 0)
        if value not in (0, 1):
            raise ValueError(f"{name} {value!r} is none of 0, 1, true and false")
        if value:
            flags += (name,)
    return flags


def _picture(image: Record, annotations: Sequence[_Annotated], images: Path) -> CocoPicture:
    """One picture and its objects."""
    corners = [item.corners for item in annotations]
    return CocoPicture(
        name=image["file_name"],
        path=str(images / image["file_name"]),
        boxes=np.array(corners, dtype=np.float64).reshape(-1, 4),
        labels=np.array([item.label for item in annotations], dtype=np.int64),
        ignored=np.array([bool(item.flags) for item in annotations], dtype=np.bool_),
        areas=np.array([item.area for item in annotations], dtype=np.float64),
        id=image["id"],
        size=(image["width"], image["height"]),
        outlines=tuple(item.outline for item in annotations),
        crowds=np.array(["iscrowd" in item.flags for item in annotations], dtype=np.bool_),
    )


def _unmasked(
    folder: Path, files: Mapping[str, str], read: Mapping[str, _Read]
) -> tuple[Problem, ...]:
    """What keeps a data set from having masks, by file; nothing where no object has any."""
    some = any(part.has_outlines for part in read.values())
    found = []
    for split, part in read.items():
        lines = part.missing if some else part.malformed
        if lines:
            what = f"{len(lines)} objects have no {'' if some else 'sound '}segmentation:"
            fix = [*shortened(lines), SKIP_UNMASKED] if some else shortened(lines)
            found.append(Problem(str(folder / files[split]), what, "\n".join(fix)))
    return tuple(found)
