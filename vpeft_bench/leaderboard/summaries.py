"""Benchmark by benchmark: a row for each method and setting, with means over the data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from vpeft_bench.config.benchmarks import CUSTOM, FOLDER, Benchmark, columns_of, known
from vpeft_bench.errors import nearest
from vpeft_bench.formats import MISSING, percent
from vpeft_bench.leaderboard.cells import ENTRY
from vpeft_bench.leaderboard.columns import summary_columns
from vpeft_bench.leaderboard.departures import departures, short_keys
from vpeft_bench.leaderboard.runs import PROTOCOL_SPLIT
from vpeft_bench.leaderboard.scores import Scores
from vpeft_bench.leaderboard.tables import (
    Table,
    gain_of,
    named,
    none_of,
    pairs_of,
    scored,
    what_is_shown,
)


@dataclass(frozen=True, kw_only=True)
class Summary(Table):
    """One benchmark under one protocol; best mean first, rows without a mean last.

    Attributes:
        benchmark: the data sets.
        protocol: what was scored.
        lines: by data set and row what is said of the cell, in the pieces it may be broken into.
        means: columns of means, that which orders the rows first; none where there is no mean.
    """

    benchmark: Benchmark
    protocol: str
    lines: Mapping[str, list[tuple[str, ...]]]
    means: tuple[str, ...]

    @property
    def ambiguous(self) -> bool:
        """Whether any cell has several configurations."""
        return any(line[0] == "ambiguous" for lines in self.lines.values() for line in lines)


def summaries(cells: pd.DataFrame, scores: Scores, benchmark: str | None = None) -> list[Summary]:
    """One summary for each benchmark and protocol that has cells, in a fixed order.

    Args:
        cells: of any data sets.
        scores: with the constants that are asked for.
        benchmark: only this one.
    """
    every = known()
    pairs = cells[["benchmark", "data"]].drop_duplicates().astype(str)
    placed = [
        (*pair, name, column)
        for pair in pairs_of(pairs)
        for name, column in columns_of(*pair, every).items()
        if benchmark in (None, name)
    ]
    names = ["benchmark", "data", "of", "column"]
    found = cells.astype({"benchmark": str, "data": str}).merge(
        pd.DataFrame(placed, columns=names, dtype=str), on=names[:2]
    )
    tables = pairs_of(found[["of", "protocol"]].drop_duplicates())
    return [
        _summary(
            every[name],
            protocol,
            found[(found["of"] == name) & (found["protocol"] == protocol)],
            scores,
        )
        for name, protocol in sorted(tables)
    ]


def strangers(cells: pd.DataFrame) -> list[str]:
    """Data sets that claim a benchmark that does not name them, or that there is not."""
    every = known()
    pairs = cells[["data", "benchmark"]].drop_duplicates().astype(str)
    told = []
    for data, benchmark in sorted(pairs_of(pairs)):
        if benchmark in columns_of(benchmark, data, every):
            continue
        if benchmark in every:
            told.append(f"{data}: {benchmark} has no such data set")
        elif benchmark != CUSTOM:
            close = nearest(benchmark, every)
            meant = f"; did you mean {close}?" if close else ""
            what = f"no file {FOLDER}/{benchmark}.yaml says what {benchmark} is{meant}"
            told.append(f"{data}: {what} (--config-dir names the folder that holds it)")
    return told


def _summary(benchmark: Benchmark, protocol: str, cells: pd.DataFrame, scores: Scores) -> Summary:
    entries = cells.groupby(list(ENTRY), observed=True, sort=True, dropna=False)
    cells = cells.assign(row=entries.ngroup())
    rows = cells.drop_duplicates("row").set_index("row").sort_index()
    alone = cells[~cells.duplicated(["row", "column"], keep=False)]
    datasets = list(benchmark.datasets)
    alone = alone.assign(gain=gain_of(alone))
    values, gains = (
        alone.pivot(index="row", columns="column", values=name).reindex(
            rows.index, columns=datasets
        )
        for name in ("mean", "gain")
    )
    means, mean_gains = _means(benchmark, values), _means(benchmark, gains)
    first = next(iter(mean_gains.values())) if means else pd.Series(float("nan"), rows.index)
    order = first.round(2).sort_values(ascending=False, kind="stable", na_position="last").index
    by_row = cells.groupby("row")
    told = departures(cells, cells["row"])
    counts, sizes = by_row["parameters_mean"], by_row["stored_delta_bytes"]
    parameters = counts.mean().where(counts.count() == counts.size())
    shared_card = by_row["card_id"].nunique(dropna=False) == 1
    beside = [name for name in map(str, rows) if name.startswith("card_")]
    lines = _lines(cells, rows.index, datasets)
    columns: dict[str, Any] = {
        "split": str(PROTOCOL_SPLIT[protocol]),
        "name": by_row["name"].agg(lambda of: next((name for name in of if name), "")),
        "chosen": by_row["chosen"].agg(lambda of: "; ".join(sorted({t for t in of if t}))),
        **_tuned(by_row),
        "parameters_method": by_row["parameters_method"].max(),
        "stored_delta_bytes": sizes.max().where(sizes.count() == sizes.size()),
        "departs": told.rows,
        "shown_departs": told.rows.map(short_keys),
        **means,
        "complete": values.notna().sum(axis=1).map(lambda count: f"{count}/{len(datasets)}"),
        **{name: values[name] for name in datasets},
        **{f"shown {name}": lines[name].map(" ".join) for name in datasets},
        "cells": _odd_cells(lines),
        "labels": by_row["label_list"].agg(lambda of: ", ".join(sorted(set().union(*of)))),
        **{name: rows[name].where(shared_card) for name in beside},
    }
    rows = rows.assign(**columns)
    mean = means[next(iter(means))] if means else pd.Series(float("nan"), rows.index)
    rows = rows.assign(**named(rows, rows["options"]), **scored(scores, mean, parameters, rows))
    rows = rows.loc[order].assign(number=[str(n) for n in range(1, len(rows) + 1)])
    return Summary(
        name=f"{benchmark.name}_{protocol}_summary",
        title=f"{benchmark.name}; {what_is_shown(protocol, cells)}",
        rows=rows,
        columns=summary_columns(means, datasets, bool(rows["card_id"].notna().any()), bool(means)),
        settings=told.shared,
        cells=cells,
        gains={name: of.loc[order] for name, of in {**mean_gains, **gains}.items()},
        benchmark=benchmark,
        protocol=protocol,
        lines={name: lines.loc[order, name].tolist() for name in datasets},
        means=tuple(means),
    )


def _tuned(by_row: Any) -> dict[str, Any]:
    """What all searches of a row were and cost together; nothing where one does not say."""
    whole = {
        name: by_row[name].sum(min_count=1).where(by_row[name].count() == by_row.size())
        for name in ("tuning_failed", "tuning_seconds")
    }
    texts = {
        name: by_row[name].agg(lambda of: "; ".join(sorted({str(t) for t in of if t})))
        for name in ("tuning_space", "tuning_device")
    }
    return {"tuning_budget": by_row["tuning_budget"].max(), **whole, **texts}


def _means(benchmark: Benchmark, values: pd.DataFrame) -> dict[str, pd.Series]:
    """The means of a benchmark by name, none unless every data set has a value.

    The first one, over all data sets, orders the table.
    """
    if not benchmark.averaged:
        return {}
    means = {f"mean over {len(benchmark.datasets)} datasets": values.mean(axis=1, skipna=False)}
    if len(benchmark.groups) > 1:
        groups = {
            f"mean of {name}": values[list(members)].mean(axis=1, skipna=False)
            for name, members in benchmark.groups.items()
        }
        together = pd.DataFrame(groups).mean(axis=1, skipna=False)
        means |= {f"mean over {len(groups)} groups": together, **groups}
    return means


def _lines(cells: pd.DataFrame, rows: pd.Index, datasets: Sequence[str]) -> pd.DataFrame:
    """What a table says of each row on each data set, in the pieces it may be broken into."""
    counts = cells.groupby(["row", "column"]).size()
    names = ["mean", "std", "n", "failed", "diverged", "interrupted"]
    one = cells.drop_duplicates(["row", "column"]).set_index(["row", "column"])[names]
    said = [
        ("ambiguous", f"({count} configurations)") if count > 1 else _line(*cell)
        for count, cell in zip(
            counts.reindex(one.index), one.itertuples(index=False, name=None), strict=True
        )
    ]
    lines = pd.Series(said, one.index, dtype=object).unstack("column")
    lines = lines.reindex(index=rows, columns=list(datasets))
    return lines.map(lambda line: line if isinstance(line, tuple) else (MISSING,))


def _line(
    mean: float, std: float, n: int, failed: int, diverged: int, interrupted: int
) -> tuple[str, ...]:
    if diverged:
        return ("diverged", f"({diverged} of {n + failed})")
    word = "interrupted" if interrupted == failed else "failed"
    if not n:
        return (word,)
    deviation = "" if pd.isna(std) else f"± {percent(std)} "
    lost = (f"{failed} {word}",) if failed else ()
    return (percent(none_of(mean)), f"{deviation}({n})", *lost)


def _odd_cells(lines: pd.DataFrame) -> pd.Series:
    """Of each row the data sets that have no value, or not of every run, and why."""
    return pd.Series(
        [
            "; ".join(
                f"{name}: {' '.join(line) if line[0] != MISSING else 'no run'}"
                for name, line in zip(lines.columns, row, strict=True)
                if not (len(line) == 2 and line[0] not in ("ambiguous", "diverged"))
            )
            for row in lines.itertuples(index=False, name=None)
        ],
        lines.index,
        dtype=object,
    )
