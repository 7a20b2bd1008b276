"""The page as one file: HTML with its tables in it, style and script inside, no request.

The tables are there without JavaScript; the script sorts, filters, folds and draws from them, and
has no other data. itables and Altair would do much of it with 2.6 MB of scripts of others, and
without folded variants or a table that reads well when nothing runs; so these are templates.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from vpeft_bench.files import write_atomically
from vpeft_bench.formats import printable
from vpeft_bench.leaderboard.compare import Comparison
from vpeft_bench.leaderboard.page.content import panels
from vpeft_bench.leaderboard.page.plain import CELL_BY_CELL, compared_panels, plain_panel
from vpeft_bench.leaderboard.page.view import Panel, drawn, whisker_scale
from vpeft_bench.leaderboard.standings import split_word
from vpeft_bench.leaderboard.summaries import Summary
from vpeft_bench.leaderboard.tables import Table

PAGE_NAME = "index.html"
MOST_BYTES = 4_000_000
"""Of a page: beyond it, it leaves out what the files have."""
_MOST_LINES = 1_000
_HERE = Path(__file__).parent


def write_page(
    datasets: Sequence[Table],
    summaries: Sequence[Summary],
    costs: Table | None,
    runs: pd.DataFrame,
    notes: Sequence[str],
    out: Path,
    beside: Comparison | None = None,
) -> Path:
    """Write the page below ``out``; its path. The same tables and runs give the same bytes.

    Args:
        datasets: the tables of all data sets, by protocol.
        summaries: those of benchmarks.
        costs: that of cost cards, if there is any.
        runs: those that the tables are made of.
        notes: what holds for all tables.
        out: the folder.
        beside: published numbers, where they were asked for.

    Raises:
        OSError: the file cannot be written.
    """
    path = out / PAGE_NAME
    write_atomically(path, page(datasets, summaries, costs, runs, notes, beside).encode())
    return path


def page(
    datasets: Sequence[Table],
    summaries: Sequence[Summary],
    costs: Table | None,
    runs: pd.DataFrame,
    notes: Sequence[str],
    beside: Comparison | None = None,
) -> str:
    """The text of the page, of at most :data:`MOST_BYTES`: what is too much is left to files."""
    found = _panels(datasets, summaries, costs, runs, notes)
    if beside is not None:
        found += compared_panels(beside, len(found) + 1)
    for leave_out in (_nothing, _compared_cells, _matrices, _details):
        found = leave_out(found)
        if len((text := _html(found)).encode()) <= MOST_BYTES:
            return text
    return _html(_long(found))


def _panels(
    datasets: Sequence[Table],
    summaries: Sequence[Summary],
    costs: Table | None,
    runs: pd.DataFrame,
    notes: Sequence[str],
) -> list[Panel]:
    found: list[Panel] = []
    for summary in summaries:
        found += panels(summary, runs, notes, len(found) + 1)
    shown = {at for summary in summaries for at in _places(summary.cells)}
    for table in datasets:
        of_none = [at not in shown for at in _places(table.rows)]
        if any(of_none):
            protocol = str(table.rows["protocol"].iloc[0])
            title = f"Data sets of no benchmark, {split_word(protocol)} images"
            rest = replace(table, rows=table.rows[of_none])
            settings = f"Settings of every row that does not say otherwise: {table.settings}"
            found.append(plain_panel(rest, title, f"t{len(found) + 1}", [settings, *notes]))
    if costs is not None:
        name = f"t{len(found) + 1}"
        found.append(plain_panel(costs, "Costs: one row per cost card", name))
    return found


def _places(cells: pd.DataFrame) -> list[tuple[str, ...]]:
    keys = ["protocol", "benchmark", "data", "config_hash", "name"]
    return list(cells[keys].astype(str).itertuples(index=False, name=None))


# ---- what is left out of a page that is too large ------------------------------------------------


def _nothing(found: list[Panel]) -> list[Panel]:
    return found


def _compared_cells(found: list[Panel]) -> list[Panel]:
    note = "Each cell beside each published number is left out, for size: see compare_*.csv"
    return [
        replace(one, notes=[*one.notes, note]) if one.published else one
        for one in found
        if not (one.published and one.title.endswith(CELL_BY_CELL))
    ]


def _matrices(found: list[Panel]) -> list[Panel]:
    note = (
        "Win rates of pairs are left out, for size: python -m vpeft_bench leaderboard --statistics"
    )
    return [
        replace(one, groups=[replace(g, matrix=None) for g in one.groups], notes=[*one.notes, note])
        for one in found
    ]


def _details(found: list[Panel]) -> list[Panel]:
    note = "What is known of each row is left out, for size: see seeds.csv and runs.parquet"
    return [
        replace(
            one,
            lines=[replace(line, facts={}, on_data=[], commands=[]) for line in one.lines],
            notes=[*one.notes, note],
        )
        for one in found
    ]


def _long(found: list[Panel]) -> list[Panel]:
    most = _MOST_LINES // len(found)
    return [
        replace(
            one,
            lines=one.lines[:most],
            notes=[
                *one.notes,
                f"The first {most} of {len(one.lines)} rows, for size: the CSV files have all",
            ],
        )
        if len(one.lines) > most
        else one
        for one in found
    ]


# ---- HTML ----------------------------------------------------------------------------------------


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.globals.update(drawn=drawn, whisker_scale=whisker_scale)
    return environment


def _html(found: Sequence[Panel]) -> str:
    return (
        _environment()
        .get_template("page.html")
        .render(
            panels=found,
            style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
            script=Markup((_HERE / "page.js").read_text(encoding="utf-8")),
            made_by=f"vpeft-bench {version('vpeft-bench')}",
        )
    )


def _shown(value: Any) -> Any:
    """Names come from files of others: what turns the writing around or is no character shows."""
    return printable(value) if type(value) is str else value
