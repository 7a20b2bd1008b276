"""Tables for a terminal of 100 columns or more.

Narrow on purpose: what all rows of a table share is said once below it, the data sets of a
benchmark that has groups get one table per group, and of a long table only the first rows are
shown. The files have everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rich import box
from rich.table import Table as Grid
from rich.text import Text

from vpeft_bench.formats import MISSING, printable, printable_lines
from vpeft_bench.leaderboard.column import Column, In, Once
from vpeft_bench.leaderboard.compare import Comparison
from vpeft_bench.leaderboard.scores import Scores
from vpeft_bench.leaderboard.summaries import Summary
from vpeft_bench.leaderboard.tables import Table, by_data
from vpeft_bench.terminal import Terminal

MOST_ROWS = 60
"""Of a table that is printed."""
_ROWS_BY_DATA = 400
"""Of all tables of single data sets, if each has ten."""


def print_notes(console: Terminal, notes: Sequence[str]) -> None:
    """Print what holds for all tables that follow."""
    for note in notes:
        console.print(Text(printable(note), style="dim"))
    if notes:
        console.print()


def print_costs(console: Terminal, table: Table) -> None:
    """Print one table for each backbone, precision and setting; the cards of each come together."""
    of = ["backbone", "network", "input_size", "head_options", "precision", "measured_with"]
    for _, rows in table.rows.groupby(of, sort=False):
        first = rows.iloc[0]
        title = f"costs; {first['backbone']}, {first['resolution']}, {first['precision']}"
        title = f"{title}; {first['measured_with']} {first['shown_setting']}".rstrip()
        errors = [
            f"{method}: {error}"
            for method, error in zip(rows["method"], rows["error"], strict=True)
            if error
        ]
        _print(console, title, replace(table, rows=rows), errors)


def print_summary(console: Terminal, summary: Summary) -> None:
    """Print one benchmark under one protocol: the means, then the data sets group by group."""
    _print(console, summary.title, summary, [f"settings: {summary.settings}"])
    names = [c for c in summary.columns if c.key in ("number", "shown_name", "shown_method")]
    for group, datasets in summary.benchmark.groups.items():
        columns = [*names, *(Column(f"shown {d}", "", d, where=In.TERMINAL) for d in datasets)]
        rows = summary.rows.assign(
            **{
                f"shown {name}": [_broken(line) for line in summary.lines[name]]
                for name in datasets
            }
        )
        shown = replace(summary, rows=rows, columns=columns)
        _print(console, f"{summary.benchmark.name}, {group}", shown)
    if summary.ambiguous:
        hint = "ambiguous: runs differ in more than this table shows; compare them by data set\n"
        console.print(Text(hint, style="dim"))


def print_datasets(console: Terminal, table: Table, scores: Scores) -> None:
    """Print one table for each data set."""
    most = min(MOST_ROWS, max(10, _ROWS_BY_DATA // table.rows["data"].nunique()))
    for piece in by_data(table, scores, most):
        _print(console, piece.title, piece, [f"settings: {piece.settings}"])


def print_comparison(console: Terminal, comparison: Comparison) -> None:
    """Print for each benchmark the means of rows beside published ones, then the cells."""
    for pairs, cells, notes in zip(
        comparison.pairs, comparison.tables, comparison.notes, strict=True
    ):
        print_notes(console, notes)
        _print(console, pairs.title, pairs)
        _print(console, cells.title, cells)
    if not comparison.tables:
        console.print(Text("no row stands beside a published number"))
    left_out = comparison.left_out.rows
    for (whose, reason), rows in left_out.groupby(["whose", "reason"], sort=False):
        names = list(dict.fromkeys(rows["row"]))
        more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
        line = f"{whose}, not compared: {', '.join(names[:_NAMES])}{more}: {reason}"
        console.print(Text(printable(line), style="dim"))


_NAMES = 8
"""Of rows that one line names."""


def _broken(line: tuple[str, ...]) -> str:
    return "\n".join(line).replace("± ", "±").replace("configurations", "configs")


def _print(console: Terminal, title: str, table: Table, below: Sequence[str] = ()) -> None:
    grid = Grid(box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    columns: list[list[str]] = []
    remarks: list[str] = []
    unmeasured: list[str] = []
    more = table.more + max(0, len(table.rows) - MOST_ROWS)
    for column in table.of(In.TERMINAL):
        texts = [printable_lines(text) for text in column.texts(table.rows)]
        if not any(texts):
            continue
        if column.once is Once.UNMEASURED and set(texts) == {MISSING}:
            unmeasured.append(column.title)
        elif column.once is Once.SAME and len(set(texts)) == 1:
            remarks.append(f"{column.title} {texts[0]}")
        else:
            columns.append(texts[:MOST_ROWS])
            _add(grid, column, columns[-1])
    for line in zip(*columns, strict=True):
        grid.add_row(*map(Text, line))
    console.print(Text(printable(title), style="bold"))
    console.print_whole(grid)
    if unmeasured:
        remarks.append(f"not measured: {', '.join(unmeasured)}")
    if remarks:
        below = [f"in every row: {'; '.join(remarks)}", *below]
    if more > 0:
        below = [f"and {more} rows more: {table.name}.csv", *below]
    for remark in below:
        console.print(Text(printable(remark), style="dim"))
    if below:
        console.print()


def _add(grid: Grid, column: Column, texts: Sequence[str]) -> None:
    title = column.title.replace("_", " ") if column.key.startswith("shown ") else column.title
    pieces = [piece for text in texts for piece in _pieces(text, column.left)]
    grid.add_column(
        Text(title.replace(" ", "\n")),
        justify="left" if column.left else "right",
        min_width=max(map(len, [*title.split(), *pieces])),
        no_wrap=not column.left,
    )


def _pieces(text: str, words: bool) -> list[str]:
    """What must stay on one line: a word of a text, a whole line of numbers."""
    return text.split() if words else text.splitlines()
