"""What a data set with one class per picture is looked at for."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from vpeft_bench.data.findings import Inspection
from vpeft_bench.data.folders import shortened
from vpeft_bench.data.schema import DataConfig
from vpeft_bench.data.splits import SPLITS, Dataset, LabelledSplit

CLASSES_SHOWN = 10
"""How many classes are spelled out before the rest are only counted."""


def inspect_labels(dataset: Dataset, config: DataConfig, inspection: Inspection) -> None:
    """Refuse labels that contradict each other or cannot be learnt; tell of idle outputs."""
    labels = {name: _labels(dataset, name) for name in SPLITS}
    occurring = {name: set(np.unique(of_split).tolist()) for name, of_split in labels.items()}
    for name, classes in occurring.items():
        inspection.count(name, "classes", len(classes))
    refuse_two_labels(dataset, labels, inspection)
    for name, classes in occurring.items():
        if beyond := sorted(classes - set(range(dataset.num_classes))):
            # On a GPU the loss of such a class ends the process, with a message about another line.
            what = f"has class {beyond[0]}, and the {dataset.num_classes} classes count from 0"
            inspection.refuse(dataset.listed_in(name), what)
            return

    trained = occurring[config.final_train]
    where = dataset.listed_in(config.final_train)
    if len(trained) == 1 or dataset.num_classes < 2:
        inspection.refuse(where, "all training pictures are of one class: at least 2 are needed")
        return
    evaluated = occurring[inspection.evaluated]
    if len(evaluated) == 1:
        what = f"all {inspection.evaluated} pictures are of one class: at least 2 are needed"
        inspection.refuse(dataset.listed_in(inspection.evaluated), what)
    elif untested := trained - evaluated:
        inspection.tell(
            f"{len(untested)} of {len(trained)} trained classes have no {inspection.evaluated} "
            f"picture: {named_classes(dataset, untested)}"
        )
    if inspection.evaluated == "val" and (new := occurring["val"] - occurring["train"]):
        are = "class has" if len(new) == 1 else "classes have"
        named = named_classes(dataset, new)
        inspection.tell(f"{len(new)} {are} val pictures and no train picture: {named}")
    unseen = occurring["test"] - trained
    pictures = int(np.isin(labels["test"], list(unseen)).sum())
    if unseen and not config.allow_unseen_classes:
        what = f"{pictures} of the {len(labels['test'])} test pictures are of classes without any "
        what += f"training picture in {where}: {_as_meant(dataset, unseen, trained)}"
        fix = "move pictures of these classes to the training part, or leave the classes out\n"
        fix += "where this is how the data set was published: data.allow_unseen_classes=true"
        inspection.refuse(dataset.listed_in("test"), what, fix)
    if idle := set(range(dataset.num_classes)) - trained:
        are = "picture is" if pictures == 1 else "pictures are"
        tested = f", and {pictures} test {are} of them" if pictures else ""
        inspection.tell(
            f"{len(idle)} of {dataset.num_classes} classes have no training picture{tested}: "
            f"{named_classes(dataset, idle)}"
        )


def _as_meant(dataset: Dataset, unseen: set[int], trained: set[int]) -> str:
    """Classes that were not trained on, each with one that was and is spelled almost alike."""
    if not dataset.named_by_class:
        return named_classes(dataset, unseen)
    alike = {_plain(dataset, label): dataset.listed_label(label) for label in trained}
    meant = [(label, alike.get(_plain(dataset, label))) for label in sorted(unseen)]
    names = [dataset.listed_label(n) + (f" (is it {m}?)" if m else "") for n, m in meant]
    return ", ".join(shortened(names))


def _plain(dataset: Dataset, label: int) -> str:
    return dataset.listed_label(label).strip().casefold()


def _labels(dataset: Dataset, name: str) -> NDArray[np.int64]:
    split = dataset.split(name)
    assert isinstance(split, LabelledSplit)
    return split.labels


def refuse_two_labels(
    dataset: Dataset, labels: dict[str, NDArray[np.int64]], inspection: Inspection
) -> None:
    """Refuse pictures that a list, or two of them, give different classes."""
    known: dict[str, tuple[int, str]] = {}
    contradictions = {}
    for name, files in inspection.files.items():
        for index, (file, label) in enumerate(zip(files, labels[name].tolist(), strict=True)):
            first, place = known.setdefault(file, (label, name))
            if label != first and file not in contradictions:
                contradictions[file] = (
                    f"{dataset.split(name).entry(index)}: {dataset.listed_label(first)} in "
                    f"{dataset.listed_in(place)}, {dataset.listed_label(label)} in "
                    f"{dataset.listed_in(name)}"
                )
    if contradictions:
        what = f"{len(contradictions)} pictures have two labels:"
        lines = [*shortened(list(contradictions.values())), "give every picture one label"]
        inspection.refuse(f"data={dataset.name}", what, "\n".join(lines))


def named_classes(dataset: Dataset, classes: Iterable[int]) -> str:
    """Classes in their order, as the lists call them."""
    names = [dataset.listed_label(label) for label in sorted(classes)]
    more = len(names) - CLASSES_SHOWN
    return ", ".join(names[:CLASSES_SHOWN]) + (f" and {more} more" if more > 0 else "")
