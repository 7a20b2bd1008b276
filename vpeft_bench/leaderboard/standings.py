"""What the statistics say of the rows of a summary; only rows that were made alike are compared.

The page and ``leaderboard --statistics`` both show these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from vpeft_bench.config.recipes import budget_of
from vpeft_bench.formats import counted
from vpeft_bench.leaderboard.cells import ENTRY
from vpeft_bench.leaderboard.departures import beside_tuning, departures
from vpeft_bench.leaderboard.runs import PROTOCOL_SPLIT
from vpeft_bench.leaderboard.summaries import Summary
from vpeft_bench.metric_names import METRICS
from vpeft_bench.records.run_record import Status
from vpeft_bench.statistics import Bootstrap, Interval, MethodSummary, Pair, Report
from vpeft_bench.statistics.bootstrap import FEWEST_DATASETS
from vpeft_bench.statistics.report import report
from vpeft_bench.statistics.table import Table as Values
from vpeft_bench.statistics.wording import Numbers, p_text, remarks, rests_on

MOST_ROWS = 64
"""Of rows whose pairs the page compares; of more, ``leaderboard --statistics`` says it."""
_APART = [key for key in ENTRY if key not in ("protocol", "variant", "method", "options")]
"""What rows of one table on the page have in common."""


@dataclass(frozen=True)
class AlikeRows:
    """Rows of one table that were made alike, and what the statistics say of them.

    Attributes:
        mark: a letter; empty where all rows of the table are alike.
        what: how their settings were chosen, and what else sets them apart.
        rows: by index of the table's rows, the name of each.
        report: None where nothing can be compared; ``why`` says the reason.
    """

    mark: str
    what: str
    rows: Mapping[int, str]
    report: Report | None
    why: str = ""

    def summary(self, row: int) -> MethodSummary | None:
        """Of a row; None without a report."""
        return self._summaries.get(self.rows[row])

    def tier(self, row: int) -> int | None:
        """1 for the best and what is not distinguishable from it; None where there are none."""
        tiers = self.report.family.tiers if self.report else ()
        name = self.rows[row]
        return next((n for n, tier in enumerate(tiers, 1) if name in tier.methods), None)

    def pair(self, row: int, other: int) -> Pair | None:
        """Of two rows, seen from the first."""
        pair = self._pairs.get(frozenset((self.rows[row], self.rows[other])))
        return pair and pair.seen_from(self.rows[row])

    @cached_property
    def _pairs(self) -> dict[frozenset[str], Pair]:
        return {pair.names: pair for pair in self.report.pairs} if self.report else {}

    @cached_property
    def _summaries(self) -> dict[str, MethodSummary]:
        return {one.method: one for one in self.report.summaries} if self.report else {}


def of_alike_rows(
    summary: Summary, rows: pd.DataFrame, scored: pd.DataFrame, most_rows: int | None = None
) -> list[AlikeRows]:
    """The rows of a table in groups that were made alike, the largest first.

    Two rows are alike if their settings were chosen with the same budget and nothing that counts
    differs but learning rate, weight decay and options of the method.

    Args:
        summary: the table.
        rows: those of its rows that share backbone, weights, normalisation and precision.
        scored: :func:`runs_of` its cells.
        most_rows: of a group that is compared; None: any number.
    """
    names = row_names(rows)
    cells = summary.cells[summary.cells["row"].isin(rows.index)]
    made = _made_alike(cells, rows)
    grouped: dict[str, list[int]] = {}
    for row in rows.index:
        grouped.setdefault(made[row], []).append(int(row))
    ordered = sorted(grouped.items(), key=lambda item: (-len(item[1]), item[0]))
    marks = _marks(len(ordered))
    found = []
    for mark, (what, members) in zip(marks, ordered, strict=True):
        called = {row: names[row] for row in members}
        done, why = _too_many(members, most_rows) or _statistics(
            summary, rows, cells, called, scored, what
        )
        found.append(AlikeRows(mark, what, called, done, why))
    return found


def reports(summary: Summary, runs: pd.DataFrame) -> list[Report]:
    """The statistics of all groups of rows of a summary that can be compared."""
    scored = runs_of(summary.cells, runs)
    groups = (of_alike_rows(summary, rows, scored) for rows in like_backbones(summary.rows))
    return [one.report for of in groups for one in of if one.report is not None]


def row_names(rows: pd.DataFrame) -> dict[int, str]:
    """What each row is called, none twice."""
    pieces = rows[["shown_name", "shown_method", "shown_options"]].astype(str)
    short = [" ".join(filter(None, line)) for line in pieces.itertuples(index=False, name=None)]
    taken = pd.Series(short)
    whole = [
        name if not twice else f"{name} ({options})"
        for name, twice, options in zip(
            short, taken.duplicated(keep=False), rows["options"].astype(str), strict=True
        )
    ]
    return {int(row): name for row, name in zip(rows.index, whole, strict=True)}


def _too_many(rows: Sequence[int], most: int | None) -> tuple[None, str] | None:
    if most is None or len(rows) <= most:
        return None
    command = "python -m vpeft_bench leaderboard --statistics"
    return None, f"{len(rows)} rows: more than {most} are compared by {command}"


def _marks(count: int) -> list[str]:
    if count < 2:
        return [""] * count
    return [chr(ord("A") + n) if n < 26 else f"A{n}" for n in range(count)]


def _made_alike(cells: pd.DataFrame, rows: pd.DataFrame) -> dict[int, str]:
    """By row under which conditions it was made, in words."""
    told = departures(beside_tuning(cells), cells["row"]).rows
    how: dict[int, set[str]] = {int(row): set() for row in rows.index}
    for row, chosen in zip(cells["row"], cells["chosen"].astype(object), strict=True):
        if isinstance(chosen, str) and chosen:
            how[int(row)].add(budget_of(chosen))
    found = {}
    for row in map(int, rows.index):
        parts = ["; ".join(sorted(how[row])), str(told.get(row, "") or "")]
        found[row] = "; ".join(filter(None, parts))
    return found


def _statistics(
    summary: Summary,
    rows: pd.DataFrame,
    cells: pd.DataFrame,
    names: Mapping[int, str],
    scored: pd.DataFrame,
    what: str,
) -> tuple[Report | None, str]:
    """The report of some rows, or why there is none."""
    if not summary.benchmark.averaged:
        return None, "its data sets have different metrics, which have no mean and no rank"
    used = cells[cells["row"].isin(names)]
    used = used[~used.duplicated(["row", "column"], keep=False) & used["mean"].notna()]
    if used.empty:
        return None, "no cell has a value"
    better = {METRICS.get(name).higher_is_better for name in used["metric"].unique()}
    if len(better) > 1:
        return None, "of some metrics more is better, of others less"
    groups = {column: g for g, of in summary.benchmark.groups.items() for column in of}
    datasets = tuple(sorted(summary.benchmark.datasets))
    values = {
        at: np.sort(found["value"].to_numpy(dtype=float))
        for at, found in _of_cells(scored, used).groupby(["row", "data"])
    }
    apart = {
        key: str(rows["shown_weights" if key == "weights" else key].iloc[0])
        for key in _APART
        if key != "weights_fingerprint"
    }
    by_name = sorted(names.items(), key=lambda item: item[1])
    none = np.empty(0)
    table = Values(
        benchmark=summary.benchmark.name,
        settings={
            **{key: of for key, of in apart.items() if of or key != "per_class"},
            "protocol": summary.protocol,
            "settings": what,
        },
        mixed={},
        methods=tuple(name for _, name in by_name),
        datasets=datasets,
        groups=tuple(groups[name] for name in datasets) if len(set(groups.values())) > 1 else (),
        runs=tuple(tuple(values.get((row, d), none) for d in datasets) for row, _ in by_name),
        lower_is_better=better == {False},
        seeded=True,
        notes=(),
    )
    return report(table, Bootstrap()), ""


def _of_cells(scored: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """The runs of some cells alone."""
    at = pd.MultiIndex.from_frame(cells[["row", "column"]])
    return scored[pd.MultiIndex.from_frame(scored[["row", "data"]]).isin(at)]


def runs_of(cells: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Runs that finished.

    Returns:
        their ``row``, ``data`` (its column), ``config_hash``, ``seed``, ``value`` and ``file``.
    """
    keys = [
        "protocol",
        "variant",
        "method",
        "config_hash",
        "weights_fingerprint",
        "benchmark",
        "data",
    ]
    names = [*keys, "row", "column"]
    wanted = cells[names].astype(dict.fromkeys(keys, str))
    finished = runs[runs["status"].astype(str) == str(Status.OK)]
    own = ["seed", "value", "file"]
    have = finished[[*keys, *own]].astype(dict.fromkeys(keys, str))
    found = wanted.merge(have, on=keys)[["row", "column", "config_hash", *own]]
    return found.rename(columns={"column": "data"})


# ---- in words ------------------------------------------------------------------------------------


def verdict(rows: AlikeRows) -> str:
    """Which rows are best and how sure that is, in a sentence or two."""
    report = rows.report
    if report is None:
        return f"Nothing is ranked: {rows.why}."
    complete = [one for one in report.summaries if not one.missing]
    if len(report.table.methods) < 2:
        return "One row: nothing to compare it with."
    if not complete:
        return _none_complete(report)
    best, datasets = complete[0], len(report.table.datasets)
    equal = [one.method for one in complete if one.mean.value == best.mean.value]
    leads = f"Best by the mean is {best.method}"
    if len(equal) > 1:
        leads = f"{listed(equal)} have the same mean, the best"
    on = f"{counted(datasets, 'data set')}, {counted(sum(one.runs for one in complete), 'run')}"
    if tiers := report.family.tiers:
        first = tiers[0]
        how = f"paired bootstrap over data sets, Holm, 5 %; {on}"
        if len(first.methods) > 1:
            others = listed(first.methods[1:])
            return (
                f"{leads}; {len(first.methods) - 1} of the "
                f"{len(complete) - 1} others cannot be distinguished from {best.method}: "
                f"{others} ({how})."
            )
        return f"{best.method} is better than each of the {len(complete) - 1} others ({how})."
    few = f"With {counted(datasets, 'data set')}, fewer than {FEWEST_DATASETS}"
    alike, known = [], 0
    for one in complete[1:]:
        pair = next(p for p in report.pairs if p.names == frozenset((best.method, one.method)))
        known += pair.over_seeds is not None
        if pair.over_seeds is None or not pair.over_seeds.excludes_zero:
            alike.append(one.method)
    if len(complete) == 1:
        return f"{best.method} alone has every data set: nothing is ranked."
    if not known:
        return f"{leads}. {few}, and single runs, no difference can be told from chance ({on})."
    told = (
        f"not told apart from {best.method} by their seeds: {listed(alike)}"
        if alike
        else "the seeds tell every other from it"
    )
    return (
        f"{leads}; on these data sets {told} "
        f"(95 % bootstrap over seeds, uncorrected; {on}). {few}, "
        "nothing follows for others."
    )


def _none_complete(report: Report) -> str:
    ranked = sorted(report.summaries, key=lambda one: (-one.datasets, one.method))
    most, whole = ranked[0], len(report.table.datasets)
    return (
        f"No row has all {whole} data sets (at most {most.datasets}): no mean and no rank. "
        "Pairs are compared below on the data sets that both have."
    )


def listed(names: Sequence[str], most: int = 6) -> str:
    """Some names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def cautions(rows: AlikeRows) -> list[str]:
    """What a reader must know of the statistics, and what they rest on."""
    if rows.report is None:
        return []
    found = [rests_on(rows.report.table), *remarks(rows.report)]
    return [f"{text}." for text in found]  # some begin with a name, which keeps its letters


def win_share(pair: Pair) -> float:
    """Share of the common data sets on which the first is better, ties half."""
    return (pair.wins + pair.ties / 2) / pair.datasets


def pair_text(pair: Pair, numbers: Numbers) -> str:
    """What the table says of two rows, in a line."""
    if pair.difference is None:
        return "no data set in common"
    parts = [f"difference {numbers.difference(pair.difference)}{numbers.unit}"]
    if pair.over_datasets is not None:
        interval = numbers.interval(pair.over_datasets)
        parts.append(f"95 % interval over data sets {interval}, p = {p_text(pair.bootstrap_p)}")
    if pair.over_seeds is not None:
        parts.append(f"over seeds {numbers.interval(pair.over_seeds)}")
    counts = f"better on {pair.wins}, equal on {pair.ties}, worse on {pair.losses}"
    return f"{', '.join(parts)}; {counts} of {counted(pair.datasets, 'data set')}"


def interval_of(summary: MethodSummary | None) -> tuple[Interval, str] | None:
    """The interval of a row's plain mean, and what it is over."""
    if summary is None or summary.mean.value is None:
        return None
    if summary.mean.over_datasets is not None:
        return summary.mean.over_datasets, "data sets"
    if summary.mean.over_seeds is not None:
        return summary.mean.over_seeds, "seeds"
    return None


def like_backbones(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """Rows of a table in pieces of one backbone, weights, normalisation and precision."""
    return [piece for _, piece in rows.groupby(_APART, observed=True, sort=True, dropna=False)]


def split_word(protocol: str) -> str:
    """What pictures a protocol scores, in a word."""
    return "test" if str(PROTOCOL_SPLIT[protocol]) == "test" else "validation"
