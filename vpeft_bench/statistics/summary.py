"""What a table says of each method: means with intervals, ranks, win rates, improvability."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import rankdata

from vpeft_bench.statistics.bootstrap import FEWEST_DATASETS, Bootstrap, Interval
from vpeft_bench.statistics.table import Table


@dataclass(frozen=True)
class Mean:
    """A mean over data sets, or over groups of them.

    Attributes:
        value: None where a cell is missing.
        over_seeds: interval on these data sets, if the runs were repeated; None where a cell has
            one run.
        over_datasets: interval if other data sets of the kind were drawn; of each group as many.
            None where there are too few to tell.
    """

    value: float | None = None
    over_seeds: Interval | None = None
    over_datasets: Interval | None = None


@dataclass(frozen=True)
class MethodSummary:
    """One method. What compares it with others is None unless it has every data set.

    Attributes:
        method: its name.
        datasets: how many data sets it has.
        missing: those it lacks.
        runs: on all data sets together.
        per_cell: fewest and most runs of one cell.
        mean: plain mean over data sets.
        group_mean: mean over the groups' means; without value where there are no groups.
        of_groups: mean over the data sets of each group.
        average_rank: mean over data sets of its rank, 1 for the best, ties averaged.
        places: interval of its place by the plain mean, if other data sets were drawn.
        win_rate: share of pairs (other method, data set) that it wins, ties half.
        borda: number of those pairs, over all data sets.
        improvement: probability that a run of it is better than a run of another method on the
            same data set, ties half; mean over others and data sets.
        improvability: mean over data sets of the share of its error that the best method there
            does not make, 0 to 1; 0 for a method that is best everywhere.
    """

    method: str
    datasets: int
    missing: tuple[str, ...]
    runs: int
    per_cell: tuple[int, int]
    mean: Mean
    group_mean: Mean
    of_groups: dict[str, float | None]
    average_rank: float | None = None
    places: Interval | None = None
    win_rate: float | None = None
    borda: float | None = None
    improvement: float | None = None
    improvability: float | None = None


def summarise(table: Table, bootstrap: Bootstrap | None = None) -> tuple[MethodSummary, ...]:
    """Each method of a table: the best mean first, then those that lack a data set by name.

    Ranks, win rates, Borda, the probability of improvement and improvability are among the methods
    that have every data set, and change with them; the means and their intervals do not.
    """
    bootstrap = bootstrap or Bootstrap()
    compared = _Compared(table, bootstrap) if table.complete.size > 1 else None
    rows = []
    for index, method in enumerate(table.methods):
        there = ~np.isnan(table.cells[index])
        missing = tuple(n for n, has in zip(table.datasets, there, strict=True) if not has)
        rows.append(
            MethodSummary(
                method=method,
                datasets=int(there.sum()),
                missing=missing,
                runs=table.run_count(index),
                per_cell=table.per_cell(index),
                mean=_mean(table, index, [np.arange(len(table.datasets))], bootstrap),
                group_mean=_mean(table, index, _strata(table), bootstrap),
                of_groups=_of_groups(table, index),
            )
        )
        if compared is not None and not missing:
            rows[-1] = compared.completed(rows[-1], index)
    sign = 1 if table.lower_is_better else -1

    def place(row: MethodSummary) -> tuple[bool, float, str]:
        value = row.mean.value
        return value is None, 0.0 if value is None else sign * value, row.method

    return tuple(sorted(rows, key=place))


def _strata(table: Table) -> list[np.ndarray]:
    """The data sets of each group, as indices; none where there is one group or less."""
    groups = np.array(table.groups)
    return [np.flatnonzero(groups == name) for name in table.group_names]


def _of_groups(table: Table, index: int) -> dict[str, float | None]:
    found = {}
    for name, members in zip(table.group_names, _strata(table), strict=True):
        value = float(table.cells[index, members].mean())
        found[name] = None if np.isnan(value) else value
    return found


def _mean(table: Table, index: int, strata: list[np.ndarray], bootstrap: Bootstrap) -> Mean:
    """Mean over the strata's means; the plain mean where all data sets are one stratum."""
    order = np.concatenate(strata) if strata else np.empty(0, dtype=int)
    values = table.cells[index, order]
    if not strata or np.isnan(values).any():
        return Mean()
    sizes = [stratum.size for stratum in strata]
    share = np.concatenate([np.full(size, 1 / size / len(sizes)) for size in sizes])
    over_seeds = over_datasets = None
    if min(table.runs[index][data].size for data in order) > 1:
        names = [f"{table.methods[index]}\n{table.datasets[data]}" for data in order]
        draws = bootstrap.over_seeds([table.runs[index][data] for data in order], names)
        over_seeds = bootstrap.interval(draws @ share)
    if order.size >= FEWEST_DATASETS and min(sizes) > 1:
        over_datasets = bootstrap.interval(bootstrap.weights(sizes) @ values)
    return Mean(float(values @ share), over_seeds, over_datasets)


class _Compared:
    """What is computed for all methods that have every data set together."""

    def __init__(self, table: Table, bootstrap: Bootstrap) -> None:
        gains, count = table.gains[table.complete], table.complete.size
        self._datasets = datasets = gains.shape[1]
        self._rows = {int(method): row for row, method in enumerate(table.complete)}
        ranks = rankdata(-gains, axis=0)
        self._ranks = ranks.mean(axis=1)
        self._borda = count * datasets - ranks.sum(axis=1)
        better = table.better[np.ix_(table.complete, table.complete)]
        self._improvement = np.nanmean(better, axis=(1, 2))  # NaN is the method itself
        self._improvability = _improvability(table)
        self._places: list[Interval] | None = None
        if datasets >= FEWEST_DATASETS:
            means = bootstrap.weights([datasets]) @ gains.T
            drawn = rankdata(-means.round(9), axis=1)
            self._places = [bootstrap.places(drawn[:, row]) for row in range(count)]

    def completed(self, summary: MethodSummary, method: int) -> MethodSummary:
        """``summary`` with what compares its method, given as an index, with the others."""
        row, others = self._rows[method], len(self._rows) - 1
        improvability = self._improvability
        return replace(
            summary,
            average_rank=float(self._ranks[row]),
            places=None if self._places is None else self._places[row],
            win_rate=float(self._borda[row] / (others * self._datasets)),
            borda=float(self._borda[row]),
            improvement=float(self._improvement[row]),
            improvability=None if improvability is None else float(improvability[row]),
        )


def _improvability(table: Table) -> np.ndarray | None:
    """Mean over data sets of 1 - best error / error; None where values are no share."""
    cells = table.cells[table.complete]
    if table.lower_is_better:
        if cells.min() < 0:
            return None
        errors = cells
    elif table.top is None:
        return None
    else:
        errors = table.top - cells
    best = errors.min(axis=0)
    ratio = np.divide(best, errors, out=np.ones_like(errors), where=errors > 0)
    return np.asarray((1 - ratio).mean(axis=1))
