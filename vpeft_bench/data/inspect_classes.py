"""What holds for classes of objects and of pixels alike: which of them anything is of."""

from __future__ import annotations

from collections.abc import Collection

from vpeft_bench.data.findings import Inspection
from vpeft_bench.data.splits import Dataset

PARTS = {"trainval": "training", "test": "test"}
"""What a published result is made of, and what messages call it."""
VALIDATION = "validation"
"""What messages call ``val``."""
CLASSES_SHOWN = 5
"""How many classes are spelled out before the rest are only counted."""


def tell_of_classes(
    dataset: Dataset,
    trained: Collection[int],
    tested: Collection[int],
    inspection: Inspection,
    what: str,
) -> None:
    """Tell which classes a model cannot learn, and over which of them a mean is.

    Args:
        dataset: names the classes.
        trained: those that occur in the training part.
        tested: those that occur in ``test``.
        inspection: is told.
        what: there is of a class: ``object``, ``pixel``.
    """
    total = dataset.num_classes
    unseen = [label for label in range(total) if label not in trained]
    tested_unseen = [label for label in unseen if label in tested]
    idle = [label for label in unseen if label not in tested]
    if tested_unseen:
        has = f"{'has' if len(tested_unseen) == 1 else 'have'} no training {what} but test {what}s"
        names = _named(dataset, tested_unseen)
        inspection.tell(f"{len(tested_unseen)} of {total} classes {has}: {names}")
    if idle:
        has = f"{'has' if len(idle) == 1 else 'have'} no training {what}"
        group = " (a group of other classes)" if dataset.parents.issuperset(idle) else ""
        inspection.tell(f"{len(idle)} of {total} classes {has}: {_named(dataset, idle)}{group}")
    if tested and len(tested) < total:
        occur = "occurs" if len(tested) == 1 else "occur"
        inspection.tell(f"{len(tested)} of {total} classes {occur} among the test {what}s")


def _named(dataset: Dataset, classes: Collection[int]) -> str:
    """Classes in their order, by name where they have names."""
    names = dataset.class_names or range(dataset.num_classes)
    shown = [str(names[label]) for label in sorted(classes)[:CLASSES_SHOWN]]
    more = len(classes) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
