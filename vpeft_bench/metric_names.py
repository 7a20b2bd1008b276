"""What is measured on a split, under which name, and what it is called in print.

Each kind of task brings its metrics (:mod:`vpeft_bench.tasks.kind`); the first of an evaluation is
its headline: what runs are ranked by. A package may add metrics of a classifier: each is computed
in every evaluation, recorded and shown beside the headline. Importing this module does not import
torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from vpeft_bench.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor


class BoxMetric(Enum):
    """The average precision that a detection data set is known by."""

    coco = "coco"
    """Of boxes, mean over IoU 0.50 to 0.95; of masks, where predicted, as well."""
    coco_masks = "coco_masks"
    """The same, with the average precision of masks as the headline."""
    voc07 = "voc07"
    """At IoU 0.50, at eleven levels of recall."""
    voc12 = "voc12"
    """At IoU 0.50, area below the curve."""


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        title: what it is called in print.
        beside: headlines beside which tables show it; the files have all metrics.
        of_pairs: for a classifier, its value in percent from the ``(C, C)`` counts of pictures by
            true and predicted class; NaN where it is not defined. None: a task computes it itself.
        unit: of its values, as tables write it after the title.
        minimum, maximum: no value lies outside; None: there is no bound.
        higher_is_better: what a better value is.
        share: it is the share of pictures, or queries, that are right, each of which counts once:
            then their number alone gives its standard error.
    """

    title: str
    beside: tuple[str, ...] = ()
    of_pairs: Callable[[Tensor], float] | None = None
    unit: str = "%"
    minimum: float | None = 0.0
    maximum: float | None = 100.0
    higher_is_better: bool = True
    share: bool = False

    def problem(self, value: float) -> str | None:
        """Why ``value`` cannot be one of this metric, or None."""
        low, high = self.minimum, self.maximum
        if (low is None or value >= low) and (high is None or value <= high):
            return None
        bounds = " and ".join(
            f"{what} {bound:g}"
            for what, bound in (("at least", low), ("at most", high))
            if bound is not None
        )
        return f"must be {bounds}"

    def standard_error(self, value: float, count: int) -> float | None:
        """Of ``value`` on ``count`` pictures, in its unit: sqrt(p (1 - p) / n) of a share.

        None where it does not follow from the number of pictures.
        """
        if not self.share:
            return None
        right = value / 100
        return 100 * math.sqrt(max(0.0, right * (1 - right)) / count)

    def gain(self, value: float) -> float:
        """``value`` so that more is better."""
        return value if self.higher_is_better else -value


def _of_tasks() -> Mapping[str, Metric]:
    from vpeft_bench.tasks.names import every_kind

    return {name: metric for kind in every_kind() for name, metric in kind.metrics.items()}


METRICS: Registry[Metric] = Registry("metric", brought=_of_tasks)


def title(name: str) -> str:
    """What a metric is called in print."""
    return METRICS.get(name).title


def heading(name: str) -> str:
    """What a column of its values is called: title and unit."""
    return f"{title(name)} {METRICS.get(name).unit}".strip()


def shown(name: str, value: float, digits: int = 2) -> str:
    """A value with its unit."""
    return f"{value:.{digits}f} {METRICS.get(name).unit}".strip()


def beside(headline: str) -> list[str]:
    """The metrics that tables show beside a headline, in the order of their list."""
    return [name for name in METRICS.names() if headline in METRICS.get(name).beside]
