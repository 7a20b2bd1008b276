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

_FILES_ONLY = {"mean per class %", "head params", "delta KiB"}
_SAID_ONCE = {"data", "backbone", "head", "weights", "normalization", "precision"}
_UNLIMITED = 10_000
_MEASURED = {"params", "train s", "images/s", "peak MiB"}
_LEFT_ALIGNED = {"method", "options", "config", "data version", "notes", *_SAID_ONCE}


def print_summary(console: Console, summary: Summary) -> None:
    """Print one benchmark under one protocol: the means, then the data sets group by group."""
    benchmark = summary.benchmark
    overview = [
        {"#": str(number), **{name: row[name] for name in row if name not in benchmark.datasets}}
        for number, row in enumerate(summary_rows(summary), start=1)
    ]
    _print(console, f"{benchmark.name}; {summary.what_is_shown}", overview)
    for group, datasets in benchmark.groups.items():
        rows = [
            {"#": line["#"], "method": line["method"], **_values(row, datasets)}
            for line, row in zip(overview, summary.rows, strict=True)
        ]
        _print(console, f"{benchmark.name}, {group}", rows)
    if any(len(cells) > 1 for row in summary.rows for cells in row.configurations.values()):
        hint = "ambiguous: runs differ in more than this table shows; compare them by data set\n"
        console.print(Text(hint, style="dim"))


def print_datasets(console: Console, cells: Sequence[Cell]) -> None:
    """Print one table for each protocol and data set; the cells of each come together."""
    for (protocol, data), group in groupby(cells, lambda cell: (cell.entry.protocol, cell.data)):
        together = list(group)
        rows = [
            {name: row[name] for name in row if name not in _FILES_ONLY}
            for row in dataset_rows(together)
        ]
        _print(console, f"{data}; {what_is_shown(protocol, together)}", rows)


def _values(row: SummaryRow, datasets: Sequence[str]) -> Row:
    """One row's data sets, names and values broken into short lines."""
    return {
        name.replace("_", " "): "\n".join(row.lines(name))
        .replace("± ", "±")
        .replace("configurations", "configs")
        for name in datasets
    }


def _print(console: Console, title: str, rows: Sequence[Row]) -> None:
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
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
            pieces = [piece for text in texts for piece in _pieces(text, left)]
            table.add_column(
                Text(name.replace(" ", "\n")),
                justify="left" if left else "right",
                min_width=max(map(len, [*name.split(), *pieces])),
                no_wrap=not left,
            )
    for line in zip(*columns, strict=True):
        table.add_row(*map(Text, line))
    console.print(Text(title, style="bold"))
    # A terminal that is too narrow may break lines, but no number loses its last digits.
    needed = console.measure(table, options=console.options.update_width(_UNLIMITED)).minimum
    if needed > console.width:
        table.width = needed
    console.print(table, crop=False)
    if remarks:
        console.print(Text(f"in every row: {'; '.join(remarks)}\n", style="dim"))


def _pieces(text: str, words: bool) -> list[str]:
    """What must stay on one line: a word of a text, a whole line of numbers."""
    return text.split() if words else text.splitlines()
