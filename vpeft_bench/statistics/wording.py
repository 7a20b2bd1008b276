"""Numbers of a table as text, and what a table is called and rests on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence

from vpeft_bench.formats import MISSING, counted
from vpeft_bench.statistics.bootstrap import FEWEST_DATASETS, Interval
from vpeft_bench.statistics.family import ALPHA
from vpeft_bench.statistics.pairs import Pair
from vpeft_bench.statistics.report import Report
from vpeft_bench.statistics.table import Table, scale

_SIGNIFICANT = 4
_SHOWN = 3
_DECIMALS = {1.0: 4, 100.0: 2}
_ENOUGH_DATASETS = 10
"""From here on intervals over data sets cover 90 % or more."""
_LEAST_FOR_FIVE_PERCENT = 6
"""Data sets with which Wilcoxon's p can fall below .05: 2 / 2^6 = .031."""


class Numbers:
    """Values of one table as text, with as many decimals as their scale asks for.

    Args:
        table: the table.
        methods: those whose values count, where a statement is about some alone.
    """

    def __init__(self, table: Table, methods: Collection[str] | None = None) -> None:
        rows = zip(table.methods, table.runs, strict=True)
        chosen = [row for method, row in rows if methods is None or method in methods]
        top, largest = scale(chosen)
        if top is not None:
            self._decimals = _DECIMALS[top]
        else:
            self._decimals = max(0, _SIGNIFICANT - 1 - math.floor(math.log10(largest or 1)))
        self.unit = " points" if top == 100 else ""
        self.noun = noun(table)

    def value(self, value: float | None) -> str:
        """A value of the table."""
        return MISSING if value is None else f"{value:.{self._decimals}f}"

    def difference(self, value: float | None) -> str:
        """A difference of two values, with its sign."""
        return MISSING if value is None else f"{value + 0.0:+.{self._decimals}f}"

    def interval(self, interval: Interval | None) -> str:
        """An interval of values or of differences."""
        if interval is None:
            return MISSING
        return f"[{self.value(interval.low)}, {self.value(interval.high)}]"


def p_text(p: float | None) -> str:
    """A p value with the digits that decide at a limit."""
    return MISSING if p is None else f"{p:.4g}"


def span_text(low: float, high: float) -> str:
    """``3``, or ``3-5``."""
    return "-".join(dict.fromkeys(f"{end:g}" for end in (low, high)))


def places_text(places: Interval | None) -> str:
    """The places that an interval holds."""
    return MISSING if places is None else span_text(places.low, places.high)


def pair_lines(pair: Pair, numbers: Numbers, datasets: int) -> list[str]:
    """A cell of the multi-comparison matrix: difference, wins/ties/losses, p.

    Args:
        datasets: of the table; a pair that has fewer in common says how many.
    """
    if pair.difference is None:
        return [MISSING]
    mark = "*" if pair.wilcoxon is not None and pair.wilcoxon < ALPHA else ""
    p = MISSING if pair.wilcoxon is None else f"{pair.wilcoxon:.2g}{mark}"
    common = [] if pair.datasets == datasets else [f"n={pair.datasets}"]
    counts = f"{pair.wins}/{pair.ties}/{pair.losses}"
    return [numbers.difference(pair.difference), counts, p, *common]


MATRIX = f"difference, win/tie/loss, p of Wilcoxon (uncorrected, * below {ALPHA:g})"
"""What :func:`pair_lines` are."""


def noun(table: Table) -> str:
    """What a row of a table is: nobody says that a row without a seed is one run."""
    return "run" if table.seeded else "value"


def name_of(table: Table) -> str:
    """The benchmark and the settings of a table, as far as the frame says them."""
    settings = ", ".join(f"{name} {value}" for name, value in table.settings.items())
    return "; ".join(filter(None, [table.benchmark, settings]))


def mean_names(table: Table) -> tuple[str, str]:
    """What the two means are called, as in the leaderboard."""
    return (
        f"mean over {len(table.datasets)} datasets",
        f"mean over {len(table.group_names)} groups",
    )


def rests_on(table: Table) -> str:
    """On how much a table rests."""
    runs = sum(table.run_count(index) for index in range(len(table.methods)))
    methods = counted(len(table.methods), "method")
    datasets = counted(len(table.datasets), "data set")
    each = span_text(*table.per_cell_of_all)
    return f"{methods} on {datasets}, {counted(runs, noun(table))}, {each} per cell"


def remarks(report: Report) -> list[str]:
    """What a reader must know of a table before the numbers, and why some are not there."""
    table, found = report.table, list(report.table.notes)
    if table.mixed:
        unlike = "; ".join(
            f"{name} ({', '.join(value or 'none' for value in values)})"
            for name, values in table.mixed.items()
        )
        found.insert(0, f"mixed on request (--mix): rows of unlike {unlike} are ranked together")
    if table.lower_is_better:
        found.append("lower is better; a negative difference is in favour of the first of two")
    return [*found, *_missing(report), *_too_few(report)]


def _missing(report: Report) -> list[str]:
    """Who lacks what; methods that lack the same come together."""
    lacking: dict[tuple[str, ...], list[str]] = {}
    for row in report.summaries:
        if row.missing:
            lacking.setdefault(row.missing, []).append(row.method)
    found, whole = [], len(report.table.datasets)
    for missing, methods in lacking.items():
        have = f"{whole - len(missing)} of {whole} data sets (without {some(missing)})"
        found.append(
            f"{some(methods)}: {have}, so no mean and no rank; pairs are on what both have"
        )
    missed = Counter(name for row in report.summaries for name in row.missing)
    rare = [name for name, count in missed.items() if 2 * count > len(report.summaries)]
    if rare:
        found.append(f"most methods lack {some(rare)}: leave it out to rank the others")
    return found


def some(names: Sequence[str]) -> str:
    """A few names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"


def _too_few(report: Report) -> list[str]:
    table, found = report.table, []
    datasets, complete = len(table.datasets), table.complete.size
    if len(table.methods) < 2:
        found.append("one method: comparing needs at least 2")
    elif complete < 2:
        found.append("ranks need at least 2 methods that have every data set")
    elif complete < 3:
        found.append("Friedman's and Nemenyi's tests need at least 3 methods with every data set")
    if table.per_cell_of_all[0] == 1:
        found.append(f"no interval over seeds where a cell has one {noun(table)}")
    if datasets < FEWEST_DATASETS:
        found.append(
            f"{counted(datasets, 'data set')}: intervals and tiers over data sets need at least "
            f"{FEWEST_DATASETS}"
        )
    elif datasets < _ENOUGH_DATASETS:
        bootstrap = report.bootstrap
        found.append(
            f"intervals over {datasets} data sets are too narrow: they cover about "
            f"{100 * bootstrap.coverage(datasets):.0f} %, not {100 * bootstrap.confidence:g} %"
        )
    if datasets >= FEWEST_DATASETS and 1 in Counter(table.groups).values() and table.group_names:
        found.append("a group of one data set: no interval over data sets of the mean over groups")
    if len(table.methods) > 1:
        if datasets == 1:
            found.append("tests over data sets need at least 2 data sets")
        elif datasets < _LEAST_FOR_FIVE_PERCENT:
            least = 2 / 2**datasets
            found.append(
                f"with {datasets} data sets Wilcoxon's p cannot fall below {least:g}: "
                f"no pair can come out at 5 %, which needs at least {_LEAST_FOR_FIVE_PERCENT}"
            )
    return found
