"""VTAB-1k's layout: four text files, each with one ``path label`` per line.

The public export writes the joint 1,000 pictures a second time, into a folder of their own, and
other copies of it do not: so the lists are followed, and folder names mean nothing.
Source: the layout written by ZhangYuanhan-AI/NOAH ``data/vtab-source/get_vtab1k.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vpeft_bench.data.folders import (
    filled_lines,
    find_folder,
    fingerprint,
    missing_data,
    missing_images,
    missing_lists,
    read_text,
    shortened,
)
from vpeft_bench.data.schema import DataConfig
from vpeft_bench.data.splits import Dataset, FileSplit
from vpeft_bench.errors import Problem
from vpeft_bench.formats import counted

LISTS = {
    "train": "train800.txt",
    "val": "val200.txt",
    "trainval": "train800val200.txt",
    "test": "test.txt",
}
MANY_CLASSES = 1000
"""Where nothing says how many classes there are, a label may be as large as this, or as there are
lines in the lists; beyond that it is a slip of the finger, and no data set's class."""
_LONGEST = 30  # characters of a line or a label that a message shows

Line = tuple[int, str]


def read_image_list(config: DataConfig) -> Dataset:
    """Read the lists of a data set in VTAB-1k's layout.

    Raises MissingDataError with everything that is wrong with the folder, its lists and the
    pictures they name.
    """
    folder = find_folder(config)
    problems = missing_lists(folder, LISTS.values())
    lines = {
        name: _lines(folder / file, problems)
        for name, file in LISTS.items()
        if (folder / file).is_file()
    }
    num_classes = config.num_classes
    most = num_classes or max(MANY_CLASSES, sum(map(len, lines.values())))
    splits = {
        name: _read_list(folder, folder / LISTS[name], of_list, num_classes, most, problems)
        for name, of_list in lines.items()
    }
    if num_classes is None and not problems:
        num_classes = 1 + max(int(split.labels.max()) for split in splits.values())
    class_names = _class_names(folder / "classes.txt", config, num_classes, problems)
    if problems or num_classes is None:
        raise missing_data(config, problems)
    return Dataset(
        name=config.name,
        num_classes=num_classes,
        fingerprint=fingerprint((folder / file).read_bytes() for file in LISTS.values()),
        splits=splits,
        class_names=class_names,
        lists=LISTS,
    )


def _lines(file: Path, problems: list[Problem]) -> list[Line]:
    """The lines of ``file`` that are not blank."""
    try:
        lines = filled_lines(read_text(file))
    except ValueError as error:
        problems.append(Problem(str(file), str(error)))
        return []
    if not lines:
        problems.append(Problem(str(file), "lists no pictures"))
    return lines


def _read_list(
    folder: Path,
    file: Path,
    lines: Sequence[Line],
    num_classes: int | None,
    most: int,
    problems: list[Problem],
) -> FileSplit:
    """The split listed by ``file``; what is wrong with it is added to ``problems``."""
    paths: list[str] = []
    labels: list[int] = []
    bad_lines: list[str] = []
    for number, line in lines:
        *path, label = line.rsplit(maxsplit=1)
        if not path or path[0].endswith((",", ";")):
            what = f"{_short(line)} is not a path and a label with a blank between them"
        elif not label.isdecimal():
            what = f"label {_short(label)} is not an integer from 0"
        elif len(label.lstrip("0")) > len(str(most)) or int(label) >= most:
            what = f"label {_short(label, quoted=False)}"
            if num_classes is not None:
                what += f" but there are {num_classes} classes"
            else:
                what += " is no plausible class; they count from 0 (or type data.num_classes=N)"
        else:
            paths.append(str(folder / path[0]))
            labels.append(int(label))
            continue
        bad_lines.append(f"line {number}: {what}")
    if bad_lines:
        count = f"{counted(len(bad_lines), 'malformed line')}:"
        problems.append(Problem(str(file), count, "\n".join(shortened(bad_lines))))
    problems += missing_images(file, paths)
    return FileSplit(np.array(labels, dtype=np.int64), tuple(paths))


def _short(text: str, quoted: bool = True) -> str:
    cut = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    return repr(cut) if quoted else cut


def _class_names(
    file: Path, config: DataConfig, num_classes: int | None, problems: list[Problem]
) -> tuple[str, ...] | None:
    """The lines of ``classes.txt``, where there is one: a name for each class, from 0 on."""
    if not file.is_file():
        return None
    try:
        names = tuple(line for _, line in filled_lines(read_text(file)))
    except ValueError as error:
        problems.append(Problem(str(file), str(error)))
        return None
    if num_classes is not None and len(names) != num_classes:
        what = f"names {len(names)} classes where there are {num_classes}"
        fix = "name every class in a line of its own, the one with label 0 first"
        if config.num_classes is None and len(names) > num_classes:
            fix += f"\nif some have no pictures: data.num_classes={len(names)}"
        problems.append(Problem(str(file), what, fix))
    return names
