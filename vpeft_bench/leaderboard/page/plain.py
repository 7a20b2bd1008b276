"""Tables of the page that no statistics are made of: other data sets, costs, published numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from vpeft_bench.formats import counted
from vpeft_bench.leaderboard.column import Column, In, Kind
from vpeft_bench.leaderboard.compare import Comparison
from vpeft_bench.leaderboard.page.view import (
    PLAIN,
    Cell,
    Field,
    Filled,
    Line,
    Panel,
    number_of,
    told_once,
)
from vpeft_bench.leaderboard.tables import Table

CELL_BY_CELL = "cell by cell"


def plain_panel(table: Table, title: str, name: str, notes: Sequence[str] = ()) -> Panel:
    """A table of the leaderboard as it is printed; the first of its columns names the row."""
    columns = [c for c in table.of(In.PAGES) if any(c.texts(table.rows))]
    first = next(
        (n for n, c in enumerate(columns) if c.key in ("shown_name", "method", "shown_method")), 0
    )
    names = columns.pop(first).texts(table.rows)
    filled: list[Filled] = []
    for column in columns:
        one = Field(
            column.key,
            column.title,
            column.what,
            PLAIN,
            number=column.kind is not Kind.TEXT or column.key in _NUMBERS_OF,
        )
        pairs = zip(column.texts(table.rows), _values(column, table.rows), strict=True)
        filled.append((one, {n: Cell(text, value) for n, (text, value) in enumerate(pairs)}))
    filled, same = told_once(filled, len(names))
    methods = table.rows["method"].astype(str).tolist()
    lines = [
        Line(f"{name}r{n + 1}", names[n], methods[n], [of[n] for _, of in filled])
        for n in range(len(names))
    ]
    fields = [one for one, _ in filled]
    return Panel(name, title, table.title, fields, lines, shared=same, notes=list(notes))


def compared_panels(comparison: Comparison, at: int) -> list[Panel]:
    """Ours beside published numbers: of each benchmark the rows of both, and then each cell.

    Args:
        comparison: what stands beside what.
        at: number of the first table on the page.
    """
    found: list[Panel] = []
    left_out = len(comparison.left_out.rows)
    what = f"{counted(left_out, 'row')}, ours or published, beside nothing"
    rest = [f"{what}: not_compared.csv says why"]
    for pairs, cells, notes in zip(
        comparison.pairs, comparison.tables, comparison.notes, strict=True
    ):
        for table, what in ((pairs, "row by row"), (cells, CELL_BY_CELL)):
            name = f"t{at + len(found)}"
            title = f"{table.name.removeprefix('compare_')} beside published numbers, {what}"
            panel = plain_panel(table, title, name, rest if left_out else [])
            subtitle = counted(len(panel.lines), "row")
            first = notes if table is pairs else []
            found.append(replace(panel, subtitle=subtitle, first=first, published=True))
    return found


_NUMBERS_OF = {
    "shown_score": "mean",
    "shown_allocated": "peak_allocated_bytes",
    "shown_reserved": "peak_reserved_bytes",
    "shown_resident": "peak_resident_growth_bytes",
}
"""Columns that have the numbers of those that are shown as texts."""


def _values(column: Column, rows: pd.DataFrame) -> list[float | None]:
    key = _NUMBERS_OF.get(column.key, column.key)
    if key == column.key and column.kind is Kind.TEXT:
        return [None] * len(rows)
    return [number_of(value) for value in rows[key].tolist()]
