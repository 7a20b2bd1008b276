"""What a data set is looked at for, before anything is trained on it.

A number is printed only where it can mean what it says. So every data set is inspected, whichever
reader opened it: what could not mean anything is refused, what a reader of the number should know
is told and becomes a label of the record, and what was counted is recorded. The readers refuse what
they cannot read; what can be read and is wrong all the same is found here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vpeft_bench.data.schema import DataConfig
from vpeft_bench.data.splits import Dataset
from vpeft_bench.errors import Problem, UnsoundDataError
from vpeft_bench.record import DataFacts


@dataclass
class Inspection:
    """What was found; inspectors add to it.

    Attributes:
        problems: why a result on this data set could not mean what it says.
        notices: what is told beside every result, one short clause each: they become labels.
        facts: what was counted.
    """

    problems: list[Problem] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    facts: DataFacts = field(default_factory=DataFacts)

    def refuse(self, where: str, what: str, fix: str = "") -> None:
        """A result could not mean what it says."""
        self.problems.append(Problem(where, what, fix))

    def tell(self, notice: str) -> None:
        """Something that belongs beside every result."""
        self.notices.append(notice)

    def require_sound(self) -> None:
        """Raise UnsoundDataError with everything that was refused, if there is anything."""
        if self.problems:
            raise UnsoundDataError(self.problems)


def inspect(dataset: Dataset, config: DataConfig, *, full: bool = False) -> Inspection:
    """Look at a data set.

    Args:
        dataset: as its reader opened it.
        config: its configuration.
        full: decode every picture and every label map, not a sample of them.
    """
    inspection = Inspection(notices=list(dataset.notices))
    inspection.facts = DataFacts(
        pictures={name: len(split) for name, split in dataset.splits.items()},
        classes=dataset.num_classes,
    )
    return inspection
