"""Bootstrap intervals: over data sets, and over seeds within data sets.

All draws follow from one seed and from what is drawn, never from what else is in the table: a
method or a pair gets the same interval whoever else is compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import norm, t

_ROUNDING = 1e-9
FEWEST_DATASETS = 5
"""Of fewer data sets an interval would be far too narrow: one of 95 % covers 3 in 4 with three."""


@dataclass(frozen=True)
class Interval:
    """A percentile interval."""

    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether all of it lies on one side of 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Bootstrap:
    """How often, from which seed and for which confidence is resampled.

    Attributes:
        resamples: how many.
        seed: the same seed gives the same intervals.
        confidence: share of the resamples within an interval.
    """

    resamples: int = 10_000
    seed: int = 0
    confidence: float = 0.95
    _weights: dict[tuple[int, ...], np.ndarray] = field(
        default_factory=dict, repr=False, compare=False
    )

    def weights(self, sizes: Sequence[int]) -> np.ndarray:
        """Weights ``(resamples, sum of sizes)`` of data sets whose strata have these sizes.

        Each stratum is drawn from with replacement, as often as it has data sets; its mean counts
        as much as that of any other stratum. One stratum gives the plain mean over data sets.
        """
        key = tuple(sizes)
        if key not in self._weights:
            random = np.random.default_rng([self.seed, *key])
            strata = [
                random.multinomial(size, np.full(size, 1 / size), size=self.resamples) / size
                for size in key
            ]
            self._weights[key] = np.concatenate(strata, axis=1) / len(key)
        return self._weights[key]

    def over_datasets(self, values: np.ndarray) -> np.ndarray:
        """Means ``(resamples,)`` of ``values`` ``(data sets,)``, drawn with replacement."""
        return np.asarray(self.weights([values.size]) @ values)

    def over_seeds(self, cells: Sequence[np.ndarray], names: Sequence[str]) -> np.ndarray:
        """Cell means ``(resamples, cells)``: the runs of each are drawn, the cells stay.

        A cell of n runs is drawn n - 1 times with replacement, which gives its mean the variance
        s²/n; n draws would give (n - 1)/n of it, two thirds for three seeds (McCarthy and Snowden
        1985; Rao and Wu, JASA 83, 1988).

        Args:
            cells: the runs of each, two or more.
            names: what each cell is; draws of one name are the same, of two names independent.
        """
        draws = np.empty((self.resamples, len(cells)))
        for column, (runs, name) in enumerate(zip(cells, names, strict=True)):
            digest = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
            random = np.random.default_rng([self.seed, digest])
            chosen = random.integers(runs.size, size=(self.resamples, runs.size - 1))
            draws[:, column] = runs[chosen].mean(axis=1)
        return draws

    def interval(self, draws: np.ndarray) -> Interval:
        """The percentile interval of draws ``(resamples,)``."""
        outside = (1 - self.confidence) / 2
        low, high = np.quantile(draws, [outside, 1 - outside])
        return Interval(float(low), float(high))

    def places(self, draws: np.ndarray) -> Interval:
        """The interval of places ``(resamples,)``; its ends are places that were drawn."""
        outside = (1 - self.confidence) / 2
        low, high = np.quantile(draws, [outside, 1 - outside], method="inverted_cdf")
        return Interval(float(low), float(high))

    def p_value(self, draws: np.ndarray, datasets: int) -> float:
        """Two-sided p of a mean difference being 0, from its draws ``(resamples,)``.

        Never below 2 / 2^n: that is how often n data sets without any difference all have the same
        sign, and resamples of such a sample hide it.
        """
        zero = _ROUNDING * np.abs(draws).max()  # a sum that is 0 may come out as 1e-17
        fewer = min(np.count_nonzero(draws <= zero), np.count_nonzero(draws >= -zero))
        return min(1.0, max(2 * (int(fewer) + 1) / (draws.size + 1), 2.0 ** (1 - datasets)))

    def coverage(self, datasets: int) -> float:
        """Share of intervals over so few data sets that hold the truth, were values normal.

        The interval is that of a normal with the deviation of the sample, divided by n, where a
        Student's t with n - 1 is due.
        """
        width = norm.ppf((1 + self.confidence) / 2) * np.sqrt((datasets - 1) / datasets)
        return float(2 * t.cdf(width, datasets - 1) - 1)
