"""What a table says of all methods together; each statement changes with who is compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import friedmanchisquare, rankdata, studentized_range

from vpeft_bench.statistics.pairs import Pair
from vpeft_bench.statistics.table import Table

ALPHA = 0.05


@dataclass(frozen=True)
class Friedman:
    """Friedman's test that all methods have the same ranks; p by the chi-square approximation."""

    statistic: float
    p: float


@dataclass(frozen=True)
class Nemenyi:
    """The critical difference of average ranks at 5 %.

    Attributes:
        critical_difference: two methods whose average ranks differ by more are told apart.
        pairs: those pairs, the better one first.
    """

    critical_difference: float
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Holm:
    """Wilcoxon's p of every pair, corrected for all of them by Holm's procedure.

    Attributes:
        count: of the pairs that have a p.
        corrected: p of each of these pairs.
        significant: how many are below 5 %.
    """

    count: int
    corrected: dict[frozenset[str], float]
    significant: int


@dataclass(frozen=True)
class Tier:
    """Methods that are not distinguishable from the best one of them.

    Attributes:
        best: the one with the best mean of those that no tier before has.
        methods: it and the others, best mean first.
        corrected: p of every method against ``best`` that no tier before has: of a paired
            bootstrap over data sets, Holm over these comparisons.
    """

    best: str
    methods: tuple[str, ...]
    corrected: dict[str, float]


@dataclass(frozen=True)
class Family:
    """All methods that have every data set.

    Attributes:
        methods: by average rank, best first.
        ranks: the average rank of each.
        datasets: on how many data sets.
        friedman: None with fewer than three methods or two data sets.
        nemenyi: likewise.
        holm: over all pairs of the table, those of methods that lack data sets included; None
            without any p.
        tiers: empty where there are too few data sets.
    """

    methods: tuple[str, ...]
    ranks: tuple[float, ...]
    datasets: int
    friedman: Friedman | None
    nemenyi: Nemenyi | None
    holm: Holm | None
    tiers: tuple[Tier, ...]


def family(table: Table, pairs: Sequence[Pair], by_mean: Sequence[str]) -> Family:
    """The tests over all methods.

    Args:
        table: the cells.
        pairs: all pairs of the table.
        by_mean: the methods that have every data set, best mean first.
    """
    gains = table.gains[table.complete]
    count, datasets = gains.shape
    ranks = rankdata(-gains, axis=0).mean(axis=1) if count else np.empty(0)
    order = np.argsort(ranks, kind="stable")
    names = tuple(table.methods[table.complete[index]] for index in order)
    sorted_ranks = tuple(float(ranks[index]) for index in order)
    tested = count >= 3 and datasets >= 2
    return Family(
        methods=names,
        ranks=sorted_ranks,
        datasets=datasets,
        friedman=_friedman(gains) if tested else None,
        nemenyi=_nemenyi(names, sorted_ranks, datasets) if tested else None,
        holm=_holm_of(pairs),
        tiers=tuple(_tiers(pairs, by_mean)),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected by Holm's step-down procedure (Scand. J. Stat. 6, 1979)."""
    corrected, highest = [0.0] * len(p_values), 0.0
    for step, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, (len(p_values) - step) * p_values[index])
        corrected[index] = min(1.0, highest)
    return corrected


def critical_difference(methods: int, datasets: int, alpha: float = ALPHA) -> float:
    """Nemenyi's critical difference of average ranks (Demšar, JMLR 7, 2006)."""
    quantile = studentized_range.isf(alpha, methods, np.inf) / np.sqrt(2)
    return float(quantile * np.sqrt(methods * (methods + 1) / (6 * datasets)))


def _friedman(gains: np.ndarray) -> Friedman:
    if (gains == gains[0]).all():  # 0/0
        return Friedman(0.0, 1.0)
    result = friedmanchisquare(*gains)
    return Friedman(float(result.statistic), float(result.pvalue))


def _nemenyi(names: Sequence[str], ranks: Sequence[float], datasets: int) -> Nemenyi:
    difference = critical_difference(len(names), datasets)
    apart = [
        (names[better], names[worse])
        for better in range(len(names))
        for worse in range(better + 1, len(names))
        if ranks[worse] - ranks[better] > difference
    ]
    return Nemenyi(difference, tuple(apart))


def _holm_of(pairs: Sequence[Pair]) -> Holm | None:
    tested = {pair.names: pair.wilcoxon for pair in pairs if pair.wilcoxon is not None}
    if not tested:
        return None
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    return Holm(len(tested), corrected, sum(p < ALPHA for p in corrected.values()))


def _tiers(pairs: Sequence[Pair], by_mean: Sequence[str]) -> list[Tier]:
    p_values = {pair.names: pair.bootstrap_p for pair in pairs}
    left, tiers = list(by_mean) if len(by_mean) > 1 else [], []
    while left:
        best, *others = left
        found = [p_values[frozenset((best, other))] for other in others]
        known = [p for p in found if p is not None]
        if len(known) < len(found):  # too few data sets
            return []
        corrected = dict(zip(others, holm(known), strict=True))
        members = [best, *(name for name in others if corrected[name] >= ALPHA)]
        tiers.append(Tier(best, tuple(members), corrected))
        left = [name for name in left if name not in members]
    return tiers
