"""ADE20K's layout: ``images/PART/*.jpg`` and ``annotations/PART/*.png``, pairs of the same name.

A label map has the class of every pixel as its value. With ``zero_is_ignored``, as in ADE20K
itself, 0 is no class and the classes count from 1.
Source: SceneParse150, the archive ``ADEChallengeData2016`` (CSAILVision/sceneparsing).
"""

from __future__ import annotations

from pathlib import Path

from vpeft_bench.data.dense_files import (
    PICTURE_SUFFIXES,
    FileMaps,
    MapFile,
    class_names,
    complete,
    files_by_stem,
    list_problems,
    listed_splits,
    number_of_classes,
)
from vpeft_bench.data.folders import (
    filled_lines,
    find_folder,
    fingerprint,
    missing_data,
    read_text,
    shortened,
)
from vpeft_bench.data.schema import DataConfig
from vpeft_bench.data.splits import Dataset
from vpeft_bench.errors import Problem

IMAGES, ANNOTATIONS = "images", "annotations"
NAMES_FILE = "objectInfo150.txt"
"""ADE20K's own table of its classes, tab-separated below one line of headings; the last column has
the names of a class, the usual one first."""


def read_ade20k(config: DataConfig) -> Dataset:
    """Read the folders of a data set in ADE20K's layout; ``lists`` names the folder of each split.

    Raises MissingDataError with everything that is wrong with the folders: one that is missing or
    empty, pictures without a label map and label maps without a picture.
    """
    folder = find_folder(config)
    problems = list_problems(config, ["classes"])
    listed, contents = {}, []
    for split, part in listed_splits(config).items():
        listed[split], described = _read_part(folder, part, problems)
        contents.append(described.encode())
    names = class_names(config, folder, problems)
    if names == ():
        names = _names_of_ade20k(folder / NAMES_FILE, problems)
    num_classes = number_of_classes(config, folder, names, problems)
    splits = {} if problems else complete(config, listed, problems)
    if problems or names is None:
        raise missing_data(config, problems)
    contents.append("\n".join(names).encode())
    return Dataset(
        name=config.name,
        num_classes=num_classes,
        fingerprint=fingerprint(contents),
        splits={
            name: FileMaps(pictures, num_classes, config.zero_is_ignored)
            for name, pictures in splits.items()
        },
        class_names=names if len(names) == num_classes else None,
        lists={name: f"{IMAGES}/{part}" for name, part in listed_splits(config).items()},
    )


def _read_part(folder: Path, part: str, problems: list[Problem]) -> tuple[tuple[MapFile, ...], str]:
    """The pairs of one folder by name, and a line on each for the fingerprint."""
    absent = [place for place in (IMAGES, ANNOTATIONS) if not (folder / place / part).is_dir()]
    if absent:
        what = f"no {', '.join(f'{place}/{part}' for place in absent)} in it"
        problems.append(Problem(str(folder), what))
        return (), ""
    images, maps = folder / IMAGES / part, folder / ANNOTATIONS / part
    pictures = files_by_stem(images, PICTURE_SUFFIXES, problems)
    label_maps = files_by_stem(maps, (".png",), problems)
    if not pictures:
        problems.append(Problem(str(images), "holds no pictures"))
        return (), ""
    problems += _unpaired(images, "pictures", maps, set(pictures) - set(label_maps))
    problems += _unpaired(maps, "label maps", images, set(label_maps) - set(pictures))
    paired = sorted(set(pictures) & set(label_maps))
    files = tuple(MapFile(name, pictures[name].path, label_maps[name].path) for name in paired)
    # The size stands for the content of a map: reading all of them takes minutes on slow disks.
    lines = (f"{name} {label_maps[name].stat().st_size}" for name in paired)
    return files, "\n".join(lines)


def _unpaired(where: Path, kind: str, other: Path, names: set[str]) -> list[Problem]:
    if not names:
        return []
    what = f"{len(names)} of its {kind} have no counterpart in {other}:"
    return [Problem(str(where), what, "\n".join(shortened(sorted(names))))]


def _names_of_ade20k(file: Path, problems: list[Problem]) -> tuple[str, ...] | None:
    """The names in ADE20K's own table; None, and a problem, where it cannot be read."""
    if not file.is_file():
        return ()
    try:
        rows = [line for _, line in filled_lines(read_text(file))][1:]
    except ValueError as error:
        problems.append(Problem(str(file), str(error)))
        return None
    columns = [row.split("\t")[-1].strip() for row in rows]
    return tuple(column.replace(";", ",").split(",")[0] for column in columns)
