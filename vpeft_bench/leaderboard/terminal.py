"""Tables for a terminal of 100 columns or more.

Narrow on purpose: what all rows of a table share is said once below it, and the data sets of a
benchmark that has groups get one table per group. The CSV files have everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vpeft_bench.leaderboard.cells import Cell
from vpeft_bench.leaderboard.formats import MISSING
from vpeft_bench.leaderboard.tables import (
    Row,
    Summary,
    SummaryRow,
    dataset_rows,
    summary_rows,
    what_is_shown,
)

_SAID_ONCE = {"data", "backbone", "weights", "normalization", "precision"}
_MEASURED = {"per class %", "params", "head params", "delta MiB", "train s", "images/s", "peak MiB"}
_LEFT_ALIGNED = {
    "method",
    "options",
    "config",
    "data version",
    "not finished",
    "notes",
    *_SAID_ONCE,
}


def print_summary(console: Console, summary: Summary) -> None:
    """Print one benchmark under one protocol."""
    benchmark = summary.benchmark
    overview = [
        {"#": str(number), **{name: row[name] for name in row if name not in benchmark.datasets}}
        for number, row in enumerate(summary_rows(summary), start=1)
    ]
    groups = {
        group: [_cells(row, datasets) for row in summary.rows]
        for group, datasets in benchmark.groups.items()
    }
    title = f"{benchmark.name}; {what_is_shown(summary.protocol)}"
    if len(groups) == 1:
        (cells,) = groups.values()
        rows = [{**row, **own} for row, own in zip(overview, cells, strict=True)]
        _print(console, title, [{**row, "notes": row.pop("notes")} for row in rows])
        return
    _print(console, title, overview)
    for group, cells in groups.items():
        rows = [
            {"#": row["#"], "method": row["method"], **own}
            for row, own in zip(overview, cells, strict=True)
        ]
        _print(console, f"{benchmark.name}, {group}", rows)


def print_datasets(console: Console, cells: Sequence[Cell]) -> None:
    """Print one table for each protocol and data set; the cells of each come together."""
    for (protocol, data), group in groupby(cells, lambda cell: (cell.entry.protocol, cell.data)):
        _print(console, f"{data}; {what_is_shown(protocol)}", dataset_rows(list(group)))


def _cells(row: SummaryRow, datasets: Sequence[str]) -> Row:
    """One row's accuracies, each broken into short lines."""
    return {
        name.replace("_", " "): "\n".join(row.lines(name))
        .replace("± ", "±")
        .replace("configurations", "configs")
        for name in datasets
    }


def _print(console: Console, title: str, rows: Sequence[Row]) -> None:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    columns: list[list[str]] = []
    remarks: list[str] = []
    for name in rows[0]:
        texts = [row[name] for row in rows]
        if not any(texts):
            continue
        if name in _MEASURED and set(texts) == {MISSING}:
            remarks.append(f"{name} not measured")
        elif name in _SAID_ONCE and len(set(texts)) == 1:
            remarks.append(f"{name} {texts[0]}")
        else:
            columns.append(texts)
            left = name in _LEFT_ALIGNED
            table.add_column(
                Text(name if left else name.replace(" ", "\n")),
                justify="left" if left else "right",
                no_wrap=not left,
                overflow="fold",
            )
    for cells in zip(*columns, strict=True):
        table.add_row(*map(Text, cells))
    console.print(Text(title, style="bold"))
    console.print(table)
    if remarks:
        console.print(Text(f"in every row: {'; '.join(remarks)}\n", style="dim"))
