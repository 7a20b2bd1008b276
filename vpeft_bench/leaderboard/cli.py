"""``python -m vpeft_bench leaderboard``: run records in, tables out."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from vpeft_bench.errors import Problem
from vpeft_bench.leaderboard.benchmarks import PROTOCOL_SPLIT
from vpeft_bench.leaderboard.cells import Cell, collect
from vpeft_bench.leaderboard.tables import (
    Row,
    best_first,
    dataset_csv_rows,
    dataset_rows,
    strangers,
    summaries,
    summary_csv_rows,
    summary_rows,
    to_csv,
    to_markdown,
    what_is_shown,
)
from vpeft_bench.leaderboard.terminal import print_datasets, print_summary
from vpeft_bench.record import find

DEFAULT_RECORDS = Path("results/runs")
DEFAULT_OUT = Path("results/leaderboard")

_COLUMNS_OF_A_FILE = 120


def main(argv: Sequence[str]) -> int:
    """Read run records, print their leaderboards and write them as CSV and Markdown.

    Returns:
        the exit status: 0, or 1 if there is nothing to show.
    """
    options = _parser().parse_args(argv)
    found = find(options.records)
    collection = collect(found.records)
    problems = [*found.problems, *collection.left_out]
    cells = [cell for cell in collection.cells if _wanted(cell, options)]
    if not cells:
        print(_nothing_to_show(options, collection.cells, problems), file=sys.stderr)
        return 1

    console = _console()
    tables = summaries(cells)
    written: list[Path] = []
    for protocol in sorted({cell.entry.protocol for cell in cells}):
        scored = best_first(cell for cell in cells if cell.entry.protocol == protocol)
        print_datasets(console, scored)
        written += _write(
            options.out / f"datasets_{protocol}",
            f"Every data set; {what_is_shown(protocol, scored)}",
            dataset_csv_rows(scored),
            dataset_rows(scored),
        )
    for table in tables:
        print_summary(console, table)
        written += _write(
            options.out / f"{table.benchmark.name}_{table.protocol}_summary",
            f"{table.benchmark.name}; {table.what_is_shown}",
            summary_csv_rows(table),
            summary_rows(table),
        )

    shown = sum(len(cell.records) for cell in cells)
    filtered = sum(len(cell.records) for cell in collection.cells) - shown
    print(f"records: {len(found.records)} read, {shown} shown")
    if collection.copies:
        print(f"{collection.copies} left out: the same as another, in every value")
    if filtered:
        print(f"{filtered} left out: not asked for")
    for name in strangers(cells):
        print(f"not in the summary: {name}")
    print(_listing("not shown:", problems), end="")
    print(_listing("written:", written), end="")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vpeft_bench leaderboard",
        description="Compare runs: print leaderboards of run records and write them as CSV and "
        "Markdown. The tables depend on nothing but the records.",
    )
    parser.add_argument(
        "--records",
        nargs="+",
        type=Path,
        default=[DEFAULT_RECORDS],
        metavar="DIR",
        help=f"directories to search for run records (default: {DEFAULT_RECORDS})",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=DEFAULT_OUT,
        metavar="DIR",
        help=f"where the tables are written (default: {DEFAULT_OUT})",
    )
    parser.add_argument(
        "--benchmark", metavar="NAME", help="only this benchmark, such as vtab1k or demo"
    )
    parser.add_argument("--protocol", choices=sorted(PROTOCOL_SPLIT), help="only this protocol")
    return parser


def _wanted(cell: Cell, options: argparse.Namespace) -> bool:
    return options.benchmark in (None, cell.benchmark) and options.protocol in (
        None,
        cell.entry.protocol,
    )


def _nothing_to_show(
    options: argparse.Namespace, cells: Sequence[Cell], problems: Sequence[Problem]
) -> str:
    places = ", ".join(str(directory) for directory in options.records)
    if cells:
        have = sorted({f"{cell.benchmark} ({cell.entry.protocol})" for cell in cells})
        return f"none of the records below {places} was asked for; there are: {', '.join(have)}"
    return (
        f"no run records to show below {places}\n"
        f"{_listing('not shown:', problems)}"
        "make one with: python -m vpeft_bench"
    )


def _listing(heading: str, items: Sequence[object]) -> str:
    return "".join(f"{line}\n" for line in (heading, *(f"  {item}" for item in items)) if items)


def _write(stem: Path, title: str, exact: Sequence[Row], readable: Sequence[Row]) -> list[Path]:
    stem.parent.mkdir(parents=True, exist_ok=True)
    texts = {
        stem.with_name(f"{stem.name}.csv"): to_csv(exact),
        stem.with_name(f"{stem.name}.md"): f"# {title}\n\n{to_markdown(readable)}",
    }
    for path, text in texts.items():
        # A lone surrogate in some error message must not keep the table from being written.
        path.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
    return list(texts)


def _console() -> Console:
    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, width=None if known else _COLUMNS_OF_A_FILE)
