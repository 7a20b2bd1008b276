"""The rule by which one of the tried points is taken."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.leaderboard.conftest import make_run
from vpeft_bench.metric_names import METRICS
from vpeft_bench.records.run_record import Metrics, Parameters, Seconds, Split
from vpeft_bench.tuning.choice import DIVERGED, OK, Point, choose


def point(
    number: int,
    value: float,
    distance: float,
    *,
    parameters: int = 100,
    train: float = 10.0,
    images: int = 200,
    metric: str = "top1",
) -> Point:
    record = make_run(value, protocol="select")
    happened = replace(
        record.happened,
        last_epoch=Metrics(Split.VAL, 10, images, metric, {metric: value}),
        parameters=Parameters(parameters, 0, parameters, 1000),
        seconds=Seconds(setup=1.0, train=train, eval=0.5),
    )
    return Point(number, {}, distance, OK, record=replace(record, happened=happened))


def chosen(*points: Point) -> int:
    choice = choose(points)
    assert choice is not None
    return choice.point.number


def test_within_one_standard_error_the_most_central() -> None:
    """Of 200 pictures 90 % right: the standard error is 2.12 points."""
    found = choose([point(0, 87.9, 0.0), point(1, 90.0, 0.4), point(2, 89.0, 0.2)])
    assert found is not None
    assert found.error == pytest.approx(2.1213, abs=1e-4)
    assert (found.point.number, found.best.number, found.tied) == (0, 1, 3)
    assert chosen(point(0, 87.8, 0.0), point(1, 90.0, 0.4), point(2, 89.0, 0.2)) == 2
    assert chosen(point(0, 70.0, 0.0), point(1, 90.0, 0.4), point(2, 80.0, 0.2)) == 1


def test_equally_central_the_cheapest() -> None:
    """By trained parameters, then by recorded training."""
    assert chosen(point(1, 90, 0.301, parameters=9), point(2, 90, 0.304, parameters=8)) == 2
    assert chosen(point(1, 90, 0.3, train=9), point(2, 90, 0.3, train=8)) == 2
    assert chosen(point(1, 90, 0.3), point(2, 90, 0.3)) == 1


def test_without_a_standard_error_only_equals_are_tied() -> None:
    scores = [(0, 50.0, 0.0), (1, 50.1, 0.5), (2, 50.1, 0.4)]
    assert chosen(*(point(*score, metric="miou") for score in scores)) == 2
    assert METRICS.get("miou").standard_error(50.0, 200) is None
    assert METRICS.get("recall_at_1").standard_error(50.0, 100) == pytest.approx(5.0)


def test_points_without_a_score_are_not_taken() -> None:
    diverged = Point(1, {}, 0.1, DIVERGED, "the loss is not finite")
    assert chosen(diverged, point(2, 10.0, 0.9)) == 2
    assert choose([diverged]) is None


def test_seconds_are_all_that_were_measured() -> None:
    assert point(0, 90.0, 0.0).seconds == pytest.approx(11.5)
    assert Point(0, {}, 0.0, DIVERGED).seconds == 0
