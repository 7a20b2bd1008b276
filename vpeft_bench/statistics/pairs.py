"""What a table says of two methods by themselves, on the data sets that both have.

Nothing here depends on any third method: not the data sets, not the resamples, not the order.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np
from scipy.stats import rankdata, wilcoxon

from vpeft_bench.statistics.bootstrap import FEWEST_DATASETS, Bootstrap, Interval
from vpeft_bench.statistics.table import Table

_DIGITS = 11
"""Significant digits of a difference; less than those of a cell, because digits cancel."""
_FEW = 13
"""Differences up to which every choice of signs is counted out."""


@dataclass(frozen=True)
class Pair:
    """Two methods on their common data sets; the better one by the mean comes first.

    Attributes:
        first: the better one, or the first by name where they are equal.
        second: the other.
        datasets: how many data sets both have.
        runs: runs of ``first`` and of ``second`` on these.
        per_cell: of both, fewest and most runs of one cell.
        means: of ``first`` and of ``second`` over these.
        difference: mean of ``first`` minus ``second``, in the unit of the values.
        over_datasets: its paired interval, if other data sets were drawn.
        over_seeds: its interval on these data sets, if the runs were repeated.
        wins: data sets on which ``first`` is better; ``ties``, ``losses``: equal, worse.
        improvement: probability that a run of ``first`` is better than one of ``second`` on the
            same data set, ties half, mean over data sets.
        wilcoxon: two-sided p of Wilcoxon's signed-rank test over data sets, not corrected for
            other pairs; None with fewer than two data sets.
        bootstrap_p: two-sided p from the resamples of ``over_datasets``, not corrected and
            not below 2 / 2^datasets.
    """

    first: str
    second: str
    datasets: int
    runs: tuple[int, int]
    per_cell: tuple[tuple[int, int], tuple[int, int]]
    means: tuple[float, float] | None = None
    difference: float | None = None
    over_datasets: Interval | None = None
    over_seeds: Interval | None = None
    wins: int = 0
    ties: int = 0
    losses: int = 0
    improvement: float | None = None
    wilcoxon: float | None = None
    bootstrap_p: float | None = None

    @property
    def names(self) -> frozenset[str]:
        """Both, in no order."""
        return frozenset((self.first, self.second))

    def seen_from(self, method: str) -> Pair:
        """The same with ``method``, one of the two, as the first."""
        if method == self.first:
            return self
        return Pair(
            first=self.second,
            second=self.first,
            datasets=self.datasets,
            runs=self.runs[::-1],
            per_cell=self.per_cell[::-1],
            means=None if self.means is None else self.means[::-1],
            difference=None if self.difference is None else -self.difference,
            over_datasets=_turned(self.over_datasets),
            over_seeds=_turned(self.over_seeds),
            wins=self.losses,
            ties=self.ties,
            losses=self.wins,
            improvement=None if self.improvement is None else 1 - self.improvement,
            wilcoxon=self.wilcoxon,
            bootstrap_p=self.bootstrap_p,
        )


def compare(table: Table, bootstrap: Bootstrap | None = None) -> tuple[Pair, ...]:
    """Every pair of methods of a table, in the order of their names."""
    bootstrap = bootstrap or Bootstrap()
    drawn: dict[tuple[int, bytes], np.ndarray] = {}
    pairs = combinations(range(len(table.methods)), 2)
    return tuple(_pair(table, first, second, bootstrap, drawn) for first, second in pairs)


def _pair(
    table: Table,
    first: int,
    second: int,
    bootstrap: Bootstrap,
    drawn: dict[tuple[int, bytes], np.ndarray],
) -> Pair:
    common = np.flatnonzero(~np.isnan(table.cells[[first, second]]).any(axis=0))
    if not common.size:
        names = table.methods[first], table.methods[second]
        return Pair(*names, datasets=0, runs=(0, 0), per_cell=((0, 0), (0, 0)))
    better = _differences(table.gains[first, common], table.gains[second, common])
    if better.mean() < 0:
        first, second, better = second, first, -better
    differences = -better if table.lower_is_better else better
    over_datasets = over_seeds = bootstrap_p = None
    if common.size >= FEWEST_DATASETS:
        draws = bootstrap.over_datasets(differences)
        over_datasets, bootstrap_p = (
            bootstrap.interval(draws),
            bootstrap.p_value(draws, common.size),
        )
    if min(table.runs[method][data].size for method in (first, second) for data in common) > 1:
        of_first, of_second = (
            _drawn(table, method, common, bootstrap, drawn) for method in (first, second)
        )
        over_seeds = bootstrap.interval(of_first - of_second)
    return Pair(
        first=table.methods[first],
        second=table.methods[second],
        datasets=int(common.size),
        runs=(table.run_count(first, common), table.run_count(second, common)),
        per_cell=(table.per_cell(first, common), table.per_cell(second, common)),
        means=(
            float(table.cells[first, common].mean()),
            float(table.cells[second, common].mean()),
        ),
        difference=float(differences.mean()),
        over_datasets=over_datasets,
        over_seeds=over_seeds,
        wins=int((better > 0).sum()),
        ties=int((better == 0).sum()),
        losses=int((better < 0).sum()),
        improvement=float(table.better[first, second, common].mean()),
        wilcoxon=signed_rank(differences),
        bootstrap_p=bootstrap_p,
    )


def signed_rank(differences: np.ndarray, *, below: bool = False) -> float | None:
    """Two-sided p of Wilcoxon's signed-rank test; zeros are dropped, as Wilcoxon did.

    As scipy does by itself: exact up to 50 differences where no two are equally large and none is
    zero, exact up to 13 in any case, else by the normal approximation. 1 where all are zero, None
    for fewer than two.

    Args:
        differences: one for each data set.
        below: one-sided: whether they are below zero.
    """
    if differences.size < 2:
        return None
    if not differences.any():
        return 1.0
    if differences.size > _FEW:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # older versions tell of the approximation
            return float(wilcoxon(differences, alternative="less" if below else "two-sided").pvalue)
    # Scipy permutes here, which takes it a second; there are at most 2^13 ways to choose signs.
    differences = differences[differences != 0]
    ranks = rankdata(np.abs(differences))
    sums = _signs(differences.size) @ ranks
    observed = ranks[differences > 0].sum()
    if below:
        return float((sums <= observed).mean())
    return float(min(1.0, 2 * min((sums <= observed).mean(), (sums >= observed).mean())))


@cache
def _signs(count: int) -> np.ndarray:
    """Every choice of the positive ones among ``count`` differences, ``(2^count, count)``."""
    return np.arange(2**count)[:, None] >> np.arange(count) & 1


def _turned(interval: Interval | None) -> Interval | None:
    return None if interval is None else Interval(-interval.high, -interval.low)


def _differences(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """First minus second, without the rounding of the last digits: equal ones come out equal."""
    largest = max(np.abs(first).max(), np.abs(second).max())
    if largest == 0:
        return np.zeros_like(first)
    decimals = _DIGITS - 1 - math.floor(math.log10(largest))
    return np.asarray(np.round(first - second, decimals))


def _drawn(
    table: Table,
    method: int,
    common: np.ndarray,
    bootstrap: Bootstrap,
    drawn: dict[tuple[int, bytes], np.ndarray],
) -> np.ndarray:
    """Resampled means of a method over these data sets, computed once for all its pairs."""
    key = method, common.tobytes()
    if key not in drawn:
        names = [f"{table.methods[method]}\n{table.datasets[data]}" for data in common]
        runs = [table.runs[method][data] for data in common]
        drawn[key] = bootstrap.over_seeds(runs, names).mean(axis=1)
    return drawn[key]
