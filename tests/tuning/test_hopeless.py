"""Points that are given up across data sets."""

from __future__ import annotations

import pytest

from tests.tuning.test_choice import point
from vpeft_bench.tuning.choice import DIVERGED, Point
from vpeft_bench.tuning.hopeless import ROUND, hopeless, rounds


def rows(*scores: list[float | None]) -> list[list[Point]]:
    """For each data set the points with these scores; None diverged."""
    return [
        [
            Point(number, {}, 0.1, DIVERGED) if value is None else point(number, value, 0.1)
            for number, value in enumerate(row)
        ]
        for row in scores
    ]


def test_what_is_worse_everywhere_is_given_up() -> None:
    """Of five differences of one sign p is 1/32; of four it is 1/16."""
    worse = rows(*([90.0 + k, 80.0 + 2 * k, 89.0 - (-1) ** k * 3] for k in range(5)))
    assert hopeless(worse) == {1: pytest.approx(1 / 32)}
    assert hopeless(worse[:4]) == {}


def test_what_diverges_everywhere_is_given_up_and_the_best_never() -> None:
    assert hopeless(rows(*([50.0 + k, None] for k in range(5)))) == {1: pytest.approx(1 / 32)}
    assert hopeless(rows(*([50.0 + k, 50.0 + k] for k in range(5)))) == {}
    assert hopeless(rows(*([None, None] for _ in range(5)))) == {}


def test_one_data_set_that_likes_it_saves_a_point() -> None:
    scores = [[90.0, 80.0], [91.0, 82.0], [92.0, 85.0], [93.0, 81.0], [70.0, 95.0]]
    assert hopeless(rows(*scores)) == {}


def test_rounds() -> None:
    assert [len(some) for some in rounds(range(19))] == [5, 5, 5, 4]
    assert 0.5**ROUND < 0.05 <= 0.5 ** (ROUND - 1)
