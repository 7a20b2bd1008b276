"""What the classes of a data set for retrieval are looked at for."""

from __future__ import annotations

import numpy as np

from vpeft_bench.data.findings import Inspection
from vpeft_bench.data.inspect_labels import named_classes, refuse_two_labels
from vpeft_bench.data.schema import DataConfig
from vpeft_bench.data.splits import SPLITS, Dataset
from vpeft_bench.tasks.labelled import labelled


def inspect_disjoint_classes(dataset: Dataset, config: DataConfig, inspection: Inspection) -> None:
    """Refuse classes that are both trained on and scored; tell of pictures with none to find."""
    labels = {name: labelled(dataset, name).labels for name in SPLITS}
    counts = {name: np.bincount(of_split) for name, of_split in labels.items()}
    for name, of_split in counts.items():
        inspection.count(name, "classes", int((of_split > 0).sum()))
    refuse_two_labels(dataset, labels, inspection)

    evaluated = inspection.evaluated
    trained = config.final_train if evaluated == "test" else "train"
    where = dataset.listed_in(evaluated)
    for name in (trained, evaluated):
        if (counts[name] > 0).sum() < 2:
            what = f"all {name} pictures are of one class: at least 2 are needed"
            inspection.refuse(dataset.listed_in(name), what)
    if shared := set(labels[trained].tolist()) & set(labels[evaluated].tolist()):
        are = "class is" if len(shared) == 1 else "classes are"
        what = f"{len(shared)} {are} in {trained} as well: {named_classes(dataset, shared)}"
        fix = "retrieval is scored on classes that were not trained on: give each part its own"
        if evaluated == "test":
            fix += "\nto tell classes apart that were trained on: task=classification"
        else:
            fix += "\nprotocol=final does not use val"
        inspection.refuse(where, what, fix)
    alone = int((counts[evaluated] == 1).sum())
    if alone and alone == len(labels[evaluated]):
        what = f"every {evaluated} picture is alone in its class: there is nothing to find"
        inspection.refuse(where, what)
    elif alone:
        are = "picture is alone in its" if alone == 1 else "pictures are alone in their"
        inspection.tell(f"{alone} {evaluated} {are} class and no query")
