"""What the inspection of a data set finds: problems, notices and numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vpeft_bench.errors import Problem, UnsoundDataError
from vpeft_bench.records.data_facts import DataFacts

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]
"""Shows how far an iterable has come: it, what is done, how many items it has."""


def untracked(items: Iterable[Any], what: str, total: int) -> Iterable[Any]:
    """The items, and nothing shown."""
    return items


@dataclass
class Inspection:
    """What was found; inspectors add to it.

    Attributes:
        full: look at every picture and every label map, not at a sample of them.
        max_detections: most detections of a picture that the head gives; None where no head is
            chosen.
        evaluated: the split that is reported.
        track: shows the progress of what takes long.
        files: which file each picture of a split is, links resolved: two paths of one file are
            equal here. Splits of rendered pictures are not in it.
        problems: why a result on this data set could not mean what it says.
        notices: what is told beside every result, one short clause each: they become labels.
        facts: what was counted.
        pixels: of the pictures that were decoded, by split and index, the hash of their pixels.
    """

    full: bool = False
    max_detections: int | None = None
    evaluated: str = "test"
    track: Track = untracked
    files: Mapping[str, Sequence[str]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    facts: DataFacts = field(default_factory=DataFacts)
    pixels: dict[str, dict[int, str]] = field(default_factory=dict)

    def refuse(self, where: str, what: str, fix: str = "") -> None:
        """A result could not mean what it says."""
        self.problems.append(Problem(where, what, fix))

    def tell(self, notice: str) -> None:
        """Something that belongs beside every result."""
        self.notices.append(notice)

    def count(self, split: str, what: str, number: int) -> None:
        """A number of ``DataFacts.counts``."""
        self.facts.counts.setdefault(split, {})[what] = number

    def require_sound(self) -> None:
        """Raise UnsoundDataError with everything that was refused, if there is anything."""
        if self.problems:
            raise UnsoundDataError(self.problems)
