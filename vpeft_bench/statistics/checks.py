"""What can be wrong with a frame, and what is not wrong but should be known."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from vpeft_bench.errors import Problem

REQUIRED = ("method", "data", "value")

_SHOWN = 3
_FAR_BELOW = 20.0
_ALIKE = 0.1
_ONE_SCALE = "write all as percentages or all as fractions; if it is meant: --unlike-scales"


def missing_columns(frame: pd.DataFrame) -> Iterator[Problem]:
    """Columns without which nothing can be said."""
    for name in REQUIRED:
        if name not in frame:
            yield Problem(
                f"column {name}", "is missing", f"there are: {', '.join(map(str, frame))}"
            )


def rows_of(frame: pd.DataFrame) -> str:
    """Where the rows of ``frame`` are: at most a few of them."""
    word = str(frame.index.name or "row")
    shown = ", ".join(str(place) for place in frame.index[:_SHOWN])
    more = f" and {len(frame) - _SHOWN} more" if len(frame) > _SHOWN else ""
    return f"{word} {shown}{more}" if len(frame) == 1 else f"{word}s {shown}{more}"


def empty_names(frame: pd.DataFrame, parts: Sequence[str]) -> Iterator[Problem]:
    """Rows that do not say what they are of.

    A table without any group has none; ``parts`` are the columns that part tables.
    """
    empty = {name: frame[name] == "" for name in ("method", "data", "seed") if name in frame}
    if "group" in frame:
        lacks = frame["group"] == ""
        table = [frame[name] for name in parts] or [pd.Series(0, frame.index)]
        empty["group"] = lacks & ~lacks.groupby(table).transform("all")
    for name, of in empty.items():
        if len(rows := frame[of]):
            yield Problem(
                f"column {name}", f"is empty in {rows_of(rows)}", f"say which {name} it is"
            )


def infinite(frame: pd.DataFrame) -> Iterator[Problem]:
    """Values that no mean can be made of."""
    if len(rows := frame[np.isinf(frame["value"])]):
        fix = "leave it empty where a run has no result: its cell then counts as missing"
        yield Problem("column value", f"is not finite in {rows_of(rows)}", fix)


def duplicates(frame: pd.DataFrame, key: Sequence[str]) -> Iterator[Problem]:
    """Rows that are alike in every column of ``key``: nobody knows which one counts."""
    repeated = frame[frame.duplicated(list(key), keep=False)]
    if repeated.empty:
        return
    others = [name for name in frame if name not in key]
    for number, (names, rows) in enumerate(repeated.groupby(list(key), sort=True)):
        if number == _SHOWN:
            count = repeated.drop_duplicates(list(key)).shape[0] - _SHOWN
            yield Problem("rows", f"{count} more of the same kind")
            return
        told = zip(key, names if isinstance(names, tuple) else (names,), strict=True)
        where = ", ".join(f"{name} {value}" for name, value in told if value)
        differ = [str(name) for name in others if rows[name].nunique(dropna=False) > 1]
        if not differ:
            what, fix = "they are the same in every column", "remove all but one"
        else:
            what = f"they differ in {', '.join(differ)}"
            fix = "if one of them is meant, leave the others out with --where"
            if telling := [name for name in differ if _is_words(rows[name])]:
                column = min(telling, key=lambda name: frame[name].nunique())
                fix += f": --where {shlex.quote(f'{column}!={rows[column].iloc[-1]}')}"
            if "seed" not in frame:
                fix += "\nif each is a run, name the column of the seeds: --seed-column NAME"
        yield Problem(where, f"has {len(rows)} rows ({rows_of(rows)}); {what}", fix)


def _is_words(column: pd.Series) -> bool:
    """Whether a column holds names: one of numbers is a result, and chooses nothing."""
    return bool(pd.to_numeric(column.replace("", "none"), errors="coerce").isna().all())


def changing_groups(frame: pd.DataFrame, parts: Sequence[str]) -> Iterator[Problem]:
    """Data sets of several groups; ``parts`` are the columns that part tables."""
    if "group" not in frame:
        return
    for names, groups in frame.groupby([*parts, "data"], sort=True)["group"]:
        if groups.nunique() > 1:
            found = ", ".join(sorted(set(groups)))
            data = names[-1] if isinstance(names, tuple) else names
            yield Problem(f"data {data}", f"is in several groups: {found}", "give it one")


def unlike_scales(frame: pd.DataFrame) -> Iterator[Problem]:
    """Methods, data sets or single values that are fractions, in a table of percentages."""
    for name in ("method", "data"):
        highest = frame.groupby(name)["value"].agg(lambda values: values.abs().max())
        small = highest.index[highest <= 1]
        rest = frame[~frame[name].isin(small)]["value"].abs()
        if len(small) and rest.median() > 10 * highest[small].max():
            shown = ", ".join(small[:_SHOWN]) + (", ..." if len(small) > _SHOWN else "")
            what = f"has values up to {highest[small].max():g} only, other rows {rest.max():g}"
            yield Problem(f"{name} {shown}", f"{what}: fractions among percentages?", _ONE_SCALE)
            return
    for usual in (
        frame.groupby("data")["value"].transform("median"),
        frame.groupby(["method", "data"])["value"].transform("max"),
    ):
        alike = (100 * frame["value"] - usual).abs() < _ALIKE * usual
        if len(odd := frame[alike & (frame["value"] <= 1) & (usual > _FAR_BELOW)]):
            what = f"{odd['value'].iloc[0]:g} on {odd['data'].iloc[0]}, where others have "
            what += f"{usual[odd.index[0]]:g}: a fraction among percentages?"
            yield Problem(rows_of(odd), what, _ONE_SCALE)
            return


def notes(frame: pd.DataFrame, lost: Sequence[tuple[str, str]]) -> Iterator[str]:
    """What a reader should know of a table.

    Args:
        frame: its rows.
        lost: method and data set of each cell that has a run without a value.
    """
    if "variant" in frame and frame["variant"].any() and "budget" not in frame:
        yield "no column budget says whether the rows of a variant were tuned alike"
    if lost:
        shown = ", ".join(f"{method} on {data}" for method, data in lost[:_SHOWN])
        more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
        yield f"a run without a value makes its cell missing: {shown}{more}"
    for name in ("method", "data"):
        spelled: dict[str, list[str]] = {}
        for value in sorted(set(frame[name])):
            spelled.setdefault(value.casefold(), []).append(value)
        for several in spelled.values():
            if len(several) > 1:
                yield f"counted as different, though only upper case differs: {', '.join(several)}"
    middle = frame.groupby("data")["value"].transform("median").abs()
    odd = frame[(frame["value"].abs() <= 1) & (middle > _FAR_BELOW)]
    if len(odd):
        yield f"{rows_of(odd)}: at or below 1 where the median is {middle[odd.index].max():g}"
