"""One job of a command, alone or in a sweep; every job of a sweep leaves a note of its end.

Runs, cost cards and whatever else is asked for by a composed config are jobs: the same goes for all
of them, see :class:`Answer`. At the end of a sweep its notes become one table.
"""

from __future__ import annotations

import json
import os
import shlex
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vpeft_bench.config.schema import RunConfig, typed
from vpeft_bench.errors import ProblemsError, RecordError, VpeftBenchError
from vpeft_bench.files import write_atomically
from vpeft_bench.metric_names import shown, title
from vpeft_bench.records.run_record import Status, leaderboard_command, read
from vpeft_bench.registry import found
from vpeft_bench.runs.interruption import Interrupted, received
from vpeft_bench.terminal import Terminal

if TYPE_CHECKING:
    from vpeft_bench.runs.rounds import Sweep

NOTE = "outcome.json"
JOB = "job.json"
T = TypeVar("T")
PLAN = "sweep.json"
DONE, SKIPPED, BUSY, NOT_RUN = "done", "skipped", "busy", "not run"
FAILED, DIED, INTERRUPTED = "failed", "died", "interrupted"


@dataclass(frozen=True)
class Answer:
    """What became of one job.

    Attributes:
        result: in one word.
        went_well: whether nothing is left to be done about it.
        reason: why it is what it is, where there is something to say.
        file: the record or the card.
        metric, value: the headline of a run that was scored.
        optimised: what a sweeper may optimise: a validation metric, never one of the test split.
        show: tells whoever asked for this job alone.
    """

    result: str
    went_well: bool
    reason: str = ""
    file: Path | None = None
    metric: str | None = None
    value: float | None = None
    optimised: float | None = None
    show: Callable[[Console], None] = lambda console: None


Ask = Callable[[RunConfig, Console], Answer]
"""Does what a config asks for, unless it was done before."""


@dataclass(frozen=True)
class Note:
    """What a job of a sweep leaves, as JSON; see :class:`Answer`.

    Attributes:
        overrides: of the job.
        file: path of the record or the card, if any.
        place: name of the folder of the job in that of the sweep.
    """

    overrides: list[str]
    result: str
    went_well: bool = False
    reason: str = ""
    file: str | None = None
    metric: str | None = None
    value: float | None = None
    place: str = ""


@dataclass(frozen=True)
class PlannedJob:
    """A job that a sweep was asked for.

    Attributes:
        overrides: of the job.
        file: of the record or the card, from the sweep's directory; null where that was not known.
        method, data: their names.
    """

    overrides: list[str]
    file: str | None
    method: str
    data: str


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep was asked for, as JSON in its directory.

    Attributes:
        ask: what does a job, see :data:`Ask`, as ``module:function``.
        results_dir: from the sweep's directory.
        jobs: all of them.
    """

    ask: str
    results_dir: str
    jobs: list[PlannedJob]


class OneJob:
    """What Hydra calls for every job, in whichever process.

    Args:
        ask: ``module:function`` that does it: launchers send this object to other processes.
        sweep: all jobs, where there are several; it stays in this process.

    Attributes:
        answer: of the only job, where there is no sweep: Hydra hands it to nobody.
        error: that the only job raised; Hydra would show a traceback.
    """

    def __init__(self, ask: str, sweep: Sweep | None = None) -> None:
        self.ask = ask
        self.sweep = sweep
        self.answer: Answer | None = None
        self.error: VpeftBenchError | None = None

    def __reduce__(self) -> tuple[type[OneJob], tuple[str]]:
        """Pickled as what does a job, and nothing that became of any."""
        return type(self), (self.ask,)

    def __call__(self, config: DictConfig) -> float | None:
        """Do one job; of a sweep, note what became of it."""
        console, hydra_config = Terminal(), HydraConfig.get()
        ask: Ask = found(self.ask)
        if hydra_config.mode is RunMode.MULTIRUN:
            directory = Path(hydra_config.runtime.output_dir)
            return _noted(ask, config, directory, list(hydra_config.overrides.task), console)
        try:
            self.answer = ask(typed(config), console)
        except VpeftBenchError as error:
            self.error = error
        else:
            self.answer.show(console)
        return None


def _noted(
    ask: Ask, config: DictConfig, directory: Path, overrides: list[str], console: Console
) -> float | None:
    """One job of a sweep; whatever goes wrong, the next one gets its turn.

    Returns:
        What a sweeper may optimise.
    """

    def note(answer: Answer) -> None:
        write_note(directory, overrides, answer)

    directory.mkdir(parents=True, exist_ok=True)
    write_note(directory, overrides, Answer(DIED, False, "the process ended abruptly"), JOB)
    try:
        meanwhile = _made_meanwhile(directory, overrides)
        asked = typed(config)
        if meanwhile is not None:  # by another process, or by this job before it was requeued
            asked = replace(asked, rerun=False)
        answer = _failed(meanwhile) or ask(asked, console)
    except (Interrupted, KeyboardInterrupt) as error:
        note(Answer(INTERRUPTED, False, str(error) or INTERRUPTED))
        raise
    except Exception as error:  # one failed job must not cost the others
        with suppress(OSError):
            (directory / "traceback.txt").write_text(traceback.format_exc())
        problems = error.problems if isinstance(error, ProblemsError) else ()
        reason = "; ".join(f"{p.where}: {p.what}" for p in problems) or str(error)
        note(Answer(FAILED, False, reason))
        console.print(f"{FAILED}: {error}", soft_wrap=True)
        return None
    note(answer)
    if not answer.went_well:
        console.print(f"{answer.result}: {answer.reason}", soft_wrap=True)
    return answer.optimised


def write_note(directory: Path, overrides: list[str], answer: Answer, name: str = NOTE) -> None:
    """Note in the folder of a job what became of it.

    Args:
        name: of the file.
    """
    file = None if answer.file is None else str(answer.file)
    told = (answer.result, answer.went_well, answer.reason, file, answer.metric, answer.value)
    content = asdict(Note(overrides, *told, directory.name))
    write_atomically(directory / name, json.dumps(content, indent=1).encode())


def _made_meanwhile(directory: Path, overrides: list[str]) -> Path | None:
    """The record or card of a job, if it was written since the sweep began.

    Then it is not run again because of ``rerun=true``, nor tried again where it failed: of several
    processes that work on a sweep, one does each job. Both times are of the file system's clock.
    """
    plan = directory.parent / PLAN
    try:
        began = plan.stat().st_mtime_ns
        file = _places(directory.parent, began).get(frozenset(overrides))
        path = None if file is None else directory.parent / file
        return path if path is not None and path.stat().st_mtime_ns > began else None
    except (OSError, RecordError):
        return None


@lru_cache(maxsize=1)  # all jobs of a sweep that this process does ask for it
def _places(sweep: Path, began: int) -> Mapping[frozenset[str], str | None]:
    """The file of every job of the sweep whose plan was written then, by its overrides."""
    return {frozenset(job.overrides): job.file for job in read_plan(sweep).jobs}


def _failed(path: Path | None) -> Answer | None:
    """How the run failed whose record was written since the sweep began."""
    try:
        record = None if path is None else read(path)
    except (OSError, RecordError):  # a card, which says itself what came of it
        return None
    if path is None or record is None or record.outcome in (Status.OK, Status.INTERRUPTED):
        return None
    path = Path(os.path.relpath(path))
    return Answer(FAILED, False, f"{record.error} (in another process)", path)


class NoteSweep(Callback):
    """Hydra callback: tells the command line where the jobs of a sweep leave their notes."""

    directory: Path | None = None
    results_dir: str = ""
    detached = False

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note the sweep's directory, which Hydra names."""
        NoteSweep.directory = Path(config.hydra.sweep.dir)
        NoteSweep.results_dir = os.path.expanduser(config.results_dir)
        NoteSweep.detached = bool(config.sweep.detach)


def summarise(show: Callable[[Sequence[Note], Console], None]) -> int:
    """Show what became of every job of the sweep that ran in this process, if there was one.

    Returns:
        0 if they all went well, or go on by themselves; else 1.
    """
    if NoteSweep.directory is None:
        return 0
    if NoteSweep.detached:
        _say_how_to_look(NoteSweep.directory, NoteSweep.results_dir)
        return 0
    notes = notes_of(NoteSweep.directory)
    if notes:
        show(notes, Terminal())
    return 0 if all(note.went_well for note in notes) else 1


def _say_how_to_look(directory: Path, results_dir: str) -> None:
    """What to type to see how jobs get on that this process does not wait for."""
    where, console = f"--records {shlex.quote(results_dir)}", Terminal()
    runs = "python -m vpeft_bench runs"
    console.print("the jobs go on by themselves", soft_wrap=True)
    console.print(f"where they stand:  {runs} --watch {where}", soft_wrap=True)
    summary = f"{runs} summary {shlex.quote(directory.name)} {where}"
    console.print(f"the closing table: {summary}", soft_wrap=True)


def notes_of(directory: Path) -> list[Note]:
    """One note for each job of a sweep, in the order they were asked for."""
    notes = last_notes(directory)
    try:
        plan = read_plan(directory)
    except (OSError, RecordError):  # of a sweeper that chooses values itself, or damaged: those run
        return list(notes.values())
    return [notes.get(frozenset(job.overrides), Note(job.overrides, NOT_RUN)) for job in plan.jobs]


def read_plan(directory: Path) -> SweepPlan:
    """What a sweep was asked for.

    Raises:
        OSError: it was written by an earlier version, or by a sweeper that chooses values itself.
        RecordError: it is damaged.
    """
    return _told_by(directory / PLAN, _plan)


def read_note(path: Path) -> Note:
    """What became of a job.

    Raises:
        OSError: it has left no note.
        RecordError: the note is damaged.
    """
    return _told_by(path, _note)


def _plan(content: dict[str, Any]) -> SweepPlan:
    return SweepPlan(**{**content, "jobs": [PlannedJob(**job) for job in content["jobs"]]})


def _note(content: dict[str, Any]) -> Note:
    return Note(**content)


def _told_by(path: Path, make: Callable[[dict[str, Any]], T]) -> T:
    """What a file of a sweep says.

    Raises:
        OSError: it is not there.
        RecordError: it is damaged.
    """
    try:
        return make(json.loads(path.read_bytes()))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RecordError(path, f"is damaged: {error}") from error


def last_notes(directory: Path) -> Mapping[frozenset[str], Note]:
    """The last note of every job of a sweep, by its overrides; a job without a whole one died."""
    notes = {}
    for folder in sorted(directory.glob("*/"), key=lambda path: _number(path.name)):
        started, ended = folder / JOB, folder / NOTE
        if not (started.exists() or ended.exists()):
            continue
        try:
            note = read_note(ended if ended.exists() else started)
        except RecordError as error:  # what began knows which job it was, unless that is lost too
            try:
                note = replace(read_note(started), reason=f"its note {error.what}")
            except (OSError, RecordError):
                continue
        if not ended.exists() and (signal := received()) is not None:
            note = replace(note, result=INTERRUPTED, reason=f"{signal.name} ended the sweep")
        notes[frozenset(note.overrides)] = note
    return notes


def _number(name: str) -> tuple[int, str]:
    """Job directories are numbered; others, if any, come last."""
    return (int(name), "") if name.isdigit() else (1 << 60, name)


def print_summary(notes: Sequence[Note], results_dir: str, console: Console) -> None:
    """One row per run, of its overrides those that vary; then the counts."""
    shared = set.intersection(*(set(note.overrides) for note in notes)) if notes[1:] else set()
    same = [override for override in notes[0].overrides if override in shared] if notes else []
    console.print(f"\nsweep: {' '.join(same)}".rstrip(": "), soft_wrap=True)
    table = Table()
    table.add_column("run", overflow="fold")
    table.add_column("result")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("why", overflow="fold")
    colours = {DONE: "green", SKIPPED: "cyan", BUSY: "yellow", NOT_RUN: "yellow"}
    for note in notes:
        colour = colours.get(note.result, "red")
        metric, value = note.metric, note.value
        table.add_row(
            " ".join(o for o in note.overrides if o not in shared),
            Text(note.result, colour),
            "" if metric is None else title(metric),
            "" if metric is None or value is None else shown(metric, value),
            note.reason,
        )
    console.print(table)
    counts = {
        result: sum(note.result == result for note in notes)
        for result in (DONE, SKIPPED, BUSY, FAILED, INTERRUPTED, DIED, NOT_RUN)
    }
    console.print(", ".join(f"{count} {result}" for result, count in counts.items() if count))
    console.print(f"leaderboard: {leaderboard_command(results_dir)}", soft_wrap=True)
