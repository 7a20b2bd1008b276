"""``--plan``: what a sweep would do, and how long that would take; nothing is run."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from vpeft_bench.cli.estimate import Estimate, Estimates
from vpeft_bench.formats import counted, duration
from vpeft_bench.records import cost_card, run_record
from vpeft_bench.runs.claim import holder_of
from vpeft_bench.runs.rounds import Standing, Sweep, SweepJob

SHOWN = 8
"""Runs that are named one by one before the rest are only counted."""


@dataclass(frozen=True)
class Item:
    """A job, and what is known of it.

    Attributes:
        job: as it is asked for.
        standing: what is there.
        holder: the process that works on it; empty where none does.
        estimate: how long it takes; None where that is not known, or nothing is to be done.
    """

    job: SweepJob
    standing: Standing
    holder: str
    estimate: Estimate | None

    @property
    def state(self) -> str:
        """``done``, ``held`` or ``to do``."""
        if self.standing.answer is not None:
            return "done"
        return "held" if self.holder else "to do"


def print_plan(sweep: Sweep, console: Console, timed: bool = True) -> None:
    """What would be done of a sweep, by method; then how long that takes, by what it is known.

    Args:
        sweep: what was asked for.
        console: where it is shown.
        timed: whether its jobs are runs; of other jobs nobody has noted how long they take.
    """
    items = _items(sweep, timed)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("method")
    for column in ("jobs", "done", "held", "to do", *["device time"] * timed):
        table.add_column(column, justify="right")
    by_method: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_method[str(item.job.config.method["name"])].append(item)
    if len(by_method) > 1:
        by_method["all"] = items
    for name, some in by_method.items():
        counts = Counter(item.state for item in some)
        cells = [str(counts[state] or "") for state in ("done", "held", "to do")]
        table.add_row(name, str(len(some)), *cells, *[_time(some)] * timed)
    console.print(table)
    _print_held(items, console)
    if timed:
        _print_sources(items, console)
    counts = Counter(item.state for item in items)
    told = [f"{counts['done']} done", f"{counts['to do']} to do"]
    told += [f"{counts['held']} held by others"] if counts["held"] else []
    console.print(
        f"{counted(len(items), 'job')}: {', '.join(told)}; nothing was run", soft_wrap=True
    )


def _items(sweep: Sweep, timed: bool) -> list[Item]:
    standings = zip(sweep.jobs, sweep.standings, strict=True)
    left = [job for job, one in standings if one.answer is None and timed]
    places = {Path(job.config.results_dir) for job in left}
    cards = {Path(job.config.cost.results_dir) for job in left}
    known = Estimates(
        (record for _, record in run_record.find(p for p in places if p.is_dir()).records),
        (card for _, card in cost_card.find(p for p in cards if p.is_dir()).cards),
    )
    return [_item(job, one, known) for job, one in zip(sweep.jobs, sweep.standings, strict=True)]


def _item(job: SweepJob, standing: Standing, known: Estimates) -> Item:
    if standing.answer is not None:
        return Item(job, standing, "", None)
    return Item(job, standing, _holder(standing), known.of(job.config, standing.images))


def _holder(standing: Standing) -> str:
    holder = None if standing.claim is None else holder_of(standing.claim)
    return "" if holder is None else str(holder)


def _print_held(items: Sequence[Item], console: Console) -> None:
    """Who holds what."""
    held = [item for item in items if item.state == "held"]
    for item in held[:SHOWN]:
        console.print(f"held: {_name(item)}: {item.holder}", soft_wrap=True)
    if len(held) > SHOWN:
        console.print(f"held: {len(held) - SHOWN} more")


def _print_sources(items: Sequence[Item], console: Console) -> None:
    """What the times are made of, and where there is none."""
    left = [item for item in items if item.state == "to do"]
    sources: dict[str, list[Estimate]] = defaultdict(list)
    for item in left:
        if item.estimate is not None:
            sources[item.estimate.source].append(item.estimate)
    for source, some in sources.items():
        devices = ", ".join(sorted(frozenset.union(*(one.devices for one in some))))
        where = f" on {devices}" if devices else ""
        console.print(f"times of {len(some)} from {source}{where}", soft_wrap=True)
    unknown = list(dict.fromkeys(_kind(item) for item in left if item.estimate is None))
    count = sum(item.estimate is None for item in left)
    if unknown:
        names = ", ".join(unknown[:SHOWN]) + (", ..." if len(unknown) > SHOWN else "")
        console.print(f"no estimate for {count}: {names}", soft_wrap=True)


def _time(items: Sequence[Item]) -> str:
    """How long what is to be done takes; a sum that lacks some says so."""
    left = [item for item in items if item.state == "to do"]
    known = [item.estimate.seconds for item in left if item.estimate is not None]
    if not known:
        return "unknown" if left else ""
    return f"{'over ' if len(known) < len(left) else ''}{duration(sum(known))}"


def _kind(item: Item) -> str:
    return f"{item.job.config.method['name']} on {item.job.config.data.name}"


def _name(item: Item) -> str:
    return f"{_kind(item)}, seed {item.job.config.seed}"
