"""Published numbers beside ours, cell by cell: never in one column, and with where each is from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from vpeft_bench.errors import ConfigError, Problem, nearest
from vpeft_bench.formats import percent
from vpeft_bench.leaderboard.column import plain
from vpeft_bench.leaderboard.columns import comparison_columns
from vpeft_bench.leaderboard.tables import Table, named

PUBLISHED, FILE = "published", "comparable.csv"
NEEDED = ("method", "data", "value")
KNOWN = (*NEEDED, "options", "backbone", "metric", "row", "source", "provenance", "scored")
"""Columns of a file of published numbers; methods, data sets and backbones by our names."""
UNKNOWN = "unknown"


def read_published(named_: str) -> pd.DataFrame:
    """Published numbers: of ``results/published``, or of a user's file.

    Args:
        named_: ``published``, or the path of a CSV with the columns ``NEEDED``, and more of
            ``KNOWN``.

    Raises:
        ConfigError: there is no such file, a column is missing or unknown, or a value is no number.
    """
    path = Path("results") / PUBLISHED / FILE if named_ == PUBLISHED else Path(named_)
    if not path.is_file():
        fix = f"--compare FILE.csv, with the columns {', '.join(NEEDED)}"
        if named_ == PUBLISHED:
            fix = f"run it in a checkout of the repository, which has {path}, or {fix}"
        raise ConfigError([Problem(f"--compare {named_}", f"there is no file {path}", fix)])
    try:
        found = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise ConfigError([Problem(str(path), f"is no CSV file: {error}")]) from error
    problems = [*_of_columns(path, [*map(str, found)])]
    if not problems:
        problems += _of_values(path, found["value"])
    if problems:
        raise ConfigError(problems)
    found = found.reindex(columns=[*KNOWN], fill_value="")
    found["provenance"] = found["provenance"].replace("", UNKNOWN)
    found["published"] = pd.to_numeric(found.pop("value"))
    return found


def compared(cells: pd.DataFrame, published: pd.DataFrame) -> tuple[Table | None, list[str]]:
    """One row for each of our cells and each number that was published of its method and data.

    Compared are test scores of pretrained weights on the backbone that the number is of, where it
    says so, in the metric that it is of.

    Returns:
        The table, or None where there is nothing to compare; and what was left out, and why.
    """
    ours = cells[(cells["protocol"] == "final") & cells["mean"].notna()]
    notes = [*_without_counterpart(ours, published)]
    ours = ours[~ours["weights"].isin(["random", "demo"])]
    if ours.empty:
        return None, notes
    keys = ["method", "data"]
    both = ours.astype(dict.fromkeys(keys, str)).merge(
        published, on=keys, suffixes=("", "_published")
    )
    for name in ("backbone", "metric"):
        said, own = both[f"{name}_published"], both[name].astype(str)
        both = both[(said == "") | (said == own)]
    if both.empty:
        return None, notes
    own = both["own_options"].astype(object)
    rows = both.assign(
        difference=both["mean"] - both["published"],
        published_options=both["options_published"],
        published_row=both["row"],
        options=own,
        differs=[
            ", ".join(_differences(mine, theirs))
            for mine, theirs in zip(plain(own), both["options_published"], strict=True)
        ],
        **named(both, own),
    )
    rows = rows.assign(
        shown_mean=[percent(value) for value in rows["mean"]],
        shown_published=[percent(value) for value in rows["published"]],
        shown_difference=[f"{value:+.2f}" for value in rows["difference"]],
    )
    order = ["backbone", "data", "source", "published_row", "name"]
    rows = rows.sort_values(order, key=lambda of: of.astype(str)).reset_index(drop=True)
    title = "Ours beside published numbers: difference = ours - published"
    return Table("comparison", title, rows, comparison_columns()), notes


def _of_columns(path: Path, names: list[str]) -> Iterator[Problem]:
    for name in NEEDED:
        if name not in names:
            close = nearest(name, [one for one in names if one not in KNOWN])
            fix = f"is {close!r} meant? Call it {name}" if close else f"needed: {', '.join(NEEDED)}"
            yield Problem(str(path), f"has no column {name}", fix)
    for name in names:
        if name not in KNOWN:
            yield Problem(
                str(path), f"has an unknown column {name!r}", f"known: {', '.join(KNOWN)}"
            )


def _of_values(path: Path, values: pd.Series) -> Iterator[Problem]:
    for line, value in enumerate(values, 2):
        try:
            sound = math.isfinite(float(value))
        except ValueError:
            sound = False
        if not sound:
            yield Problem(f"{path}, line {line}", f"value {value!r} is no number", "leave it out")
            return


def _without_counterpart(ours: pd.DataFrame, published: pd.DataFrame) -> Iterator[str]:
    """Which of our rows are not compared."""
    own = ours[ours["weights"].isin(["random", "demo"])]
    for backbone in sorted(own["backbone"].astype(str).unique()):
        have = sorted(set(published["backbone"]) - {""})
        told = f"; there are for {', '.join(have)}" if have else ""
        yield f"not compared: {backbone} has no published weights{told}"
    rest = ours.drop(own.index)
    for backbone, cells in rest.groupby(rest["backbone"].astype(str)):
        of = published[published["backbone"].isin(["", backbone])]
        if of.empty:
            others = ", ".join(sorted(set(published["backbone"])))
            yield f"not compared: nothing was published of {backbone}; there are for {others}"
            continue
        for name in ("method", "data"):
            absent = sorted(set(cells[name].astype(str)) - set(of[name]))
            if absent:
                yield f"not compared, {name}s of which nothing was published: {', '.join(absent)}"


def _differences(options: str | None, published: str) -> Iterator[str]:
    """Where our options are not those that the published row says it had."""
    if not published:
        return
    if ";" in published or "*" in published:
        yield f"published with {published}"
        return
    own = dict(text.partition("=")[::2] for text in (options or "").split(" "))
    for text in published.split():
        key, _, value = text.partition("=")
        if key in own and not _same(own[key], value):
            yield f"{key}={own[key]} (published {value})"


def _same(own: str, published: str) -> bool:
    try:
        return float(own) == float(published)
    except ValueError:
        return own == published
