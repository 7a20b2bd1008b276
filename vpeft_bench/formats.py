"""How values become text, and rows of texts become files.

Every number of a table passes through here. A table is a list of rows, a row a dictionary of
column name to text. All rows of a table have the same columns.
"""

from __future__ import annotations

import csv
import html
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = dict[str, str]

MISSING = "–"

KIB = 1024
MIB = 1024**2
GIB = 1024**3
GIGA = 10**9

_BARE_WORD = re.compile(r"[A-Za-z_][\w./+-]*")
_FORMULA = ("=", "+", "-", "@")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")
_MARKUP = re.compile(r"[|\\`*\[\]~]|(?<![^\W_])_|_(?![^\W_])|^[#+-]+(?=\s)")
"""What Markdown reads as markup; underscores within a word, as of ``vpt_deep``, are none."""
_JSON_WORDS = ("true", "false", "null")
_NO_PUNCTUATION = str.maketrans("", "", '"[]')


def shortest(value: float | None) -> str:
    """The shortest text that reads back as exactly this number; empty for None."""
    if value is None:
        return ""
    brief = f"{value:g}"
    return brief if float(brief) == value and not isinstance(value, int) else str(value)


def percent(value: float | None) -> str:
    """A percentage for a reader: two decimals."""
    return MISSING if value is None else f"{value:.2f}"


def fraction(value: float | None) -> str:
    """A fraction for a reader: three decimals."""
    return MISSING if value is None else f"{value:.3f}"


def quantity(value: float | None, unit: int = 1) -> str:
    """Any other measurement for a reader, in multiples of ``unit``: three digits or whole."""
    if value is None:
        return MISSING
    multiple = value / unit
    return f"{multiple:,.0f}" if multiple >= 100 else f"{multiple:.3g}"


def short_options(text: str) -> str:
    """Option text for a reader: without the options that are null, and with little punctuation."""
    given = [option for option in text.split(" ") if not option.endswith("=null")]
    return " ".join(given).translate(_NO_PUNCTUATION)


def counted(number: int, one: str, several: str | None = None) -> str:
    """``1 run``, ``2,000 runs``.

    Args:
        number: how many there are.
        one: the word for one of them.
        several: the word for several, where that is not the former with an s.
    """
    return f"{number:,} {one if number == 1 else several or f'{one}s'}"


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"


def printable(text: str) -> str:
    """``text`` with what a terminal would obey, or could not show, written out: ``\\x1b``.

    Names come from files that others wrote. Escape sequences, line breaks, marks that turn the
    direction of writing and halves of characters are shown, and have no effect.
    """
    if text.isascii() and text.isprintable():  # nearly every text
        return text
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in text
    )


def printable_lines(text: str) -> str:
    """:func:`printable`, of a text whose line breaks are meant."""
    return "\n".join(map(printable, text.split("\n")))


def to_csv(rows: Sequence[Row], columns: Sequence[str] | None = None) -> str:
    """Rows as CSV with ``\\n`` line ends; the same rows always give the same text.

    Args:
        rows: at least one, unless ``columns`` are given.
        columns: their names, in order; by default those of the first row.
    """
    text = io.StringIO()
    names = list(columns if columns is not None else rows[0])
    writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: harmless(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def harmless(text: str) -> str:
    """``text`` as a field of a CSV file.

    What a spreadsheet would take for a formula gets an apostrophe before it, which spreadsheets
    hide.
    """
    text = printable(text)
    return f"'{text}" if text.startswith(_FORMULA) and not _NUMBER.fullmatch(text) else text


def each(change: Callable[[str], str], texts: Sequence[str]) -> list[str]:
    """``change`` of every text; most texts of a column stand there many times."""
    changed = {text: change(text) for text in set(texts)}
    return [changed[text] for text in texts]


def to_markdown(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table, without the columns that are empty throughout."""
    names = [name for name in rows[0] if any(row[name] for row in rows)]
    return markdown_of({name: [row[name] for row in rows] for name in names})


def markdown_of(columns: Mapping[str, Sequence[str]]) -> str:
    """Columns by name as a Markdown table."""
    lines = zip(*(each(markdown, column) for column in columns.values()), strict=True)
    heading = [map(markdown, columns), ["---"] * len(columns)]
    return "".join(f"| {' | '.join(line)} |\n" for line in [*heading, *lines])


def markdown(text: str) -> str:
    """``text`` as Markdown shows it word for word: no markup, no HTML, no new line."""
    return _MARKUP.sub(r"\\\g<0>", html.escape(printable(text), quote=False))


def option_text(options: dict[str, Any]) -> str:
    """Options as ``alpha=16 rank=8``, sorted by name; different options give different texts."""
    return " ".join(f"{name}={_value_text(options[name])}" for name in sorted(options))


def _value_text(value: Any) -> str:
    if isinstance(value, str) and _BARE_WORD.fullmatch(value) and value not in _JSON_WORDS:
        return value
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
