"""What the names of the classes are looked at for: one class that is written in two ways."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict

from vpeft_bench.data.findings import Inspection
from vpeft_bench.data.schema import DataConfig
from vpeft_bench.data.splits import Dataset

SHOWN = 3
"""How many groups of names are spelled out before the rest are only counted."""
NO_LABEL = frozenset({"nan", "null", "<na>", "n/a", "#n/a"})
"""What programs write for a value that is missing, in lower case."""


def inspect_names(dataset: Dataset, config: DataConfig, inspection: Inspection) -> None:
    """Tell of classes whose names differ in spelling alone, or say that there is no label."""
    names = [str(name) for name in dataset.class_names or dataset.category_ids or ()]
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[_meant(name)].append(name)
    if alike := [" and ".join(map(repr, group)) for group in groups.values() if len(group) > 1]:
        more = f" and {len(alike) - SHOWN} more" if len(alike) > SHOWN else ""
        told = "names of classes that differ in spelling alone"
        inspection.tell(f"{told}: {', '.join(alike[:SHOWN])}{more}")
    if missing := [name for name in names if name.strip().lower() in NO_LABEL]:
        inspection.tell(f"a class is called {missing[0]!r}: are its pictures without a label?")


def _meant(name: str) -> str:
    """The name without case, forms of letters, blanks and ways to write a number."""
    folded = unicodedata.normalize("NFKC", name).casefold().strip()
    if re.fullmatch(r"[0-9]+(\.0*)?", folded):
        return folded.partition(".")[0].lstrip("0") or "0"
    return re.sub(r"[\s_-]+", " ", folded)
