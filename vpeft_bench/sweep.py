"""Sweeps: every job leaves a note of what became of it; at the end the notes become one table."""

from __future__ import annotations

import json
import os
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vpeft_bench.config import Protocol, typed
from vpeft_bench.errors import ProblemsError, RecordError
from vpeft_bench.files import write_atomically
from vpeft_bench.interruption import Interrupted, received
from vpeft_bench.metric_names import shown, title
from vpeft_bench.record import LOCK, Metrics, Status, leaderboard_command, read
from vpeft_bench.terminal import Terminal

NOTE = "outcome.json"
JOB = "job.json"
INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Job:
    """One combination of a sweep: its directory below the sweep's, and its overrides."""

    directory: Path
    overrides: list[str]


def run_job(job: Job, config: DictConfig, console: Console) -> float | None:
    """Run one job and note its outcome; whatever goes wrong, the next job gets its turn.

    Returns:
        The headline metric of the last epoch, percent, under ``protocol=select``; else None.
    """
    from vpeft_bench import validation
    from vpeft_bench.run import Outcome, run

    def note(result: str, reason: str, record: str | None, last: Metrics | None) -> None:
        content = {
            "overrides": job.overrides,
            "result": result,
            "reason": reason,
            "record": record,
            "metric": last.headline if last else None,
            "value": last.value if last else None,
        }
        write_atomically(job.directory / NOTE, json.dumps(content, indent=1).encode())

    job.directory.mkdir(parents=True, exist_ok=True)
    started = {"overrides": job.overrides, "result": "died", "reason": "the process ended abruptly"}
    write_atomically(job.directory / JOB, json.dumps(started, indent=1).encode())
    try:
        run_config = typed(config)
        validation.check(run_config)
        outcome: Outcome = run(run_config, console)
    except Interrupted as error:
        note(INTERRUPTED, str(error), None, None)
        raise
    except Exception as error:  # one failed run must not cost the others
        with suppress(OSError):
            (job.directory / "traceback.txt").write_text(traceback.format_exc())
        problems = error.problems if isinstance(error, ProblemsError) else ()
        reason = "; ".join(f"{p.where}: {p.what}" for p in problems) or str(error)
        note("failed", reason, None, None)
        console.print(f"failed: {error}")
        return None
    last = outcome.record.happened.last_epoch if outcome.record else None
    note(outcome.result.value, outcome.reason, str(outcome.directory / "record.json"), last)
    # What a sweeper may optimise is a validation metric, never one of the test split.
    return last.value if last and run_config.protocol.name is Protocol.select else None


class NoteSweep(Callback):
    """Hydra callback: tells the command line where the jobs of a sweep leave their notes."""

    directory: Path | None = None
    results_dir: str = ""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note the sweep's directory, which Hydra names."""
        NoteSweep.directory = Path(config.hydra.sweep.dir)
        NoteSweep.results_dir = os.path.expanduser(config.results_dir)


def summarise() -> int:
    """Print what became of every job of the sweep that ran in this process, if there was one.

    Returns:
        0 if every job is done or was skipped; else 1.
    """
    if NoteSweep.directory is None:
        return 0
    notes = [_looked_at_again(note) for note in read_notes(NoteSweep.directory)]
    if notes:
        print_summary(notes, NoteSweep.results_dir, Terminal())
    return 0 if all(note["result"] in ("done", "skipped") for note in notes) else 1


def read_notes(directory: Path) -> list[dict[str, Any]]:
    """The notes of every job below ``directory``, by job number; a job without one died."""
    notes = []
    for started in sorted(directory.glob(f"*/{JOB}"), key=lambda path: _number(path.parent.name)):
        ended = started.with_name(NOTE)
        note = json.loads((ended if ended.exists() else started).read_text())
        if not ended.exists() and (signal := received()) is not None:
            note |= {"result": INTERRUPTED, "reason": f"{signal.name} ended the sweep"}
        notes.append(note)
    return notes


def _looked_at_again(note: dict[str, Any]) -> dict[str, Any]:
    """A job that another process was busy with may be done by now: then nothing went wrong."""
    if note["result"] != "busy" or not note.get("record"):
        return note
    path = Path(note["record"])
    try:
        with FileLock(path.with_name(LOCK), timeout=0):
            record = read(path)
    except (Timeout, OSError, RecordError):
        return note
    last = record.happened.last_epoch
    if record.outcome != Status.OK or last is None:
        return note
    return {
        **note,
        "result": "done",
        "reason": "by another process",
        "metric": last.headline,
        "value": last.value,
    }


def _number(name: str) -> tuple[int, str]:
    """Job directories are numbered; others, if any, come last."""
    return (int(name), "") if name.isdigit() else (1 << 60, name)


def print_summary(notes: list[dict[str, Any]], results_dir: str, console: Console) -> None:
    """One row per job, of its overrides those that vary; then the counts."""
    shared = set.intersection(*(set(note["overrides"]) for note in notes)) if notes[1:] else set()
    same = [override for override in notes[0]["overrides"] if override in shared] if notes else []
    console.print(f"\nsweep: {' '.join(same)}".rstrip(": "), soft_wrap=True)
    table = Table()
    table.add_column("run", overflow="fold")
    table.add_column("result")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("why", overflow="fold")
    colours = {"done": "green", "skipped": "cyan", "busy": "yellow"}
    for note in notes:
        colour = colours.get(note["result"], "red")
        metric, value = note.get("metric"), note.get("value")
        table.add_row(
            " ".join(o for o in note["overrides"] if o not in shared),
            Text(note["result"], colour),
            "" if metric is None else title(metric),
            "" if metric is None or value is None else shown(metric, value),
            note["reason"],
        )
    console.print(table)
    counts = {
        r: sum(n["result"] == r for n in notes)
        for r in ("done", "skipped", "busy", "failed", INTERRUPTED, "died")
    }
    console.print(", ".join(f"{count} {result}" for result, count in counts.items() if count))
    console.print(f"leaderboard: {leaderboard_command(results_dir)}", soft_wrap=True)
