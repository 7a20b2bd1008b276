"""Points that are given up: on many data sets, they are worse than another one.

Early epochs of a short run with a long schedule do not tell how it ends, but data sets tell of each
other. So data sets are searched in rounds, and a point that is hopeless on those of the rounds so
far is not run on the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from vpeft_bench.tuning.choice import Point

ROUND = 5
"""Data sets of a round: of fewer, no signs have a p below ``LEVEL`` (of five alike it is 1/32)."""
LEVEL = 0.05

T = TypeVar("T")


def rounds(items: Sequence[T]) -> list[Sequence[T]]:
    """The rounds of some data sets; the last may be shorter."""
    return [items[start : start + ROUND] for start in range(0, len(items), ROUND)]


def hopeless(tried: Sequence[Sequence[Point]]) -> dict[int, float]:
    """The points to be given up, with the p of each.

    The incumbent is the point with the best mean. Another one is hopeless where a paired, one-sided
    Wilcoxon signed-rank test over the data sets says that it is worse, p < ``LEVEL``. On a data set
    where a point has no score, as it diverged or was refused, it is worse than any that has one. No
    test corrects for the others: a point that is given up wrongly costs little, since the incumbent
    was as good.

    Args:
        tried: of every data set, the same points that were tried on all.
    """
    gains: dict[int, list[float | None]] = {}
    for points in tried:
        for point in points:
            gains.setdefault(point.number, []).append(point.gain)
    whole = {n: [g for g in some if g is not None] for n, some in gains.items() if None not in some}
    if not whole:
        return {}
    best = max(whole, key=lambda n: (sum(whole[n]), -n))
    found = {n: _p(some, whole[best]) for n, some in gains.items() if n != best}
    return {number: p for number, p in found.items() if p < LEVEL}


def _p(gains: Sequence[float | None], best: Sequence[float]) -> float:
    """Of the hypothesis that ``gains`` are not below ``best``."""
    import numpy as np

    from vpeft_bench.statistics.pairs import signed_rank  # with scipy: takes a second

    known = [gain - other for gain, other in zip(gains, best, strict=True) if gain is not None]
    worst = min([0.0, *known]) - 1.0
    differences = [
        worst if gain is None else gain - other for gain, other in zip(gains, best, strict=True)
    ]
    p = signed_rank(np.array(differences), below=True)
    return 1.0 if p is None else p
