"""A table of paths and labels: ``path,label`` and, where it comes with splits, ``split``.

One file with all pictures, or one for each split. Commas, semicolons and tabs part the columns,
whichever the first line has. Labels are class ids or names: classes are numbered in their order, by
value where all are whole numbers, else by name.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vpeft_bench.data.folders import (
    find_folder,
    fingerprint,
    missing_data,
    missing_images,
    read_text,
    shortened,
)
from vpeft_bench.data.schema import DataConfig
from vpeft_bench.data.shares import SPLIT_NAMES, completed, missing_shares
from vpeft_bench.data.splits import Dataset, FileSplit
from vpeft_bench.errors import MissingDataError, Problem, nearest
from vpeft_bench.formats import counted

COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "filepath", "image", "image_path"),
    "label": ("label", "class", "class_name", "category", "target"),
    "split": ("split", "subset", "set", "partition"),
}
"""What the columns may be called, in any case."""
_SEPARATOR = re.compile(r"sep=[,;\t]\r?\n", re.IGNORECASE)
TABLE = "table"
"""In ``data.lists``: the file that has all splits."""
SPLITS = ("train", "val", "test")


@dataclass
class _Rows:
    """Rows of a table, each with its line."""

    paths: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.paths)

    def of(self, split: str) -> _Rows:
        """Those of one split."""
        chosen = [i for i, name in enumerate(self.splits) if name == split]
        return _Rows([self.paths[i] for i in chosen], [self.labels[i] for i in chosen])


def read_csv(config: DataConfig) -> Dataset:
    """Read the tables of a data set.

    Raises MissingDataError with everything that is wrong with the tables and the pictures that they
    name.
    """
    root = Path(config.root).expanduser()
    if root.is_file():
        fix = f"data.root={root.parent} data.lists.table={root.name}"
        raise MissingDataError(
            [Problem(f"data.root={config.root}", "is a file, not a folder", fix)]
        )
    folder = find_folder(config)
    lists = {name: file for name, file in config.lists.items() if file}
    problems = list(_wrong_lists(folder, lists))
    if problems:
        raise missing_data(config, problems)
    parts: dict[str, _Rows] = {}
    for name, file in lists.items():
        rows, told = _rows(folder / file, name)
        problems += told
        if name != TABLE:
            parts[name] = rows
        elif rows.splits:
            parts |= {split: rows.of(split) for split in SPLITS if split in rows.splits}
        else:
            parts["all"] = rows
    where = str(folder / next(iter(lists.values())))
    if not problems:
        reported = "to report val: call it test, in the column split or in data.lists"
        problems += missing_shares(config, where, set(parts) - {"all"}, reported)
        if "all" not in parts and "train" not in parts:
            problems.append(Problem(where, "has no training part"))
    for name, rows in parts.items():
        listed = lists.get(name, lists.get(TABLE, ""))
        problems += _missing_pictures(folder, Path(listed), rows, config)
    names = _class_names([label for rows in parts.values() for label in rows.labels])
    if "all" in parts:  # whose parts are drawn: one of a pair would be learnt from
        problems += _twice(where, parts["all"])
    if config.num_classes is not None and len(names) != config.num_classes:
        what = f"has {len(names)} classes, and data.num_classes={config.num_classes}"
        problems.append(Problem(where, what, "leave data.num_classes out"))
    if problems:
        raise missing_data(config, problems)
    numbers = {name: number for number, name in enumerate(names)}
    images = folder / config.image_folder
    splits = completed({n: _files(rows, numbers, images) for n, rows in parts.items()}, config)
    shares = f"{config.test_share} {config.hold_out} {config.split_seed}"
    return Dataset(
        name=config.name,
        num_classes=len(names),
        fingerprint=fingerprint(
            [shares.encode(), *((folder / file).read_bytes() for file in lists.values())]
        ),
        splits=splits,
        class_names=tuple(names),
        named_by_class=True,
        lists={n: lists.get(n, lists.get(TABLE, "")) for n in parts if n != "all"},
    )


def _wrong_lists(folder: Path, lists: dict[str, str]) -> Iterator[Problem]:
    """What is wrong with ``data.lists`` itself."""
    places = (TABLE, *SPLITS)
    if not lists:
        yield Problem("data.lists", "names no table", "data.lists.table=FILE")
    for name in lists:
        if name not in places:
            fix = f"there are: {', '.join(places)}"
            yield Problem(f"data.lists.{name}", "is no list of this reader", fix)
    if TABLE in lists and len(lists) > 1:
        fix = "leave data.lists.table out (data.lists.table=), or the others"
        yield Problem("data.lists", "names one table with all splits, and others", fix)
    for name, file in lists.items():
        if not (folder / file).is_file():
            tables = sorted(path.name for path in folder.glob("*.[ct]sv"))
            fix = f"data.lists.{name}=FILE"
            if tables:
                fix = (
                    f"there are {', '.join(shortened(tables))}: type data.lists.{name}={tables[0]}"
                )
            yield Problem(str(folder), f"no {file} in it", fix)


def _rows(file: Path, name: str) -> tuple[_Rows, list[Problem]]:
    """The rows of one table, and what is wrong with it; ``name`` is its own in ``data.lists``."""
    try:
        text = read_text(file)
    except ValueError as error:
        return _Rows(), [Problem(str(file), str(error))]
    if _SEPARATOR.match(text):  # Excel's, above the names of the columns
        text = text.partition("\n")[2]
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        lines = [(reader.line_num, line) for line in reader if any(map(str.strip, line))]
    except csv.Error as error:
        return _Rows(), [Problem(f"{file}, line {reader.line_num}", str(error))]
    if not lines:
        return _Rows(), [Problem(str(file), "is empty")]
    (_, header), *body = lines
    columns, problems = _columns(file, header)
    if problems:
        return _Rows(), problems
    rows, problems = _read_body(file, header, columns, body)
    if name != TABLE and (others := [split for split in rows.splits if split != name]):
        what = f"{len(others)} of its {len(rows)} rows are of another split than {name}, by its "
        what += f"column {header[columns['split']].strip()} (first: {others[0]})"
        fix = f"data.lists.{TABLE}={file.name} reads all splits from one table; or leave them out"
        problems.append(Problem(str(file), what, fix))
    return rows, problems


def _columns(file: Path, header: Sequence[str]) -> tuple[dict[str, int], list[Problem]]:
    """The place of each column that is known."""
    given = [name.strip().lower() for name in header]
    found: dict[str, int] = {}
    problems = []
    for column, names in COLUMNS.items():
        places = [place for place, name in enumerate(given) if name in names]
        if len(places) > 1:
            both = " and ".join(header[place].strip() for place in places)
            problems.append(Problem(str(file), f"{both} both say the {column}", "leave one out"))
        elif places:
            found[column] = places[0]
        elif column != "split":
            free = [n for n in given if not any(n in taken for taken in COLUMNS.values())]
            close = next((n for n in free if "/" not in n and nearest(n, names)), None)
            meant = f"; is it {close}?" if close else ""
            what = f"its first line names no {column}: {', '.join(h.strip() for h in header)}"
            fix = f"name the columns path,label[,split] in the first line{meant}"
            problems.append(Problem(str(file), what, fix))
    return found, problems


def _read_body(
    file: Path,
    header: Sequence[str],
    columns: dict[str, int],
    body: Sequence[tuple[int, Sequence[str]]],
) -> tuple[_Rows, list[Problem]]:
    rows, bad = _Rows(), []
    for number, line in body:
        if len(line) != len(header):
            bad.append(f"line {number}: {len(line)} fields where the first line has {len(header)}")
            continue
        path, label = line[columns["path"]].strip(), line[columns["label"]].strip()
        split = line[columns["split"]].strip() if "split" in columns else ""
        if not path or not label:
            bad.append(f"line {number}: no {'label' if path else 'path'}")
        elif "split" in columns and split.lower() not in SPLIT_NAMES:
            bad.append(f"line {number}: split {split!r} is none of train, val and test")
        else:
            rows.paths.append(path)
            rows.labels.append(label)
            if "split" in columns:
                rows.splits.append(SPLIT_NAMES[split.lower()])
    if not bad and not body:
        return rows, [Problem(str(file), "lists no pictures")]
    count = f"{counted(len(bad), 'malformed line')}:"
    return rows, [Problem(str(file), count, "\n".join(shortened(bad)))] if bad else []


def _twice(where: str, rows: _Rows) -> Iterator[Problem]:
    """Pictures that a table names more than once."""
    labels: dict[str, list[str]] = {}
    for path, label in zip(rows.paths, rows.labels, strict=True):
        labels.setdefault(os.path.normpath(path), []).append(label)
    twice = [f"{path}: {' and '.join(of)}" for path, of in labels.items() if len(of) > 1]
    if twice:
        what = f"{len(twice)} of its {len(labels)} pictures are listed twice or more:"
        fix = "list every picture once, with one label"
        yield Problem(where, what, "\n".join([*shortened(twice), fix]))


def _missing_pictures(
    folder: Path, file: Path, rows: _Rows, config: DataConfig
) -> Iterator[Problem]:
    paths = [str(folder / config.image_folder / path) for path in rows.paths]
    for problem in missing_images(folder / file, paths):
        hint = "paths start from data.root/data.image_folder, suffix included"
        yield Problem(problem.where, problem.what, f"{problem.fix}\n{hint}")


def _class_names(labels: Sequence[str]) -> list[str]:
    """Every label once, in the order of their numbers if they all are some."""
    found = set(labels)
    if all(label.isascii() and label.isdecimal() for label in found):
        return sorted(found, key=lambda label: (int(label), label))
    return sorted(found)


def _files(rows: _Rows, numbers: dict[str, int], images: Path) -> FileSplit:
    labels = np.array([numbers[label] for label in rows.labels], dtype=np.int64)
    return FileSplit(labels, tuple(str(images / path) for path in rows.paths))
