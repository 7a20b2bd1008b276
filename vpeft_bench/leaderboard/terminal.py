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

from vpeft_bench.formats import MISSING, Row, printable, printable_lines
from vpeft_bench.leaderboard.cards import Measurement
from vpeft_bench.leaderboard.cells import Cell
from vpeft_bench.leaderboard.costs import cost_rows
from vpeft_bench.leaderboard.departures import departures
from vpeft_bench.leaderboard.scores import Scores
from vpeft_bench.leaderboard.tables import (
    Summary,
    SummaryRow,
    dataset_rows,
    summary_rows,
    what_is_shown,
)

_FILES_ONLY = {"mean per class %", "head params", "delta KiB"}
_SAID_ONCE = {
    "data",
    "backbone",
    "head",
    "weights",
    "normalization",
    "precision",
    "hardware",
    "status",
    "notes",
}
_NOT_IN_A_SUMMARY = {"card images/s"}
_UNLIMITED = 10_000
_COSTS_HIDDEN = {
    # In the title.
    "backbone",
    "resolution",
    "precision",
    "device",
    "batch",
    "setting",
    # Below the table.
    "error",
    # In the files.
    "head params",
    "all params",
    "stored KiB",
    "reserved MiB",
    "weights MiB",
    "gradients MiB",
    "optimizer MiB",
    "activations MiB",
    "saved MiB",
}
_RUNS_OWN = {"train s", "images/s", "peak MiB"}
"""Left to the files where a card says what training costs: one kind of timing per table."""
_MEASURED = {
    "params",
    "GFLOPs fwd",
    "GFLOPs step",
    "step ms",
    "IQR ms",
    "infer images/s",
    "merged images/s",
    "J/image",
    *_RUNS_OWN,
}
_LEFT_ALIGNED = {
    "variant",
    "method",
    "options",
    "chosen",
    "departs",
    "config",
    "data version",
    *_SAID_ONCE,
}


def print_notes(console: Console, notes: Sequence[str]) -> None:
    """Print what holds for all tables that follow."""
    for note in notes:
        console.print(Text(printable(note), style="dim"))
    if notes:
        console.print()


def print_costs(console: Console, measurements: Sequence[Measurement]) -> None:
    """Print one table for each backbone, precision and setting; the cards of each come together."""
    together = zip(measurements, cost_rows(measurements), strict=True)
    for (subject, setting), group in groupby(together, lambda pair: pair[0].group):
        rows = [row for _, row in group]
        resolution = rows[0]["resolution"]
        title = f"costs; {subject.backbone}, {resolution}, {subject.precision}; {setting}"
        shown = [{name: row[name] for name in row if name not in _COSTS_HIDDEN} for row in rows]
        errors = [f"{row['method']}: {row['error']}" for row in rows if row["error"]]
        _print(console, " ".join([title, rows[0]["setting"]]).rstrip(), shown, errors)


def print_summary(console: Console, summary: Summary, scores: Scores) -> None:
    """Print one benchmark under one protocol: the means, then the data sets group by group."""
    benchmark = summary.benchmark
    hidden = {*benchmark.datasets, *_NOT_IN_A_SUMMARY}
    overview = [
        {"#": str(number), **{name: row[name] for name in row if name not in hidden}}
        for number, row in enumerate(summary_rows(summary, scores), start=1)
    ]
    below = [f"settings: {departures([row.cells for row in summary.rows]).shared}"]
    _print(console, f"{benchmark.name}; {summary.what_is_shown}", overview, below)
    for group, datasets in benchmark.groups.items():
        rows = [
            {"#": line["#"], **_name(line), **_values(row, datasets)}
            for line, row in zip(overview, summary.rows, strict=True)
        ]
        _print(console, f"{benchmark.name}, {group}", rows)
    if any(len(cells) > 1 for row in summary.rows for cells in row.configurations.values()):
        hint = "ambiguous: runs differ in more than this table shows; compare them by data set\n"
        console.print(Text(hint, style="dim"))


def print_datasets(console: Console, cells: Sequence[Cell], scores: Scores) -> None:
    """Print one table for each protocol and data set; the cells of each come together."""
    for (protocol, data), group in groupby(cells, lambda cell: (cell.entry.protocol, cell.data)):
        together = list(group)
        hidden = _FILES_ONLY | (_RUNS_OWN if any(cell.card for cell in together) else set())
        rows = [
            {name: row[name] for name in row if name not in hidden}
            for row in dataset_rows(together, scores)
        ]
        below = [f"settings: {departures([[cell] for cell in together]).shared}"]
        _print(console, f"{data}; {what_is_shown(protocol, together)}", rows, below)


def _name(line: Row) -> Row:
    return {name: line[name] for name in ("variant", "method")}


def _values(row: SummaryRow, datasets: Sequence[str]) -> Row:
    """One row's data sets, names and values broken into short lines."""
    return {
        name.replace("_", " "): "\n".join(row.lines(name))
        .replace("± ", "±")
        .replace("configurations", "configs")
        for name in datasets
    }


def _print(console: Console, title: str, rows: Sequence[Row], below: Sequence[str] = ()) -> None:
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    columns: list[list[str]] = []
    remarks: list[str] = []
    unmeasured: list[str] = []
    for name in rows[0]:
        texts = [printable_lines(row[name]) for row in rows]
        if not any(texts):
            continue
        if name in _MEASURED and set(texts) == {MISSING}:
            unmeasured.append(name)
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
    console.print(Text(printable(title), style="bold"))
    # A terminal that is too narrow may break lines, but no number loses its last digits.
    needed = console.measure(table, options=console.options.update_width(_UNLIMITED)).minimum
    if needed > console.width:
        table.width = needed
    console.print(table, crop=False)
    if unmeasured:
        remarks.append(f"not measured: {', '.join(unmeasured)}")
    if remarks:
        below = [f"in every row: {'; '.join(remarks)}", *below]
    for remark in below:
        console.print(Text(printable(remark), style="dim"))
    if below:
        console.print()


def _pieces(text: str, words: bool) -> list[str]:
    """What must stay on one line: a word of a text, a whole line of numbers."""
    return text.split() if words else text.splitlines()
