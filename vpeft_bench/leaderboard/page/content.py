"""The tables of a benchmark on the page, with what the statistics say of their rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from vpeft_bench.formats import KIB, MISSING, counted, quantity
from vpeft_bench.leaderboard.column import Column, In, Kind
from vpeft_bench.leaderboard.page.details import Origins, details, origins_of
from vpeft_bench.leaderboard.page.view import (
    TUNING,
    Cell,
    Duel,
    Field,
    Filled,
    Group,
    Line,
    Matrix,
    Panel,
    number_of,
    told_once,
)
from vpeft_bench.leaderboard.standings import (
    MOST_ROWS,
    AlikeRows,
    cautions,
    interval_of,
    like_backbones,
    of_alike_rows,
    pair_text,
    row_names,
    runs_of,
    split_word,
    verdict,
    win_share,
)
from vpeft_bench.leaderboard.summaries import Summary
from vpeft_bench.metric_names import METRICS, heading
from vpeft_bench.statistics.wording import Numbers, places_text

SHARED = ("backbone", "shown_weights", "normalization", "precision", "per_class")
"""What all rows of one table on the page have in common, said once above it."""
_NAMES = ("shown_name", "shown_method", "shown_options", "number")
_FEW_DATASETS = 6
"""Up to which the columns of data sets are there from the start."""


# ---- benchmarks ----------------------------------------------------------------------------------


def panels(summary: Summary, runs: pd.DataFrame, notes: Sequence[str], at: int) -> list[Panel]:
    """The tables of one benchmark: one for each backbone, weights, normalisation and precision.

    Args:
        summary: the benchmark under one protocol.
        runs: those that are shown.
        notes: what holds for the whole page.
        at: number of the first table on the page.
    """
    pieces = like_backbones(summary.rows)
    scored = runs_of(summary.cells, runs)
    origins = origins_of(runs)
    columns = [one for one in summary.columns if one.key in SHARED]
    differ = [one for one in columns if len({of[one.key].iloc[0] for of in pieces}) > 1]
    return [
        _panel(summary, rows, scored, origins, notes, f"t{at + number}", _in_words(differ, rows))
        for number, rows in enumerate(pieces)
    ]


def _in_words(columns: Iterable[Column], rows: pd.DataFrame) -> str:
    """What all of these rows have in common in some columns."""
    return ", ".join(f"{one.title} {one.texts(rows)[0]}" for one in columns)


def _panel(
    summary: Summary,
    rows: pd.DataFrame,
    scored: pd.DataFrame,
    origins: Origins,
    notes: Sequence[str],
    name: str,
    apart: str,
) -> Panel:
    names = row_names(rows)
    groups = of_alike_rows(summary, rows, scored, MOST_ROWS)
    # Best first, as in the summary, but those that were made unlike one after the other.
    marks = {row: one.mark for one in groups for row in one.rows}
    there = set(rows.index)
    best_first = [row for row in summary.rows.index if row in there]
    rows = rows.loc[[row for one in groups for row in best_first if row in one.rows]]
    cells = summary.cells[summary.cells["row"].isin(rows.index)]
    columns = _columns(summary, rows, groups, cells)
    ids = {int(row): f"{name}r{n}" for n, row in enumerate(rows.index, 1)}
    more = details(summary, rows, cells, scored, origins)
    columns, same = told_once(columns, len(rows))
    lines = [
        Line(
            id=ids[row],
            name=names[row],
            method=str(rows.at[row, "method"]),
            mark=marks[row],
            cells=[of[row] for _, of in columns],
            **more[row],
        )
        for row in map(int, rows.index)
    ]
    _shade(lines, [one for one, _ in columns])
    shared = _in_words([one for one in summary.columns if one.key in SHARED], rows)
    size = ", ".join(
        counted(count, noun)
        for count, noun in (
            (len(rows), "row"),
            (len(summary.benchmark.datasets), "data set"),
            (int(cells["n"].sum()), "run"),
        )
    )
    subtitle = f"{summary.title.partition('; ')[2]} · {shared} · {size}"
    title = f"{summary.benchmark.title}, {split_word(summary.protocol)} images"
    demo = ["These data show that the pipeline works, not how good a method is."]
    return Panel(
        id=name,
        title=f"{title}; {apart}" if apart else title,
        subtitle=subtitle,
        fields=[one for one, _ in columns],
        lines=lines,
        shared=same,
        groups=[_group(one) for one in groups],
        notes=[
            *(demo if summary.benchmark.demo else []),
            f"Settings of every row that does not say otherwise: {summary.settings}",
            *notes,
        ],
    )


def _columns(
    summary: Summary, rows: pd.DataFrame, groups: Sequence[AlikeRows], cells: pd.DataFrame
) -> list[Filled]:
    """The columns that say something, with a cell for each row."""
    datasets = set(summary.benchmark.datasets)
    reasons = _reasons(cells)
    found: list[Filled] = []
    for column in summary.columns:
        if In.PAGES not in column.where or column.key in (*SHARED, *_NAMES):
            continue
        data = column.key.removeprefix("shown ")
        if column.key.startswith("shown ") and data in datasets:
            found.append(_of_data(data, summary, rows, cells, reasons))
        elif column.title:
            found.append(_of(column, rows, groups))
    found = [
        (one, of)
        for one, of in found
        if one.group in ("Result", "Data sets")
        or any(cell.text not in ("", MISSING) for cell in of.values())
    ]
    first = next((n for n, (one, _) in enumerate(found) if one.role == "score"), 0)
    found[first + 1 : first + 1] = _standing(rows, groups)
    found += _stored(rows)
    order = ["Result", "Standing", "Cost", "Score", TUNING, "Data sets", "About"]
    return sorted(found, key=lambda item: order.index(item[0].group))


_COSTS = {"parameters_method", "card_train_step_ms_median", "card_peak"}
_MORE_COSTS = {"card_train_step_images_per_second", "card_train_step_flops_per_image"}


def _of(column: Column, rows: pd.DataFrame, groups: Sequence[AlikeRows]) -> Filled:
    """A column of the summary."""
    texts, number = column.texts(rows), column.kind is not Kind.TEXT
    values = rows[column.key].tolist()
    mean = column.key.startswith("mean o")
    if mean or column.key == "complete":
        group = "Result"
    elif column.key in _COSTS | _MORE_COSTS:
        group = "Cost"
    elif column.key in ("ppt", "pscp_style"):
        group = "Score"
    elif column.key.startswith("tuning_") or column.key == "chosen":
        group = TUNING
    else:
        group = "About"
    role = "score" if mean else "cost" if column.key in _COSTS else ""
    one = Field(
        key=column.key,
        title=column.title,
        what=f"{column.what}{f'; {column.unit}' if column.unit else ''}",
        group=group,
        number=number,
        role=role,
        lower=column.key in _COSTS or (mean and _lower(groups)),
    )
    of = {
        int(row): Cell(text, number_of(value) if number else None)
        for row, text, value in zip(rows.index, texts, values, strict=True)
    }
    if mean:
        for row, cell in of.items():
            if cell.missing:
                cell.title = "no mean: " + str(rows.at[row, "cells"])
    return one, of


def _lower(groups: Iterable[AlikeRows]) -> bool:
    return any(one.report is not None and one.report.table.lower_is_better for one in groups)


def _of_data(
    data: str,
    summary: Summary,
    rows: pd.DataFrame,
    cells: pd.DataFrame,
    reasons: Mapping[tuple[int, str], str],
) -> Filled:
    """The column of a data set; a cell without a value says why."""
    metrics = cells.loc[cells["column"] == data, "metric"].dropna().unique()
    what = heading(str(metrics[0])) if len(metrics) else "no run"
    lower = bool(len(metrics)) and not METRICS.get(str(metrics[0])).higher_is_better
    one = Field(
        key=data,
        title=data,
        what=f"{what}: mean ± deviation (runs)",
        group="Data sets",
        number=True,
        role="score" if len(metrics) else "",
        lower=lower,
        hidden=len(summary.benchmark.datasets) > _FEW_DATASETS,
    )
    found = {}
    texts, values = rows[f"shown {data}"].astype(str), rows[data].tolist()
    for row, text, number in zip(map(int, rows.index), texts, values, strict=True):
        value = number_of(number)
        shown, _, more = text.partition(" ") if value is not None else (text, "", "")
        why = reasons.get((row, data), "")
        title = why or ("no run" if text == MISSING else "")
        found[row] = Cell(shown, value, more, title)
    return one, found


def _reasons(cells: pd.DataFrame) -> dict[tuple[int, str], str]:
    """Why runs of a row on a data set did not finish."""
    told = cells[cells["failed_reasons"].astype(str) != ""]
    found = zip(told["row"], told["column"], told["failed_reasons"], strict=True)
    return {(int(row), str(column)): str(why) for row, column, why in found}


def _standing(rows: pd.DataFrame, groups: Sequence[AlikeRows]) -> list[Filled]:
    """What the statistics say of each row, within its condition."""
    of = {row: one for one in groups for row in one.rows}
    found: list[Filled] = []

    def add(one: Field, cell: Any) -> None:
        cells = {row: cell(row, of[row], of[row].summary(row)) for row in map(int, rows.index)}
        if any(cell.text not in ("", MISSING) for cell in cells.values()):
            found.append((one, cells))

    if len(groups) > 1:
        what = "rows of one group were made alike; only those are ranked together"
        add(Field("group", "group", what, "Standing"), lambda row, c, s: Cell(c.mark, title=c.what))
    over = next((f[1] for row, c in of.items() if (f := interval_of(c.summary(row)))), "")
    drawn_again = {
        "data sets": "of the mean, if other data sets of the kind were drawn",
        "seeds": "of the mean, if the runs on these data sets were repeated",
    }
    add(
        Field(
            "interval",
            f"95 % interval over {over}",
            drawn_again.get(over, ""),
            "Standing",
            number=True,
        ),
        lambda row, c, s: _whisker(c, s),
    )
    what = "1: not distinguishable from the best"
    add(
        Field("tier", "tier", what, "Standing", number=True, lower=True),
        lambda row, c, s: _count(c.tier(row)),
    )
    what = "places that the row takes, if other data sets are drawn: 95 %"
    add(
        Field("places", "places", what, "Standing", number=True, lower=True),
        lambda row, c, s: (
            Cell(places_text(s.places), s.places.low) if s and s.places else Cell(MISSING)
        ),
    )
    what = "mean over data sets of its rank, 1 for the best"
    add(
        Field("mean_rank", "mean rank", what, "Standing", number=True, lower=True),
        lambda row, c, s: _decimal(s and s.average_rank, 2),
    )
    what = "share of pairs (other row, data set) that it wins, ties half, percent"
    add(
        Field("win_rate", "win rate %", what, "Standing", number=True),
        lambda row, c, s: _decimal(s and s.win_rate and 100 * s.win_rate, 0),
    )
    return found


def _whisker(condition: AlikeRows, summary: Any) -> Cell:
    found = interval_of(summary)
    if found is None or condition.report is None:
        return Cell(MISSING)
    interval, over = found
    mean = summary.mean.value
    numbers = Numbers(condition.report.table)
    low, high = numbers.value(interval.low), numbers.value(interval.high)
    return Cell(
        f"{low} to {high}",
        interval.low,
        title=f"{numbers.value(mean)}, 95 % interval over {over}",
        whisker=(interval.low, mean, interval.high),
    )


def _count(value: int | None) -> Cell:
    return Cell(MISSING) if value is None else Cell(str(value), float(value))


def _decimal(value: float | None, digits: int) -> Cell:
    return Cell(MISSING) if value is None else Cell(f"{value:.{digits}f}", float(value))


def _stored(rows: pd.DataFrame) -> list[Filled]:
    """Size of the delta checkpoint: the largest of a row's cells, none unless all are known."""
    of = {}
    for row in map(int, rows.index):
        value = number_of(rows.at[row, "stored_delta_bytes"])
        of[row] = Cell(quantity(value, KIB), value)
    if all(cell.missing for cell in of.values()):
        return []
    what = "size of the delta checkpoint, the largest of its runs"
    one = Field("stored", "stored KiB", what, "Cost", number=True, role="cost", lower=True)
    return [(one, of)]


def _shade(lines: Sequence[Line], fields: Sequence[Field]) -> None:
    """Values that readers compare within a column get a shade from 0, worst, to 1."""
    for number, one in enumerate(fields):
        if one.role != "score":
            continue
        values = [line.cells[number].value for line in lines]
        there = [value for value in values if value is not None]
        if len(set(there)) < 2:
            continue
        low, high = min(there), max(there)
        for line in lines:
            cell = line.cells[number]
            if cell.value is not None:
                share = (cell.value - low) / (high - low)
                cell.heat = round(1 - share if one.lower else share, 2)


# ---- pairs ---------------------------------------------------------------------------------------


def _group(condition: AlikeRows) -> Group:
    return Group(
        mark=condition.mark,
        what=condition.what or "the records do not say",
        count=len(condition.rows),
        verdict=verdict(condition),
        cautions=cautions(condition) if len(condition.rows) > 1 else [],
        matrix=_matrix(condition),
    )


def _matrix(condition: AlikeRows) -> Matrix | None:
    if condition.report is None or len(condition.rows) < 2 or not condition.report.pairs:
        return None
    place = {one.method: n for n, one in enumerate(condition.report.summaries)}
    rows = sorted(condition.rows, key=lambda row: place[condition.rows[row]])
    numbers = Numbers(condition.report.table)
    lines: list[list[Duel | None]] = []
    for at, row in enumerate(rows):
        line: list[Duel | None] = []
        for then, other in enumerate(rows):
            said = at < then  # once: of the row with the better mean
            pair = None if other == row else condition.pair(row, other)
            if pair is None:
                line.append(None)
            elif not pair.datasets:
                line.append(Duel(MISSING, 0.5, pair_text(pair, numbers) if said else ""))
            else:
                share = win_share(pair)
                text = pair_text(pair, numbers) if said else ""
                line.append(Duel(f"{100 * share:.0f}", round(share, 2), text))
        lines.append(line)
    return Matrix([condition.rows[row] for row in rows], lines)
