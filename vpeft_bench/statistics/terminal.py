"""The statistics of a table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table as Grid
from rich.text import Text

from vpeft_bench.formats import MISSING, Row, fraction, printable, printable_lines
from vpeft_bench.statistics.report import Report
from vpeft_bench.statistics.statements import kind_of_intervals, of_all
from vpeft_bench.statistics.wording import (
    MATRIX,
    Numbers,
    mean_names,
    name_of,
    p_text,
    pair_lines,
    places_text,
    remarks,
    rests_on,
    span_text,
)
from vpeft_bench.terminal import Terminal

_LEAST_WIDTH = 7
_MOST_IN_A_MATRIX = 20


def print_report(console: Terminal, report: Report) -> None:
    """Print one table: each method, each against the best, every pair, and all together."""
    table, numbers = report.table, Numbers(report.table)
    _say(console, [": ".join(filter(None, [name_of(table), rests_on(table)]))], "bold")
    _say(console, [*remarks(report), f"intervals: {kind_of_intervals(report)}"], "dim")
    _print(console, mean_rows(report, numbers))
    if len(report.family.methods) > 1:
        among = f"among the {len(report.family.methods)} methods that have every data set"
        _say(console, [f"{among}; these numbers change with who is compared"], "bold")
        _print(console, standing_rows(report))
    if rows := against_best(report, numbers):
        tiers = " (Holm: over these comparisons)" if report.family.tiers else ""
        _say(console, [f"{report.summaries[0].method} minus each other{tiers}"], "bold")
        _print(console, rows)
    if len(report.summaries) > _MOST_IN_A_MATRIX:
        _say(console, [f"{len(report.pairs):,} pairs: --out DIR writes and draws them"], "dim")
    elif report.pairs:
        _say(console, [f"row minus column: {MATRIX}"], "bold")
        _print_matrix(console, report, numbers)
    _say(console, of_all(report), "")
    console.print()


def mean_rows(report: Report, numbers: Numbers) -> list[Row]:
    """Each method by itself: its means and intervals, and what they rest on."""
    plain, grouped = mean_names(report.table)
    rows = []
    for row in report.summaries:
        means = {plain: row.mean}
        if report.table.group_names:
            means[grouped] = row.group_mean
        line = {"method": row.method}
        for name, mean in means.items():
            line[name] = numbers.value(mean.value)
            for over, interval in (("sets", mean.over_datasets), ("seeds", mean.over_seeds)):
                heading = f"95 % over {over}"
                line[f"{heading} " if heading in line else heading] = numbers.interval(interval)
        line["sets"] = f"{row.datasets}/{len(report.table.datasets)}"
        rows.append(
            line | {f"{numbers.noun}s": str(row.runs), "per cell": span_text(*row.per_cell)}
        )
    return rows


def standing_rows(report: Report) -> list[Row]:
    """What each method that has every data set is among the others."""
    tiers = {name: str(n) for n, tier in enumerate(report.family.tiers, 1) for name in tier.methods}
    return [
        {
            "method": row.method,
            "tier": tiers.get(row.method, MISSING),
            "places": places_text(row.places),
            "average rank": MISSING if row.average_rank is None else f"{row.average_rank:.2f}",
            "win rate": fraction(row.win_rate),
            "Borda": MISSING if row.borda is None else f"{row.borda:g}",
            "P(improvement)": fraction(row.improvement),
            "improvability": fraction(row.improvability),
        }
        for row in report.summaries
        if not row.missing
    ]


def against_best(report: Report, numbers: Numbers) -> list[Row]:
    """Every other method against the one with the best mean; none where no method has one."""
    if len(report.table.methods) < 2 or report.summaries[0].mean.value is None:
        return []
    best, tiers = report.summaries[0].method, report.family.tiers
    pairs = {pair.names: pair for pair in report.pairs}
    rows = []
    for other in report.summaries[1:]:
        pair = pairs[frozenset((best, other.method))].seen_from(best)
        corrected = tiers[0].corrected.get(other.method) if tiers else None
        rows.append(
            {
                "against": other.method,
                "difference": numbers.difference(pair.difference),
                "95 % over sets": numbers.interval(pair.over_datasets),
                "95 % over seeds": numbers.interval(pair.over_seeds),
                "win/tie/loss": f"{pair.wins}/{pair.ties}/{pair.losses}",
                "P(improvement)": fraction(pair.improvement),
                "Wilcoxon p": p_text(pair.wilcoxon),
                "bootstrap p": p_text(pair.bootstrap_p),
                "bootstrap Holm p": p_text(corrected),
                "sets": str(pair.datasets),
            }
        )
    return rows


def _print_matrix(console: Terminal, report: Report, numbers: Numbers) -> None:
    """The upper half of the multi-comparison matrix, in pieces that fit the terminal.

    The lower half says the same with the other sign.
    """
    pairs = {pair.names: pair for pair in report.pairs}
    names = [row.method for row in report.summaries]
    cells = {
        (row, column): pair_lines(
            pairs[frozenset((row, column))].seen_from(row), numbers, len(report.table.datasets)
        )
        for place, row in enumerate(names)
        for column in names[place + 1 :]
    }
    width = max(_LEAST_WIDTH, *(len(line) for lines in cells.values() for line in lines))
    at_once = max(1, (console.width - max(map(len, names)) - 3) // (width + 1))
    for start in range(1, len(names), at_once):
        shown = names[start : start + at_once]
        rows = [
            {"row": row, **{f" {name}": "\n".join(cells.get((row, name), [])) for name in shown}}
            for row in names[: start + len(shown) - 1]
        ]
        _print(console, rows, width)


def _say(console: Terminal, lines: Sequence[str], style: str) -> None:
    for line in lines:
        console.print(Text(printable(line), style=style))


def _print(console: Terminal, rows: Sequence[Row], width: int | None = None) -> None:
    """A grid, without the columns in which nothing is known.

    Args:
        width: of every column but the first; a longer name is folded.
    """
    grid = Grid(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    columns = []
    for number, name in enumerate(rows[0]):
        texts = [printable_lines(row[name]) for row in rows]
        if set(texts) == {MISSING}:
            continue
        heading = printable(name.strip())
        lines = [line for text in texts for line in text.split("\n")]
        grid.add_column(
            Text(heading, overflow="fold"),
            justify="right" if number else "left",
            min_width=max(map(len, [*([] if width else heading.split()), *lines])),
            width=width if number else None,
            overflow="fold",
        )
        columns.append(texts)
    for line in zip(*columns, strict=True):
        grid.add_row(*map(Text, line))
    console.print_whole(grid)
