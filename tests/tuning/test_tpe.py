"""Points that follow from scores."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from vpeft_bench.tuning.space import Coordinates
from vpeft_bench.tuning.tpe import following

pytest.importorskip("optuna")
BOTH = [True, True, False, False]


def searched(gain: Callable[[Coordinates], float | None], points: int) -> list[Coordinates]:
    tried: list[tuple[Coordinates, float | None]] = []
    for _ in range(points):
        at = following(BOTH, tried)
        tried.append((at, gain(at)))
    return [at for at, _ in tried]


def test_a_search_is_rebuilt_from_its_scores_alone() -> None:
    first, second = (searched(lambda at: -abs(at[0] - 0.8), 12) for _ in range(2))
    assert first == second


def test_what_is_not_searched_stays_at_0() -> None:
    points = searched(lambda at: at[0], 6)
    assert all(at[2:] == (0.0, 0.0) and min(at) >= 0 and max(at) < 1 for at in points)


def test_it_goes_where_points_are_good() -> None:
    late = np.array(searched(lambda at: -abs(at[0] - 0.8), 40))[-10:, 0]
    assert np.median(np.abs(late - 0.8)) < 0.1  # of points drawn evenly it is 0.3


def test_a_point_without_a_score_is_worse_than_any_with_one() -> None:
    """Half of the space diverges."""
    late = np.array(searched(lambda at: None if at[0] > 0.5 else 50.0, 40))[-20:, 0]
    assert np.mean(late > 0.5) < 0.25
