"""Which of the tried points is taken: the rule, and what is known of a point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from vpeft_bench.metric_names import METRICS
from vpeft_bench.records.run_record import Metrics, RunRecord
from vpeft_bench.tuning.space import Coordinates, Settings

RULE = "best val; within one standard error the most central, then the cheapest"
"""As variants tell it, see :func:`choose`."""
OK, DIVERGED, OOM, REFUSED = "ok", "diverged", "oom", "refused"
GIVEN_UP = "given up"
TRIED = (OK, DIVERGED, OOM, REFUSED)
"""With these a point counts as tried; with any other but ``GIVEN_UP`` it is still to be run."""


@dataclass(frozen=True)
class Point:
    """One point of a search, and what became of it.

    Attributes:
        number: from 0, the default configuration.
        settings: the searched keys.
        distance: from the default, see :meth:`vpeft_bench.tuning.space.Space.distance`.
        result: one of ``TRIED``, or why it is not.
        reason: why it has no score.
        reused: whether its run was there before.
        record: of its run, if there is one.
        at: where it lies in the space; empty where that is not known yet.
    """

    number: int
    settings: Settings
    distance: float
    result: str
    reason: str = ""
    reused: bool = False
    record: RunRecord | None = None
    at: Coordinates = ()

    @property
    def gain(self) -> float | None:
        """How good its score is: more is better; None of a point without one."""
        metrics = self.metrics
        if metrics is None or metrics.value is None:
            return None
        return METRICS.get(metrics.headline).gain(metrics.value)

    @property
    def metrics(self) -> Metrics | None:
        """What the last epoch reached on val; None of a point without a score."""
        found = None if self.record is None else self.record.happened.last_epoch
        return found if self.result == OK and found and found.value is not None else None

    @property
    def parameters(self) -> int | None:
        """Trained parameters, those of the head included."""
        found = None if self.record is None else self.record.happened.parameters
        return None if found is None else found.total

    @property
    def seconds(self) -> float:
        """All recorded seconds of its run; 0 where nothing ran."""
        if self.record is None:
            return 0.0
        seconds = self.record.happened.seconds
        return sum(getattr(seconds, one.name) or 0.0 for one in fields(seconds))


@dataclass(frozen=True)
class Choice:
    """What :func:`choose` decided.

    Attributes:
        point: that is taken.
        best: that scored best; of equals the first.
        error: standard error of the best score, in its unit; None where it has none.
        tied: how many points are as good as the best, itself among them.
    """

    point: Point
    best: Point
    error: float | None
    tied: int


def choose(points: Sequence[Point]) -> Choice | None:
    """The point with the best score on val, or one that cannot be told from it; None without any.

    A score on a few hundred pictures is uncertain, and the best of many is too good by luck. So all
    points within one standard error of the best are tied. Of a share of right pictures p, as top-1
    or R@1, the standard error is sqrt(p (1 - p) / n). The number of pictures does not give that of
    an average precision or an intersection over union: there only equal scores are tied. Of the
    tied points the most central is taken, which is the one nearest to the default
    (:meth:`vpeft_bench.tuning.space.Space.distance`, to two decimals); of several, the cheapest:
    the fewest trained parameters, then the shortest recorded training; then the first.
    """
    gains = {point.number: point.gain for point in points if point.gain is not None}
    if not gains:
        return None
    known = {point.number: point for point in points}
    best = known[max(gains, key=lambda number: (gains[number], -number))]
    metrics = best.metrics
    assert metrics is not None
    assert metrics.value is not None
    error = METRICS.get(metrics.headline).standard_error(metrics.value, metrics.images)
    least = gains[best.number] - (error or 0.0)
    tied = [known[number] for number, gain in gains.items() if gain >= least]
    return Choice(min(tied, key=_order), best, error, len(tied))


def _order(point: Point) -> tuple[float, int, float, int]:
    assert point.record is not None
    train = point.record.happened.seconds.train or 0.0
    return round(point.distance, 2), point.parameters or 0, train, point.number
