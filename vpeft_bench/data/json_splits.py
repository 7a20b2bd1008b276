"""FGVC's layout: ``train.json``, ``val.json`` and ``test.json``, each mapping paths to class ids.

Class ids may start anywhere and leave gaps. Public loaders number each split by itself, which
shifts the labels of a split that lacks a class; here ``train`` numbers the classes of all three.
Source: the lists of KMnP/vpt, as read by its ``src/data/datasets/json_dataset.py``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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

LISTS = {"train": "train.json", "val": "val.json", "test": "test.json"}

ClassId = int | str
Entries = dict[str, ClassId]


def read_json_splits(config: DataConfig) -> Dataset:
    """Read the lists of a data set in FGVC's layout; ``trainval`` is ``train`` then ``val``.

    Raises MissingDataError with everything that is wrong with the folder, its lists and the
    pictures they name, class ids unknown to ``train`` included.
    """
    folder = find_folder(config)
    problems = missing_lists(folder, LISTS.values())
    entries = {
        name: _read_entries(folder / file, problems)
        for name, file in LISTS.items()
        if (folder / file).is_file()
    }
    # Numbers and texts in one data set sort by their type first, so that ids always have an order.
    ids = sorted(set(entries.get("train", {}).values()), key=lambda id_: (type(id_).__name__, id_))
    classes = {id_: number for number, id_ in enumerate(ids)}
    if ids:
        problems += _wrong_ids(folder, config, entries, classes)
    images = folder / config.image_folder
    for name, listed in entries.items():
        problems += missing_images(folder / LISTS[name], (str(images / path) for path in listed))
    class_names, unnamed = _class_names(folder / "classes.txt", ids, problems)
    if problems:
        raise missing_data(config, problems)

    splits = {
        name: FileSplit(
            np.array([classes[id_] for id_ in listed.values()], dtype=np.int64),
            tuple(str(images / path) for path in listed),
        )
        for name, listed in entries.items()
    }
    train, val = splits["train"], splits["val"]
    splits["trainval"] = FileSplit(
        np.concatenate([train.labels, val.labels]), train.paths + val.paths
    )
    return Dataset(
        name=config.name,
        num_classes=len(classes),
        fingerprint=fingerprint((folder / file).read_bytes() for file in LISTS.values()),
        splits=splits,
        class_names=class_names,
        category_ids=tuple(ids),
        lists=LISTS,
        notices=unnamed,
    )


def _read_entries(file: Path, problems: list[Problem]) -> Entries:
    """The well-formed entries of ``file``; what is wrong with it is added to ``problems``."""
    repeated: list[str] = []

    def members(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):  # the last of equal keys would count, without a word
            counts = Counter(key for key, _ in pairs)
            repeated.extend(key for key, count in counts.items() if count > 1)
        return found

    try:
        content = json.loads(read_text(file), object_pairs_hook=members)
    except json.JSONDecodeError as error:  # the message names the line
        problems.append(Problem(str(file), f"is not JSON: {error}"))
        return {}
    except RecursionError:
        problems.append(Problem(str(file), "is not one object that maps paths to class ids"))
        return {}
    except ValueError as error:
        problems.append(Problem(str(file), str(error)))
        return {}
    if not isinstance(content, dict):
        problems.append(Problem(str(file), "is not one object that maps paths to class ids"))
        return {}
    if repeated:
        what = f"{len(repeated)} pictures are listed twice or more:"
        problems.append(Problem(str(file), what, "\n".join(shortened(repeated))))
    entries = {path: id_ for path, id_ in content.items() if type(id_) in (int, str)}
    bad = [f"{path}: {id_!r:.40}" for path, id_ in content.items() if path not in entries]
    if bad:
        what = f"{len(bad)} class ids are neither an integer nor a text:"
        problems.append(Problem(str(file), what, "\n".join(shortened(bad))))
    elif not entries:
        problems.append(Problem(str(file), "lists no pictures"))
    return entries


def _wrong_ids(
    folder: Path,
    config: DataConfig,
    entries: dict[str, Entries],
    classes: dict[ClassId, int],
) -> list[Problem]:
    """Problems of the class ids: another number of them than expected, or not those of train."""
    problems = []
    train = str(folder / LISTS["train"])
    if config.num_classes is not None and len(classes) != config.num_classes:
        what = f"holds {len(classes)} classes where {config.title} has {config.num_classes}"
        fix = "for a data set of your own in this layout: data=fgvc_json data.root=DIR"
        problems.append(Problem(train, what, fix))
    ids = {id_ for listed in entries.values() for id_ in listed.values()}
    if both := sorted(str(id_) for id_ in ids if isinstance(id_, int) and str(id_) in ids):
        what = f"{len(both)} class ids are written as numbers and as texts:"
        fix = f"{', '.join(shortened(both))}\nwrite each of them one way in all lists"
        return [*problems, Problem(str(folder), what, fix)]
    for name, listed in entries.items():
        unknown = sorted({str(id_) for id_ in listed.values() if id_ not in classes})
        if unknown:
            what = f"{len(unknown)} class ids are not in {LISTS['train']}:"
            problems.append(Problem(str(folder / LISTS[name]), what, ", ".join(shortened(unknown))))
    return problems


def _class_names(
    file: Path, ids: list[ClassId], problems: list[Problem]
) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """The names in ``classes.txt`` (``id name`` per line), and what is to be told of it.

    It may name more classes than there are; where it does not name all of them, none is used.
    """
    if not file.is_file():
        return None, ()
    try:
        lines = [line.split(maxsplit=1) for _, line in filled_lines(read_text(file))]
    except ValueError as error:
        problems.append(Problem(str(file), str(error)))
        return None, ()
    names = dict(words for words in lines if len(words) == 2)
    if unnamed := [str(id_) for id_ in ids if str(id_) not in names]:
        return None, (f"{file.name} names {len(ids) - len(unnamed)} of {len(ids)} class ids",)
    return tuple(names[str(id_)] for id_ in ids), ()
