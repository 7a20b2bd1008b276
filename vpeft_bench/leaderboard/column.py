"""What a column of a table is, and where it is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, Flag, auto
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from vpeft_bench.formats import quantity


class Kind(Enum):
    """What the values of a column are, in a file."""

    TEXT = "string"
    WHOLE = "integer"
    NUMBER = "number"


class In(Flag):
    """Where a column is shown."""

    FILES = auto()
    """CSV and JSON."""
    PAGES = auto()
    """Markdown and LaTeX."""
    TERMINAL = auto()
    READERS = PAGES | TERMINAL
    ALL = FILES | READERS


class Once(Enum):
    """What a terminal does with a column that says nothing of the rows."""

    NEVER = auto()
    SAME = auto()
    """Where all rows have the same value it is said once, below the table."""
    UNMEASURED = auto()
    """Where no row has a number its name is said below the table."""


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        key: its name in frames and files.
        what: what it says, for the docs and the schema.
        title: its name in print, with the unit.
        kind: what its values are.
        unit: of the values in files.
        digits: after the point in files; None: all there are.
        shown: a value for a reader; None: as it is.
        where: where it is shown.
        once: what a terminal does where it tells no rows apart.
        left: text, aligned to the left and broken between words.
    """

    key: str
    what: str
    title: str = ""
    kind: Kind = Kind.TEXT
    unit: str = ""
    digits: int | None = None
    shown: Callable[[Any], str] | None = None
    where: In = In.FILES
    once: Once = Once.NEVER
    left: bool = False

    def texts(self, frame: pd.DataFrame) -> list[str]:
        """The values for a reader."""
        values = plain(frame[self.key])
        shown = self.shown or (lambda value: "" if value is None else str(value))
        said = {value: shown(value) for value in set(values)}
        return [said[value] for value in values]

    def exact(self, frame: pd.DataFrame) -> pa.Array:
        """The values for a file: null for what is not known, and for a text that is empty."""
        values = pa.Array.from_pandas(frame[self.key])
        if self.kind is Kind.NUMBER:
            values = values.cast(pa.float64())
            return values if self.digits is None else pc.round(values, self.digits)
        if self.kind is Kind.WHOLE:
            return values.cast(pa.int64())
        texts = values.cast(pa.string())
        return pc.if_else(pc.equal(texts, ""), None, texts)


def plain(values: pd.Series) -> list[Any]:
    """Python's own values; None for what is not there."""
    listed: list[Any] = values.astype(object).where(values.notna(), None).tolist()
    return listed


def in_unit(unit: int) -> Callable[[Any], str]:
    """Shows a value in a unit, such as KiB."""
    return lambda value: quantity(value, unit)


def if_known(value: Any) -> str:
    """Shows a number that most rows need not have: a column of none of it is left out."""
    return "" if value is None else quantity(value)


def text(key: str, what: str, title: str = "", where: In = In.FILES, **more: Any) -> Column:
    """A column of texts."""
    return Column(key, what, title, where=where, **more)


def whole(key: str, what: str, title: str = "", where: In = In.FILES, **more: Any) -> Column:
    """A column of whole numbers."""
    shown = {"shown": quantity, "once": Once.UNMEASURED} if title else {}
    return Column(key, what, title, Kind.WHOLE, where=where, **{**shown, **more})


def number(key: str, what: str, title: str = "", where: In = In.FILES, **more: Any) -> Column:
    """A column of numbers, six digits in files."""
    shown = {"shown": quantity, "once": Once.UNMEASURED} if title else {}
    return Column(key, what, title, Kind.NUMBER, where=where, **{"digits": 6, **shown, **more})
