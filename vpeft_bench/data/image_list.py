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
    find_folder,
    fingerprint,
    missing_data,
    missing_images,
    missing_lists,
    shortened,
)
from vpeft_bench.data.schema import DataConfig
from vpeft_bench.data.splits import Dataset, FileSplit
from vpeft_bench.errors import Problem

LISTS = {
    "train": "train800.txt",
    "val": "val200.txt",
    "trainval": "train800val200.txt",
    "test": "test.txt",
}


def read_image_list(config: DataConfig) -> Dataset:
    """Read the lists of a data set in VTAB-1k's layout.

    Raises MissingDataError with everything that is wrong with the folder, its lists and the
    pictures they name.
    """
    folder = find_folder(config)
    problems = missing_lists(folder, LISTS.values())
    splits = {
        name: _read_list(folder, folder / file, config.num_classes, problems)
        for name, file in LISTS.items()
        if (folder / file).is_file()
    }
    if problems:
        raise missing_data(config, problems)
    num_classes = config.num_classes
    if num_classes is None:
        num_classes = 1 + max(int(split.labels.max()) for split in splits.values())
    return Dataset(
        name=config.name,
        num_classes=num_classes,
        fingerprint=fingerprint((folder / file).read_bytes() for file in LISTS.values()),
        splits=splits,
        class_names=_class_names(folder / "classes.txt", num_classes),
        lists=LISTS,
    )


def _read_list(
    folder: Path, file: Path, num_classes: int | None, problems: list[Problem]
) -> FileSplit:
    """The split listed by ``file``; what is wrong with it is added to ``problems``."""
    paths: list[str] = []
    labels: list[int] = []
    bad_lines: list[str] = []
    lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        *path, label = line.rsplit(maxsplit=1)
        if not path:
            bad_lines.append(f"line {number}: {line.strip()!r} is not a path and a label")
        elif not label.isdecimal():
            bad_lines.append(f"line {number}: label {label!r} is not an integer from 0")
        elif num_classes is not None and int(label) >= num_classes:
            bad_lines.append(f"line {number}: label {label} but there are {num_classes} classes")
        else:
            paths.append(str(folder / path[0].strip()))
            labels.append(int(label))
    if bad_lines:
        count = f"{len(bad_lines)} malformed line{'s' if len(bad_lines) > 1 else ''}:"
        problems.append(Problem(str(file), count, "\n".join(shortened(bad_lines))))
    elif not paths:
        problems.append(Problem(str(file), "lists no pictures"))
    problems += missing_images(file, paths)
    return FileSplit(np.array(labels, dtype=np.int64), tuple(paths))


def _class_names(file: Path, num_classes: int) -> tuple[str, ...] | None:
    """The lines of ``classes.txt``, where there is one with a line per class."""
    names: Sequence[str] = file.read_text(encoding="utf-8").splitlines() if file.is_file() else ()
    return tuple(names) if len(names) == num_classes else None
