"""A folder for each class: below ``train/``, ``val/`` and ``test/``, or all in one tree.

The layout of torchvision's ``ImageFolder`` and of most exports. Classes are numbered in the order
of their names, as there; the names are those of ``train``. Where there is no validation or test
part, a stated share of each class is one.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vpeft_bench.data.folders import (
    find_folder,
    fingerprint,
    is_left_over,
    missing_data,
    shortened,
)
from vpeft_bench.data.schema import DataConfig
from vpeft_bench.data.shares import SPLIT_NAMES, completed, missing_shares
from vpeft_bench.data.splits import Dataset, FileSplit
from vpeft_bench.errors import Problem

PICTURES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif", ".jfif"}
)
"""Suffixes of pictures, in lower case."""


@dataclass(frozen=True)
class _Part:
    """The pictures below one folder: path and name of the class of each, in order."""

    folder: Path
    paths: list[str]
    classes: list[str]
    empty: list[str]
    strays: list[str]
    others: Counter[str]


def read_image_folder(config: DataConfig) -> Dataset:
    """Read the folders of a data set; a class is a folder and every picture below it.

    Raises MissingDataError with everything that is wrong with the folders.
    """
    folder = find_folder(config)
    parts, problems = _parts(folder, config)
    problems += [problem for part in parts.values() for problem in _wrong(part)]
    if not problems:
        names_of = {name: part.folder.name for name, part in parts.items()}
        reported = "to report val: " + " ".join(
            f"data.lists.{as_}={names_of[name]}"
            for name, as_ in (("train", "train"), ("val", "test"))
            if name in names_of
        )
        has = set(parts) - {"all"}
        problems += _wrapped(folder, parts) or missing_shares(config, str(folder), has, reported)
    names = sorted({name for part in parts.values() for name in part.classes})
    if not {"train", "all"} & parts.keys() and not problems:
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
        what = f"has no train folder and no folders of classes (it has: {found})"
        problems.append(Problem(str(folder), what))
    if config.num_classes is not None and names and len(names) != config.num_classes:
        what = f"has folders of {len(names)} classes, and data.num_classes={config.num_classes}"
        problems.append(Problem(str(folder), what, "leave data.num_classes out"))
    if problems:
        raise missing_data(config, problems)
    numbers = {name: number for number, name in enumerate(names)}
    splits = completed({name: _files(part, numbers) for name, part in parts.items()}, config)
    others = sum((part.others for part in parts.values()), Counter[str]())
    notices = (
        [f"left out, no pictures: {others.total()} files ({', '.join(sorted(others))})"]
        if others
        else []
    )
    if below := _splits_below(parts):
        notices.append(
            f"folders {', '.join(below)} lie inside those of classes: read as their pictures, not "
            "as splits"
        )
    return Dataset(
        name=config.name,
        num_classes=len(names),
        fingerprint=fingerprint(_identity(folder, splits, names)),
        splits=splits,
        class_names=tuple(names),
        named_by_class=True,
        lists={name: f"{part.folder.name}/" for name, part in parts.items() if name != "all"},
        notices=tuple(notices),
    )


def _parts(folder: Path, config: DataConfig) -> tuple[dict[str, _Part], list[Problem]]:
    """The folders of the splits by name; ``all`` where there is one tree of classes."""
    if listed := {name: place for name, place in config.lists.items() if place}:
        named = {name: folder / place for name, place in listed.items()}
        unknown = sorted(set(named) - {"train", "val", "test"})
        problems = [
            Problem(f"data.lists.{name}", "is no split", "there are train, val and test")
            for name in unknown
        ]
        problems += [
            Problem(f"data.lists.{name}={listed[name]}", f"no such folder: {place}")
            for name, place in named.items()
            if name not in unknown and not place.is_dir()
        ]
        return ({} if problems else {n: _read(p) for n, p in named.items()}), problems
    folders = [path for path in _entries(folder) if path.is_dir()]
    mixed = any(path.name.lower() not in SPLIT_NAMES for path in folders)
    found: dict[str, list[Path]] = {}
    for path in folders:
        if (split := SPLIT_NAMES.get(path.name.lower())) and not (mixed and _is_class(path)):
            found.setdefault(split, []).append(path)
    problems = [
        Problem(str(folder), f"{' and '.join(path.name for path in paths)} are both {split}")
        for split, paths in found.items()
        if len(paths) > 1
    ]
    if not found:
        return ({"all": _read(folder)} if folders else {}), problems
    if len(folders) > sum(map(len, found.values())):
        splits = {path for paths in found.values() for path in paths}
        rest = [path.name for path in folders if path not in splits]
        what = f"has folders of splits and others beside them: {', '.join(shortened(rest))}"
        fix = "say which count: data.lists.train=... data.lists.test=..."
        problems.append(Problem(str(folder), what, fix))
    return {split: _read(paths[0]) for split, paths in found.items()}, problems


def _is_class(folder: Path) -> bool:
    """Whether a folder with the name of a split, beside others, is a class: there are trains."""
    entries = _entries(folder)
    return any(map(_is_picture, entries)) and not any(entry.is_dir() for entry in entries)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder, sorted by name, without what file managers leave."""
    names = sorted(os.listdir(folder))
    return [folder / name for name in names if not is_left_over(name)]


def _read(folder: Path) -> _Part:
    part = _Part(folder, [], [], [], [], Counter())
    for entry in _entries(folder):
        if not entry.is_dir():
            if _is_picture(entry):
                part.strays.append(entry.name)
            continue
        before = len(part.paths)
        for path in _below(entry, set()):
            if _is_picture(path):
                part.paths.append(str(path))
                part.classes.append(entry.name)
            else:
                part.others[path.suffix.lower() or path.name] += 1
        if len(part.paths) == before:
            part.empty.append(entry.name)
    return part


def _wrapped(folder: Path, parts: dict[str, _Part]) -> list[Problem]:
    """One folder in which everything lies, as archives unpack: it is no class."""
    classes = set(parts["all"].classes) if "all" in parts else set()
    if len(classes) != 1:
        return []
    inside = folder / classes.pop()
    folders = [path.name for path in _entries(inside) if path.is_dir()]
    what = f"has one folder, {inside.name}, with folders in it: {', '.join(shortened(folders))}"
    return [Problem(str(folder), what, f"did you mean data.root={inside}")] if folders else []


def _splits_below(parts: dict[str, _Part]) -> list[str]:
    """Folders called as splits that lie directly in those of the classes."""
    folders = (
        Path(path).relative_to(part.folder) for part in parts.values() for path in part.paths
    )
    names = {path.parts[1] for path in folders if len(path.parts) > 2}
    return sorted(name for name in names if name.lower() in SPLIT_NAMES)


def _below(folder: Path, seen: set[str]) -> Iterator[Path]:
    """All files below a folder, sorted; a link that leads back is followed once."""
    if (real := os.path.realpath(folder)) in seen:
        return
    seen.add(real)
    for entry in _entries(folder):
        if entry.is_dir():
            yield from _below(entry, seen)
        else:
            yield entry


def _wrong(part: _Part) -> Iterator[Problem]:
    where = str(part.folder)
    if part.strays:
        what = f"{len(part.strays)} pictures lie beside the folders of the classes:"
        fix = "\n".join([*shortened(part.strays), "each class has a folder of its own"])
        yield Problem(where, what, fix)
    if part.empty:
        one = len(part.empty) == 1
        of = "folder of a class has" if one else "folders of classes have"
        what = f"{len(part.empty)} {of} no picture:"
        suffixes = " ".join(sorted(PICTURES))
        fix = f"{', '.join(shortened(part.empty))}\npictures are known by their suffix: {suffixes}"
        yield Problem(where, what, fix)
    if not part.paths and not part.empty and not part.strays:
        yield Problem(where, "has no folders of classes")


def _files(part: _Part, numbers: dict[str, int]) -> FileSplit:
    labels = np.array([numbers[name] for name in part.classes], dtype=np.int64)
    return FileSplit(labels, tuple(part.paths))


def _identity(folder: Path, splits: dict[str, FileSplit], names: list[str]) -> Iterator[bytes]:
    """Classes, and the paths and classes of every split, wherever the data set lies."""
    yield "\n".join(names).encode()
    for name in ("train", "val", "test"):
        split = splits[name]
        yield name.encode()
        for path, label in zip(split.paths, split.labels.tolist(), strict=True):
            yield f"{Path(path).relative_to(folder).as_posix()} {label}".encode(
                errors="surrogateescape"
            )
