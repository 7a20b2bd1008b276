"""What ``python -m vpeft_bench runs ACTION`` does: why, retry, clean, summary."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from vpeft_bench.cli.runs_tables import name_of
from vpeft_bench.errors import ClaimedError, ConfigError, Problem, VpeftBenchError, nearest
from vpeft_bench.files import DAMAGED, TEMPORARY
from vpeft_bench.records.run_record import CLAIM
from vpeft_bench.runs.claim import claimed
from vpeft_bench.runs.status import (
    CHECKPOINT,
    METRICS,
    RunStatus,
    State,
    log_of,
    notes_now,
    statuses,
    sweeps,
)
from vpeft_bench.terminal import to_output

LAST_LINES = 15
EARLIER_LOCK = "run.lock"
"""What earlier versions left beside every run."""


def why(results_dir: Path, options: argparse.Namespace) -> int:
    """All that is known of one run."""
    run, console = _named(results_dir, options.run), to_output()
    console.print(f"run:    {run.directory}", soft_wrap=True)
    console.print(f"state:  {run.state}")
    if run.reason:
        console.print(f"reason: {run.reason}", soft_wrap=True)
    if run.holder is not None:
        console.print(f"held:   {run.holder}", soft_wrap=True)
    if run.progress is not None:
        console.print(f"epochs: {run.progress.epoch} whole ones")
    if run.state is State.STOPPED:
        goes_on = (run.directory / CHECKPOINT).is_file()
        what = "goes on from its checkpoint" if goes_on else "starts anew"
        console.print(f"next:   the command that began it {what}")
    elif run.state is State.FAILED:
        name = name_of(run, results_dir)
        console.print(f"next:   python -m vpeft_bench runs retry {name}", soft_wrap=True)
    if (log := log_of(results_dir, run.directory)) is not None:
        console.print(f"log:    {log}", soft_wrap=True)
        for line in log.read_text(errors="replace").splitlines()[-LAST_LINES:]:
            console.print(f"  {line}", soft_wrap=True)
    return 0


def retry(results_dir: Path, options: argparse.Namespace) -> int:
    """Run again what failed, one after the other; 1 where some failed again."""
    console, left = to_output(), 0
    if options.run:
        runs = [_named(results_dir, name) for name in options.run]
    else:
        runs = [run for run in statuses(results_dir) if run.state is State.FAILED]
    for run in runs:
        name = name_of(run, results_dir)
        if run.record is None or run.state is State.RUNNING:
            what = "is running" if run.state is State.RUNNING else "has no record of what was asked"
            console.print(f"{name}: {what}; left alone", soft_wrap=True)
            continue
        console.print(f"\n{name}: was {run.state}: {run.reason}", soft_wrap=True)
        left += not _again(run, results_dir)
    console.print(f"{len(runs)} tried again, {left} failed" if runs else "nothing has failed")
    return 1 if left else 0


def _again(run: RunStatus, results_dir: Path) -> bool:
    """Run what a record asked for; whether it went well."""
    from vpeft_bench.cli.launch import ask_for_run
    from vpeft_bench.config.schema import from_plain

    assert run.record is not None
    console, config = to_output(), from_plain(run.record.asked)
    config.results_dir = str(results_dir)  # where the folder lies now
    try:
        answer = ask_for_run(config, console)
    except VpeftBenchError as error:
        console.print(f"failed: {error}", soft_wrap=True)
        return False
    answer.show(console)
    return answer.went_well


def clean(results_dir: Path, options: argparse.Namespace) -> int:
    """List what killed processes have left, or remove it; never of a run in work."""
    console, count, removed = to_output(), 0, 0
    for directory, files in _leftovers(results_dir):
        for file in files:
            console.print(str(file), soft_wrap=True)
        count += len(files)
        if options.yes:
            removed += _removed(directory, files)
    if options.yes:
        console.print(f"{removed} removed")
    elif count:
        console.print(
            f"{count} would be removed; nothing was: python -m vpeft_bench runs clean --yes"
        )
    else:
        console.print("nothing to remove")
    return 0


def _leftovers(results_dir: Path) -> Iterator[tuple[Path, list[Path]]]:
    """By run: temporary files, damaged ones, abandoned claims, and what nothing goes on from."""
    for run in statuses(results_dir):
        if run.state in (State.RUNNING, State.WAITING):
            continue
        files = [
            path
            for path in sorted(run.directory.iterdir())
            if path.suffix == f".{TEMPORARY}"
            or f".{DAMAGED}" in path.name
            or path.name in (CLAIM, EARLIER_LOCK)
            or (path.name == METRICS and _is_dead(run))
        ]
        if files:
            yield run.directory, files


def _is_dead(run: RunStatus) -> bool:
    """Whether a run left neither a record nor anything to go on from."""
    kept = (CHECKPOINT, "selection.state", "selection.safetensors")
    return run.record is None and not any((run.directory / name).exists() for name in kept)


def _removed(directory: Path, files: Sequence[Path]) -> int:
    """Remove them, unless a process has begun to work there; how many went."""
    try:
        with claimed(directory / CLAIM):
            for file in files:
                if file.is_dir():
                    shutil.rmtree(file, ignore_errors=True)
                elif file.name != CLAIM:
                    file.unlink(missing_ok=True)
    except ClaimedError:
        return 0
    with suppress(OSError):  # only where nothing else lies there
        directory.rmdir()
    return len(files)


def summary(results_dir: Path, options: argparse.Namespace) -> int:
    """The closing table of a sweep as things stand now; 0 where all of it went well."""
    from vpeft_bench.cli.cost import COST
    from vpeft_bench.runs.sweep import print_summary, read_plan

    sweep = _sweep(results_dir, options.sweep)
    notes, console = notes_now(sweep), to_output()
    if read_plan(sweep).ask == COST.ask:
        COST.summarise(notes, console)
    else:
        print_summary(notes, str(results_dir), console)
    return 0 if all(note.went_well for note in notes) else 1


def _sweep(results_dir: Path, typed: str | None) -> Path:
    known = sweeps(results_dir)
    if typed is None and known:
        return known[-1]
    path = Path(typed or "")
    for place in (path, results_dir / "sweeps" / path.name):
        if typed is not None and (place / "sweep.json").is_file():
            return place
    fix = "\n".join(["SWEEP is one of", *map(str, known[-5:])]) if known else ""
    raise ConfigError([Problem(typed or str(results_dir), "no such sweep", fix)])


def _named(results_dir: Path, typed: str) -> RunStatus:
    """The run that was typed: its directory, its place below the results, or a part of it."""
    runs = {name_of(run, results_dir): run for run in statuses(results_dir)}
    asked = typed.rstrip("/").removesuffix("/record.json")
    for name, run in runs.items():
        if (
            asked in (name, str(run.directory))
            or Path(asked).absolute() == run.directory.absolute()
        ):
            return run
    parts = [name for name in runs if asked in name]
    if len(parts) == 1:
        return runs[parts[0]]
    what = f"names {len(parts)} runs" if parts else "no such run"
    close = nearest(asked, runs)
    fix = "\n".join(parts[:5]) if parts else f"did you mean {close}" if close else ""
    fix = (
        fix or "python -m vpeft_bench runs lists those that failed; a run is named by its directory"
    )
    raise ConfigError([Problem(typed, what, fix)])
