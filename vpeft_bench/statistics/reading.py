"""CSV files as others wrote them, as a frame with the columns that the statistics need."""

from __future__ import annotations

import csv
import difflib
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from vpeft_bench.errors import ConfigError, Problem, nearest
from vpeft_bench.statistics.checks import REQUIRED
from vpeft_bench.statistics.table import SETTINGS

ROLES = ("method", "data", "seed", "value", "benchmark", "group")
"""What a column can be for the statistics; by default the column of that name."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
_WITHOUT_VALUE = {"", "-", "–", "—", "na", "n/a", "nan", "null", "none"}
_SHOWN = 3
_OTHER_NAMES = {
    "method": ("model", "algorithm", "system", "row", "name"),
    "data": ("dataset", "data_set", "task"),
    "value": ("accuracy", "acc", "top1", "score", "metric_mean", "mean", "result"),
}
"""What the columns are called elsewhere; only ever suggested."""


@dataclass(frozen=True)
class Condition:
    """Rows to keep: those whose ``column`` is one of ``values``, or none of them.

    Attributes:
        text: as it was typed.
    """

    column: str
    values: tuple[str, ...]
    equal: bool
    text: str


def parse_condition(text: str) -> Condition:
    """``COLUMN=VALUE[,VALUE]`` or ``COLUMN!=VALUE[,VALUE]``; quotes go around a value with a comma.

    Raises:
        ValueError: it is neither.
    """
    column, equals, listed = text.partition("=")
    equal = not column.endswith("!")
    column = column.removesuffix("!").strip()
    if not equals or not column:
        raise ValueError(f"{text} is not COLUMN=VALUE or COLUMN!=VALUE")
    values = next(csv.reader([listed], skipinitialspace=True), [""]) or [""]
    return Condition(column, tuple(value.strip() for value in values), equal, text)


def read_csv(path: Path) -> pd.DataFrame:
    """The texts of a CSV file, by column; the index is the line of each row.

    Columns may be parted by commas, semicolons or tabs; a byte order mark is passed over.

    Raises:
        ConfigError: it is no table of one header and rows of equal length.
        OSError: the file cannot be read.
    """
    if path.is_dir():
        raise ConfigError([Problem(str(path), "is a folder", "name a CSV file")])
    if not path.exists():
        near = nearest(path.name, [other.name for other in _beside(path)])
        fix = f"did you mean {path.with_name(near)}" if near else ""
        raise ConfigError([Problem(str(path), "no such file", fix)])
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        fix = "save it as CSV (UTF-8, comma separated)"
        raise ConfigError([Problem(str(path), "is not UTF-8 text", fix)]) from None
    header = next((line for line in text.splitlines() if line.strip()), "")
    if not header:
        what = "is empty: it needs a line of column names and a row for every run"
        raise ConfigError([Problem(str(path), what, "method,data,seed,value")])
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        lines = [(reader.line_num, row) for row in reader if any(field.strip() for field in row)]
    except csv.Error as error:
        raise ConfigError([Problem(f"{path}, line {reader.line_num}", str(error))]) from None
    (_, names), *rows = lines
    names = [name.strip() for name in names]
    problems = [*_repeated(path, names), *_ragged(path, names, rows)]
    if not rows:
        problems.append(Problem(str(path), "has column names only, no row"))
    if problems:
        raise ConfigError(problems)
    fields = [[field.strip() for field in row] for _, row in rows]
    frame = pd.DataFrame(fields, columns=names, dtype=object)
    frame.index = pd.Index([number for number, _ in rows], name="line")
    frame.attrs["decimal_comma"] = delimiter != ","
    return frame


def kept(frame: pd.DataFrame, conditions: Sequence[Condition]) -> pd.DataFrame:
    """The rows for which all conditions hold.

    Raises:
        ConfigError: a column or a value that the table does not have, or no row is left.
    """
    problems, keep = [], pd.Series(True, index=frame.index)
    for condition in conditions:
        if condition.column not in frame:
            problems.append(_no_column(f"--where {condition.text}", condition.column, frame))
            continue
        column = frame[condition.column]
        there = set(column)
        problems += [
            _no_value(condition, value, there) for value in condition.values if value not in there
        ]
        keep &= column.isin(condition.values) == condition.equal
    if not problems and not keep.any():
        shown = " ".join(f"--where {condition.text}" for condition in conditions)
        problems.append(Problem(shown, "leaves no row"))
    if problems:
        raise ConfigError(problems)
    return frame[keep]


def with_roles(frame: pd.DataFrame, columns: Mapping[str, str]) -> tuple[pd.DataFrame, list[str]]:
    """The columns that count, named by what they are for; and those that do not.

    Args:
        frame: texts, as :func:`read_csv` gives them.
        columns: the column for each of :data:`ROLES`, where it has another name.

    Returns:
        Columns of :data:`ROLES` and of ``SETTINGS`` that are there, ``value`` as numbers and NaN
        where a run has none, and the other columns, which count for nothing; and their names.

    Raises:
        ConfigError: with every column that is missing and every value that is no number.
    """
    problems, used = [], {}
    for role in ROLES:
        column = columns.get(role, role)
        if column in frame:
            used[role] = column
        elif role in columns:
            problems.append(_no_column(f"--{role}-column {column}", column, frame))
        elif role in REQUIRED:
            problems.append(_missing(role, frame, set(columns.values())))
    roles_of: dict[str, list[str]] = {}
    for role, column in used.items():
        roles_of.setdefault(column, []).append(role)
    for column, roles in roles_of.items():
        if len(roles) > 1:
            what = f"cannot be both {' and '.join(roles)}"
            problems.append(Problem(f"column {column}", what, f"name another: --{roles[0]}-column"))
    if problems:
        raise ConfigError(problems)
    settings = [name for name in SETTINGS if name in frame and name not in used.values()]
    chosen = pd.DataFrame({role: frame[column] for role, column in used.items()})
    chosen[settings] = frame[settings]
    chosen["value"] = numbers_of(frame, used["value"])
    others = [name for name in _names(frame) if name not in {*chosen, *used.values()}]
    chosen[others] = frame[others]
    unused = [name for name in _names(frame) if name not in {*used.values(), *settings}]
    return chosen, unused


def numbers_of(frame: pd.DataFrame, column: str) -> pd.Series:
    """A column of :func:`read_csv` as numbers, NaN where there is none.

    Raises:
        ConfigError: with the lines whose text is no number.
    """
    decimal_comma = bool(frame.attrs.get("decimal_comma"))
    numbers = [_number(text, decimal_comma) for text in frame[column]]
    of_lines = zip(frame.index, frame[column], numbers, strict=True)
    wrong = [(line, text) for line, text, number in of_lines if number is None]
    if wrong:
        raise ConfigError(list(_no_numbers(column, wrong)))
    return pd.Series(numbers, index=frame.index, dtype=float)


def _number(text: str, decimal_comma: bool) -> float | None:
    """The number a text stands for, NaN for none, None where it is no number."""
    if text.casefold() in _WITHOUT_VALUE:
        return math.nan
    if decimal_comma and _DECIMAL_COMMA.fullmatch(text):
        text = text.replace(",", ".")
    number = float(text) if _NUMBER.fullmatch(text) else math.inf
    return number if math.isfinite(number) else None


def _no_numbers(column: str, wrong: Sequence[tuple[object, str]]) -> Iterator[Problem]:
    for line, text in wrong[:_SHOWN]:
        bare = text.rstrip("%").strip().replace(",", ".")
        fix = f"write {bare}" if _NUMBER.fullmatch(bare) else "leave it empty if there is none"
        yield Problem(f"line {line}", f"{column} is {text!r}, which is no number", fix)
    if len(wrong) > _SHOWN:
        yield Problem(f"column {column}", f"{len(wrong) - _SHOWN} more of the same kind")


def _missing(role: str, frame: pd.DataFrame, taken: set[str]) -> Problem:
    names = [name for name in _names(frame) if name not in taken]
    folded = {name.casefold(): name for name in names}
    found = next((folded[name] for name in (role, *_OTHER_NAMES[role]) if name in folded), None)
    parts = [name for name in names if any(n in name.casefold() for n in _OTHER_NAMES[role])]
    mistyped = difflib.get_close_matches(role, names, n=1, cutoff=0.75)
    found = found or next(iter([*parts, *mistyped]), None)
    fix = [f"name the column that is it: --{role}-column {found or 'NAME'}"]
    fix.append(f"there are: {', '.join(names)}")
    if role == "value":
        fix.append("a table with one column per data set must first be made long: a row per value")
    return Problem(f"column {role}", "is missing", "\n".join(fix))


def _no_column(where: str, name: str, frame: pd.DataFrame) -> Problem:
    names = _names(frame)
    near = nearest(name, names)
    fix = [f"did you mean {near}"] if near else []
    return Problem(where, "no such column", "\n".join([*fix, f"there are: {', '.join(names)}"]))


def _no_value(condition: Condition, value: str, there: set[str]) -> Problem:
    near = nearest(value, there)
    fix = [f"did you mean {near}"] if near else []
    if len(there) <= 50:
        fix.append(f"there are: {', '.join(sorted(there))}")
    what = f"no row has {condition.column} {value}" if value else "no row is empty there"
    return Problem(f"--where {condition.text}", what, "\n".join(fix))


def _names(frame: pd.DataFrame) -> list[str]:
    """The columns that have a name; pandas writes one without."""
    return [str(name) for name in frame if name]


def _beside(path: Path) -> list[Path]:
    folder = path.parent
    return [other for other in folder.iterdir() if other.is_file()] if folder.is_dir() else []


def _repeated(path: Path, names: Sequence[str]) -> Iterator[Problem]:
    for name in dict.fromkeys(names):
        if name and names.count(name) > 1:
            yield Problem(str(path), f"has {names.count(name)} columns called {name}", "rename one")


def _ragged(
    path: Path, names: Sequence[str], rows: Sequence[tuple[int, Sequence[str]]]
) -> Iterator[Problem]:
    for line, row in [pair for pair in rows if len(pair[1]) != len(names)][:_SHOWN]:
        what = f"has {len(row)} fields, the line of column names has {len(names)}"
        yield Problem(f"{path}, line {line}", what, "a text with a comma needs quotes around it")
