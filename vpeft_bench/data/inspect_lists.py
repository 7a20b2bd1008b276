"""What the lists of every data set are looked at for: each picture in one place, and only once."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence

from vpeft_bench.data.findings import Inspection
from vpeft_bench.data.folders import shortened
from vpeft_bench.data.schema import DataConfig
from vpeft_bench.data.splits import SPLITS, Dataset, LabelledSplit

TRAINING_PART = ("train", "val", "trainval")
"""What is trained on or chosen by, before the result on ``test`` is reported."""
_COPY = re.compile(r"\.rf\.[0-9A-Za-z]{16,}")
"""What Roboflow appends to the name of a picture for each altered copy of it."""


def inspect_lists(dataset: Dataset, config: DataConfig, inspection: Inspection) -> None:
    """Refuse empty splits, pictures listed twice, and pictures of two splits that must differ."""
    for split in SPLITS:
        if not len(dataset.split(split)):
            inspection.refuse(dataset.listed_in(split), f"there are no {split} pictures")
    for split in dataset.lists:
        held_out = split == "train" and "val" not in dataset.lists
        _refuse_repeated(dataset, (split, "val") if held_out else (split,), inspection)
    if "val" in dataset.lists:
        _refuse_shared(dataset, "val", ("train",), config, inspection)
    _refuse_shared(dataset, "test", TRAINING_PART, config, inspection)
    _tell_of_copies(dataset, "val", ("train",), inspection)
    _tell_of_copies(dataset, "test", TRAINING_PART, inspection)
    _tell_of_other_trainval(dataset, inspection)


def _refuse_repeated(dataset: Dataset, splits: Sequence[str], inspection: Inspection) -> None:
    """Refuse a list that names one file more than once: it would count more than the others.

    ``splits`` are what was made of the list, the first of them under its own name.
    """
    entries: dict[str, list[str]] = {}
    for split in splits:
        for index, file in enumerate(inspection.files.get(split, ())):
            entries.setdefault(file, []).append(dataset.split(split).entry(index))
    repeated = [named for named in entries.values() if len(named) > 1]
    if repeated:
        what = f"{len(repeated)} of its {len(entries)} pictures are listed twice or more:"
        lines = [" and ".join(dict.fromkeys(named)) for named in repeated]
        fix = "list every picture once, under one name"
        inspection.refuse(dataset.listed_in(splits[0]), what, _lines(lines, fix))


def _refuse_shared(
    dataset: Dataset,
    split: str,
    others: Sequence[str],
    config: DataConfig,
    inspection: Inspection,
) -> None:
    """Refuse pictures of ``split`` that are in one of ``others`` as well."""
    files = inspection.files.get(split, ())
    places: dict[str, list[str]] = {}
    for other in others:
        for file in dict.fromkeys(inspection.files.get(other, ())):
            places.setdefault(file, []).append(dataset.listed_in(other))
    shared = [index for index, file in enumerate(files) if file in places]
    if not shared:
        return
    counts = Counter(place for index in shared for place in dict.fromkeys(places[files[index]]))
    # What is made of the listed splits says nothing that they do not say.
    listed = {place: n for place, n in counts.items() if place in dataset.lists.values()}
    found = ", ".join(f"{count} in {place}" for place, count in (listed or counts).items())
    what = (
        f"{len(shared)} of the {len(files)} {split} pictures are in {' or '.join(others)} as well "
        f"({found}):"
    )
    lines = [dataset.split(split).entry(index) for index in shared]
    key = f": data.lists.{split}=..." if config.lists else ""
    fix = f"a picture that was learnt from tells nothing: give {split} a list of its own{key}"
    inspection.refuse(dataset.listed_in(split), what, _lines(lines, fix))


def _tell_of_copies(
    dataset: Dataset, split: str, others: Sequence[str], inspection: Inspection
) -> None:
    """Tell of pictures of ``split`` that are altered copies of one of ``others``."""
    files = inspection.files
    learnt = {_source(file) for other in others for file in files.get(other, ())} - {None}
    copies = sum(_source(file) in learnt for file in files.get(split, ()))
    if copies:
        count = f"{copies} of {len(files[split])} {split} pictures"
        inspection.tell(f"{count} are altered copies of training pictures, by their names (.rf.)")


def _source(file: str) -> str | None:
    """The name of the picture that a file is an altered copy of; None where it says nothing."""
    name = os.path.basename(file)
    return _COPY.sub("", name) if _COPY.search(name) else None


def _tell_of_other_trainval(dataset: Dataset, inspection: Inspection) -> None:
    """Tell where the list of ``trainval`` cannot be that of ``train`` and ``val`` together."""
    if not {"train", "val", "trainval"} <= dataset.lists.keys():
        return
    both, train, val = (dataset.split(name) for name in ("trainval", "train", "val"))
    where, parts = dataset.listed_in("trainval"), len(train) + len(val)
    if len(both) != parts:
        inspection.tell(f"{where} has {len(both)} pictures, train and val have {parts}")
    elif isinstance(both, LabelledSplit):
        assert isinstance(train, LabelledSplit)
        assert isinstance(val, LabelledSplit)
        joined = Counter([*train.labels.tolist(), *val.labels.tolist()])
        if Counter(both.labels.tolist()) != joined:
            inspection.tell(f"{where} has other numbers of each class than train and val")


def _lines(examples: Sequence[str], fix: str) -> str:
    return "\n".join([*shortened(examples), fix])
