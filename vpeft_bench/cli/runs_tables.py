"""How the standing of runs is shown: a grid of methods and data sets, and what needs a word."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from vpeft_bench.formats import counted, duration
from vpeft_bench.runs.status import RunStatus, State

LETTERS = {
    State.RUNNING: ("r", "cyan"),
    State.FAILED: ("f", "red"),
    State.DIVERGED: ("d", "red"),
    State.STOPPED: ("s", "yellow"),
    State.WAITING: ("w", "yellow"),
}
NARROW, WIDE = 9, 18
"""Characters that a column of the grid takes at least, and before its head is broken."""


def overview(runs: Sequence[RunStatus], results_dir: Path, console: Console) -> RenderableType:
    """Everything, as it fits the width of ``console``."""
    parts: list[RenderableType] = [*_grids(runs, console.width)]
    if running := [run for run in runs if run.state is State.RUNNING]:
        parts.append(_running(running, results_dir))
    failed = [run for run in runs if run.state in (State.FAILED, State.DIVERGED)]
    parts += [Text(f"{run.state}: {name_of(run, results_dir)}: {run.reason}") for run in failed]
    if failed:
        parts.append(Text("all that is known of one: python -m vpeft_bench runs why RUN"))
    counts = Counter(run.state for run in runs)
    told = [f"{counts[state]} {state}" for state in State if counts[state]]
    parts.append(Text(f"{counted(len(runs), 'run')}: {', '.join(told)}" if told else "no runs"))
    return Group(*parts)


def _grids(runs: Sequence[RunStatus], width: int) -> Iterator[RenderableType]:
    """Methods down, data sets across, as many beside each other as fit."""
    methods, data = sorted({run.method for run in runs}), sorted({run.data for run in runs})
    if not runs:
        return
    first = max(map(len, methods)) + 2
    cells: dict[tuple[str, str], list[RunStatus]] = defaultdict(list)
    for run in runs:
        cells[run.method, run.data].append(run)
    for shown in _beside(data, width - first):
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column("done of", no_wrap=True)
        for name in shown:
            table.add_column(name, overflow="fold", max_width=WIDE)
        for method in methods:
            row = [_cell(cells[method, name]) for name in shown]
            if any(row):
                table.add_row(method, *row)
        yield table
    letters = (f"{letter} {state}" for state, (letter, _) in LETTERS.items())
    yield Text(", ".join(letters), "dim")


def _beside(names: Sequence[str], width: int) -> list[list[str]]:
    """Columns that fit beside each other."""
    groups: list[list[str]] = [[]]
    left = width
    for name in names:
        needed = min(max(len(name), NARROW), WIDE) + 1
        if needed > left and groups[-1]:
            groups.append([])
            left = width
        groups[-1].append(name)
        left -= needed
    return groups


def _cell(runs: Sequence[RunStatus]) -> Text:
    if not runs:
        return Text()
    counts = Counter(run.state for run in runs)
    done = counts[State.DONE]
    cell = Text(f"{done}/{len(runs)}", "green" if done == len(runs) else "")
    for state, (letter, colour) in LETTERS.items():
        if counts[state]:
            cell.append(f" {counts[state]}{letter}", colour)
    return cell


def _running(runs: Sequence[RunStatus], results_dir: Path) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("running", overflow="fold")
    table.add_column("where", overflow="fold")
    for head in ("epoch", "an epoch", "trained by"):
        table.add_column(head, justify="right", no_wrap=True)
    for run in runs:
        holder, progress = run.holder, run.progress
        assert holder is not None
        epochs = "?" if holder.epochs is None else str(holder.epochs)
        told = ("", "") if progress is None else (duration(progress.seconds), _end(run))
        epoch = f"{0 if progress is None else progress.epoch}/{epochs}"
        name = name_of(run, results_dir)
        table.add_row(name, f"{holder.host}, process {holder.pid}", epoch, *told)
    return table


def _end(run: RunStatus) -> str:
    """When its training ends, by this machine's clock, evaluation left out."""
    assert run.holder is not None
    assert run.progress is not None
    if run.holder.epochs is None:
        return ""
    left = (run.holder.epochs - run.progress.epoch) * run.progress.seconds
    end = run.progress.told + left
    same_day = end - time.time() < 20 * 3600
    return time.strftime("%H:%M:%S" if same_day else "%m-%d %H:%M", time.localtime(end))


def name_of(run: RunStatus, results_dir: Path) -> str:
    """A run as it is named on the command line: its place below the results."""
    try:
        return str(run.directory.relative_to(results_dir))
    except ValueError:
        return str(run.directory)
