"""The errors a user can meet. Each says what was wrong, where, and what to type instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vpeft_bench.formats import counted, printable, printable_lines


@dataclass(frozen=True)
class Problem:
    """One thing wrong with what was asked.

    Attributes:
        where: the key, file or object it concerns, as the user would write it.
        what: what is wrong with it.
        fix: what to type or do instead; may span several lines.
    """

    where: str
    what: str
    fix: str = ""

    def __str__(self) -> str:
        fix = "".join(f"\n      {printable(line)}" for line in self.fix.splitlines())
        return f"{printable(self.where)}: {printable_lines(self.what)}{fix}"


@dataclass(frozen=True)
class IncompatibleProblem(Problem):
    """Two choices, each right by itself, that cannot be had together.

    A single run is refused; in a sweep only such combinations fail.
    """


class VpeftBenchError(Exception):
    """Base class of every error this package raises on purpose."""


class ProblemsError(VpeftBenchError):
    """An error that carries every problem found, not only the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = counted(len(self.problems), "problem")
        listing = "\n".join(f"  - {problem}" for problem in self.problems)
        super().__init__(f"{count}; nothing was run\n{listing}")

    def __reduce__(self) -> tuple[type[ProblemsError], tuple[tuple[Problem, ...]]]:
        """Pickled with its problems, not its text: workers of a sweep send errors back."""
        return type(self), (self.problems,)


class ConfigError(ProblemsError):
    """The configuration asks for something that does not exist or cannot work."""


class MissingDataError(ProblemsError):
    """A data set is not on disk, or not in the layout it should have."""


class UnsoundDataError(ProblemsError):
    """A data set can be read, but a result on it could not mean what it says."""


class DivergedError(VpeftBenchError):
    """A loss, gradient norm, weight or output is not finite, and the run was ended.

    Attributes:
        quantity: what is not finite: ``loss``, ``gradient norm``, ``weight NAME``, ``output in
            evaluation``, or what was computed before training.
        epoch: in which it happened, from 1; 0 before training.
        step: batch of that epoch, from 1; 0 where it was found between steps.
    """

    def __init__(self, quantity: str, epoch: int, step: int) -> None:
        self.quantity, self.epoch, self.step = quantity, epoch, step
        where = "before training" if not epoch else f"in epoch {epoch}"
        step_text = f", step {step}" if step else ""
        super().__init__(f"diverged: the {quantity} is not finite {where}{step_text}")

    def __reduce__(self) -> tuple[type[DivergedError], tuple[str, int, int]]:
        """Pickled with what its constructor takes."""
        return type(self), (self.quantity, self.epoch, self.step)


class DamagedError(VpeftBenchError):
    """A file that an unfinished run goes on from cannot be used; the run starts without it.

    Attributes:
        path: the file.
        what: what is wrong with it.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path, self.what = path, what
        super().__init__(f"{path}: {what}")

    def __reduce__(self) -> tuple[type[DamagedError], tuple[Path, str]]:
        """Pickled with what its constructor takes."""
        return type(self), (self.path, self.what)


class MissingWeightsError(ProblemsError):
    """Pretrained weights are neither on disk nor to be had from the hub."""


class WeightsMismatchError(VpeftBenchError):
    """A checkpoint does not fill the backbone completely; the message lists the names."""


class UnsupportedBackboneError(VpeftBenchError):
    """The method is not defined on this backbone, or the backbone has no block map."""


class MethodOptionError(ProblemsError):
    """A method was given an option it does not have, or a value out of range."""


class MissingExtraError(MethodOptionError):
    """The method is another library's, which is not installed; the message says what to type."""


class AlreadyAttachedError(VpeftBenchError):
    """The model already carries a method of that name, or the attachment is spent."""


class NotStackableError(VpeftBenchError):
    """Two attachments cannot be in one model at the same time."""


class NotSelectedError(VpeftBenchError):
    """The method looks at training data before it is placed, and has not yet."""


class NotMergeableError(VpeftBenchError):
    """The method cannot be folded into the backbone's own weights."""


class DeltaMismatchError(VpeftBenchError):
    """A delta checkpoint belongs to another method, other options or other base weights."""


class RecordError(VpeftBenchError):
    """A run record cannot be read or written; the message names the file.

    Attributes:
        path: the record's file.
        what: what is wrong with it.
    """

    def __init__(self, path: Path | str, what: str) -> None:
        self.path = Path(path)
        self.what = what
        super().__init__(f"{path}: {what}")

    def __reduce__(self) -> tuple[type[RecordError], tuple[Path, str]]:
        """Pickled with what its constructor takes."""
        return type(self), (self.path, self.what)


class ClaimedError(VpeftBenchError):
    """Another process works on what was asked for.

    Args:
        path: its claim.
        holder: which process that is.
    """

    def __init__(self, path: Path, holder: str) -> None:
        self.path, self.holder = path, holder
        super().__init__(f"is being worked on: {holder}")

    def __reduce__(self) -> tuple[type[ClaimedError], tuple[Path, str]]:
        """Pickled with what its constructor takes."""
        return type(self), (self.path, self.holder)


class ClaimLostError(VpeftBenchError):
    """This process gave no sign of life for so long that another has taken its work over.

    Args:
        path: the claim that was its own.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(f"{path} is gone, or another process's now: it has taken over from here")

    def __reduce__(self) -> tuple[type[ClaimLostError], tuple[Path]]:
        """Pickled with what its constructor takes."""
        return type(self), (self.path,)


class DeviceBusyError(VpeftBenchError):
    """Something else uses the device, and a measurement would show it.

    Args:
        use: the device, and what is known of its use.
    """

    def __init__(self, use: str) -> None:
        self.use = use
        super().__init__(
            f"{use}; nothing was measured. Wait until it is free, or type cost.allow_busy=true: "
            "the card is marked then"
        )

    def __reduce__(self) -> tuple[type[DeviceBusyError], tuple[str]]:
        """Pickled with what its constructor takes."""
        return type(self), (self.use,)


def told(error: OSError) -> str:
    """What the system refused, and of which file, in one line."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{' '.join((error.strerror or str(error)).split())}"


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name most like ``name``, in whatever case; None where nothing comes close."""
    folded = {each.casefold(): each for each in valid}
    matches = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)
    return folded[matches[0]] if matches else None


def unknown_name(where: str, name: str, valid: Iterable[str]) -> Problem:
    """The problem that ``where=name`` names nothing, with the nearest valid choice to type."""
    names = sorted(valid)
    close = nearest(name, names)
    fix = [f"did you mean {where}={close}"] if close else []
    fix.append(f"valid: {', '.join(names)}")
    return Problem(where=f"{where}={name}", what="no such choice", fix="\n".join(fix))
