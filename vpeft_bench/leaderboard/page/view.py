"""What a table on the page is: columns, rows and what is known of each, as text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from vpeft_bench.formats import MISSING

ABOUT, TUNING, PLAIN = "About", "Tuning", "Columns"
"""Groups of columns that hold texts; the last is that of tables without statistics."""
_WIDTH = 120
"""Of a whisker, in pixels."""


@dataclass(frozen=True)
class Field:
    """A column of a table on the page.

    Attributes:
        key: names it in filters.
        title: in print.
        what: what it says.
        group: of columns that are shown or hidden together.
        number: whether its values are numbers.
        role: ``score`` or ``cost`` where it can be an axis of the plot.
        lower: whether less is better.
        hidden: whether it is hidden until asked for.
    """

    key: str
    title: str
    what: str = ""
    group: str = ABOUT
    number: bool = False
    role: str = ""
    lower: bool = False
    hidden: bool = False


@dataclass
class Cell:
    """One value: its text, the number that sorts it, and what more can be said of it."""

    text: str
    value: float | None = None
    more: str = ""
    title: str = ""
    heat: float | None = None
    whisker: tuple[float, float, float] | None = None

    @property
    def sorts(self) -> str:
        """The number as the page keeps it: more digits than any text shows."""
        return "" if self.value is None else f"{round(self.value, 5):.12g}"

    @property
    def missing(self) -> bool:
        """Whether there is no value where one could be."""
        return self.text == MISSING


@dataclass(frozen=True)
class OnData:
    """A row on one data set: its runs."""

    data: str
    shown: str
    interval: str
    runs: str
    config: str
    why: str


@dataclass(frozen=True)
class Line:
    """A row of a table on the page.

    Attributes:
        id: names it within the page.
        name: what it is called.
        method: whose variant it is.
        cells: one for each column.
        mark: of its condition.
        facts: what is known of where it comes from, by title.
        on_data: each data set.
        commands: what to type to make its runs again.
    """

    id: str
    name: str
    method: str
    cells: list[Cell]
    mark: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    on_data: list[OnData] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)

    @property
    def unfinished(self) -> bool:
        """Whether any run of it did not finish."""
        return any(one.why for one in self.on_data)


@dataclass(frozen=True)
class Duel:
    """A cell of the matrix of win rates: percent, and all that the table says of the pair.

    The text is that of the row with the better mean against the other, and stands once.
    """

    percent: str
    share: float
    text: str


@dataclass(frozen=True)
class Matrix:
    """The win rates of the rows of one condition; None on the diagonal."""

    names: list[str]
    lines: list[list[Duel | None]]


@dataclass(frozen=True)
class Group:
    """A condition: what the statistics say of its rows."""

    mark: str
    what: str
    count: int
    verdict: str
    cautions: list[str]
    matrix: Matrix | None


@dataclass(frozen=True)
class Panel:
    """One table of the page.

    Attributes:
        id, title, subtitle: its heading.
        fields, lines: its columns and rows.
        shared: what is the same in every row.
        groups: what the statistics say of rows that were made alike.
        notes: what stands below it.
        first: what a reader must know before the table.
        published: whether it sets ours beside published numbers; such tables have a section of
            their own.
    """

    id: str
    title: str
    subtitle: str
    fields: list[Field]
    lines: list[Line]
    shared: str = ""
    groups: list[Group] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    first: list[str] = field(default_factory=list)
    published: bool = False


Filled = tuple[Field, dict[int, Cell]]
"""A column, and its cell by row."""


def number_of(value: Any) -> float | None:
    """A number of a frame; None where there is none."""
    return None if value is None or pd.isna(value) else float(value)


def told_once(columns: list[Filled], rows: int) -> tuple[list[Filled], str]:
    """The columns without those of texts that are the same in every row, and these in words."""
    kept, same = [], []
    for one, of in columns:
        texts = {cell.text for cell in of.values()}
        if rows > 1 and not one.number and one.group in (ABOUT, TUNING, PLAIN) and len(texts) == 1:
            same.append(f"{one.title}: {texts.pop()}")
        else:
            kept.append((one, of))
    return kept, "; ".join(same)


def whisker_scale(panel: Panel) -> tuple[float, float] | None:
    """From the lowest to the highest end of a table's intervals."""
    ends = [
        end for line in panel.lines for cell in line.cells if cell.whisker for end in cell.whisker
    ]
    return (min(ends), max(ends)) if ends else None


def drawn(whisker: tuple[float, float, float], scale: tuple[float, float]) -> dict[str, str]:
    """A whisker in pixels: its ends and its mean."""
    low, high = scale
    width = (high - low) or 1.0

    def at(value: float) -> str:
        return f"{4 + (value - low) / width * (_WIDTH - 8):.1f}"

    return dict(zip(("low", "mean", "high"), map(at, whisker), strict=True))
