"""Where the runs below a folder stand, read from what lies there while others write."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from statistics import fmean
from urllib.parse import unquote

from vpeft_bench.errors import RecordError
from vpeft_bench.records.run_record import CLAIM, RECORD_NAME, RunRecord, Status, read
from vpeft_bench.runs.claim import Holder, holder_of
from vpeft_bench.runs.sweep import BUSY, DONE, Note, PlannedJob, last_notes, notes_of, read_plan

SWEEPS = "sweeps"
METRICS, CHECKPOINT = "metrics.csv", "last.ckpt"
LAST = 5
"""Epochs whose time stands for that of the next ones."""


class State(StrEnum):
    """Where a run stands."""

    DONE = "done"
    RUNNING = "running"
    FAILED = "failed"
    DIVERGED = "diverged"
    STOPPED = "stopped"
    """Begun, and nobody works on it: it goes on from its checkpoint, if it has one."""
    WAITING = "waiting"
    """A sweep asked for it, and nobody has begun."""


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        epoch: whole ones.
        seconds: of an epoch's training, the mean of the last ones.
        told: when the last one ended, seconds since 1970 by the file system's clock.
    """

    epoch: int
    seconds: float
    told: float


@dataclass(frozen=True)
class RunStatus:
    """A run, and where it stands.

    Attributes:
        directory: of the run.
        method, data: their names.
        state: where it stands.
        record: what was recorded, if anything.
        holder: the process that works on it, if one does.
        progress: of its training, where it has begun.
    """

    directory: Path
    method: str
    data: str
    state: State
    record: RunRecord | None = None
    holder: Holder | None = None
    progress: Progress | None = None

    @property
    def reason(self) -> str:
        """Why it is not done, as its record says it."""
        error = None if self.record is None else self.record.error
        return (error or "").removeprefix(f"{self.state}: ")


def statuses(results_dir: Path) -> list[RunStatus]:
    """Every run below ``results_dir`` that was begun, or that one of its sweeps asked for."""
    found = {path: status_of(path) for path in _begun(results_dir)}
    for sweep in sweeps(results_dir):
        for job in _jobs(sweep):
            if job.file is not None and job.file.endswith(RECORD_NAME):
                path = Path(os.path.normpath(sweep / job.file)).parent
                found.setdefault(path, RunStatus(path, job.method, job.data, State.WAITING))
    return [found[path] for path in sorted(found)]


def sweeps(results_dir: Path) -> list[Path]:
    """The directories of sweeps below ``results_dir``, oldest first; those that have a plan."""
    return sorted(path.parent for path in (results_dir / SWEEPS).glob("*/sweep.json"))


def damaged_plans(results_dir: Path) -> list[str]:
    """The sweeps whose plan cannot be read, each with why: what they wait for is not known."""
    damaged = []
    for sweep in sweeps(results_dir):
        try:
            read_plan(sweep)
        except RecordError as error:
            damaged.append(str(error))
    return damaged


def _jobs(sweep: Path) -> Sequence[PlannedJob]:
    """What a sweep was asked for; nothing where its plan is damaged."""
    try:
        return read_plan(sweep).jobs
    except RecordError:
        return ()


def status_of(directory: Path) -> RunStatus:
    """Where a run stands that was begun."""
    record = None
    with suppress(OSError, RecordError):
        record = read(directory / RECORD_NAME)
    holder, progress = holder_of(directory / CLAIM), _progress(directory / METRICS)
    if holder is not None:
        state = State.RUNNING
    elif record is None or record.outcome == Status.INTERRUPTED:
        state = State.STOPPED
    elif record.outcome == Status.OK:
        state = State.DONE
    else:
        state = State.DIVERGED if record.diverged else State.FAILED
    data, _, method = map(_name, directory.parts[-5:-2])
    return RunStatus(directory, method, data, state, record, holder, progress)


def log_of(results_dir: Path, directory: Path) -> Path | None:
    """The log of how a run failed in a sweep, the latest one; None where there is none."""
    for sweep in reversed(sweeps(results_dir)):
        notes = last_notes(sweep)
        for job in _jobs(sweep):
            note = notes.get(frozenset(job.overrides))
            if note is None or job.file is None:
                continue
            log = sweep / note.place / "traceback.txt"
            if Path(os.path.normpath(sweep / job.file)).parent == directory and log.is_file():
                return log
    return None


def notes_now(sweep: Path) -> list[Note]:
    """The notes of a sweep, and what others, or later sweeps, have done of it since."""
    files: Mapping[frozenset[str], str | None] = {
        frozenset(job.overrides): job.file for job in read_plan(sweep).jobs
    }
    notes = []
    for note in notes_of(sweep):
        file = files.get(frozenset(note.overrides))
        path = None if file is None else Path(os.path.normpath(sweep / file))
        note = replace(note, file=None if path is None else str(path))
        if path is not None and path.name == RECORD_NAME and not note.went_well:
            note = _now(note, path)
        notes.append(note)
    return notes


def _now(note: Note, path: Path) -> Note:
    one = status_of(path.parent)
    if one.state is State.RUNNING:
        return replace(note, result=BUSY, reason=str(one.holder))
    last = one.record.happened.last_epoch if one.record is not None else None
    if one.state is not State.DONE or last is None:
        return note
    note = replace(note, metric=last.headline, value=last.value)
    return replace(note, result=DONE, went_well=True, reason="outside this sweep")


def _begun(results_dir: Path) -> Iterator[Path]:
    """The directories of runs of which anything lies there."""
    for place, folders, files in os.walk(results_dir):
        if Path(place) == results_dir and SWEEPS in folders:
            folders.remove(SWEEPS)
        if {RECORD_NAME, CLAIM, METRICS, CHECKPOINT} & set(files):
            folders.clear()
            yield Path(place)


def _progress(path: Path) -> Progress | None:
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
            told = os.fstat(file.fileno()).st_mtime
        seconds = [float(row["train_seconds"]) for row in rows[-LAST:]]
        return Progress(int(rows[-1]["epoch"]), fmean(seconds), told)
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _name(folder: str) -> str:
    """The name that a directory was made of, see ``run_record.directory_name``."""
    return unquote(folder.replace("+", "/"))
