"""Intervals against closed forms and against what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from tests.statistics.conftest import long
from vpeft_bench.statistics import Bootstrap, analyse

MANY = Bootstrap(resamples=40_000)


def test_over_datasets_the_spread_is_the_standard_error() -> None:
    values = np.random.default_rng(1).normal(70, 10, size=19)
    draws = MANY.over_datasets(values)
    assert draws.mean() == pytest.approx(values.mean(), abs=0.05)
    assert draws.std() == pytest.approx(values.std() / np.sqrt(19), rel=0.02)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_over_seeds_the_spread_is_that_of_the_mean(seeds: int) -> None:
    """Variance s²/n of each cell, s² with n - 1: what repeating the runs would show."""
    random = np.random.default_rng(2)
    cells = [np.sort(random.normal(80, 1 + d, size=seeds)) for d in range(8)]
    draws = MANY.over_seeds(cells, [str(d) for d in range(8)]).mean(axis=1)
    expected = np.sqrt(sum(cell.var(ddof=1) / seeds for cell in cells)) / 8
    assert draws.std() == pytest.approx(expected, rel=0.03)
    assert draws.mean() == pytest.approx(np.mean(cells), abs=0.02)


def test_strata_count_alike() -> None:
    """Groups of 7, 4 and 8: the mean of their means, each drawn within itself."""
    sizes, random = (7, 4, 8), np.random.default_rng(3)
    strata = [random.normal(50 + 10 * g, 1 + g, size=size) for g, size in enumerate(sizes)]
    draws = MANY.weights(sizes) @ np.concatenate(strata)
    assert draws.mean() == pytest.approx(np.mean([s.mean() for s in strata]), abs=0.02)
    expected = np.sqrt(sum(s.var() / s.size for s in strata)) / 3
    assert draws.std() == pytest.approx(expected, rel=0.02)


def test_intervals_cover_what_they_say() -> None:
    """Of 400 tables of 19 data sets, about 95 % of the intervals hold the true difference."""
    random, bootstrap = np.random.default_rng(4), Bootstrap(resamples=2000)
    held = 0
    for _ in range(400):
        interval = bootstrap.interval(bootstrap.over_datasets(random.normal(1.0, 2.0, size=19)))
        held += interval.low <= 1.0 <= interval.high
    assert 0.89 < held / 400 < 0.97


def test_p_and_interval_agree() -> None:
    random = np.random.default_rng(5)
    for _ in range(50):
        draws = MANY.over_datasets(random.normal(0.8, 2, size=15))
        p = MANY.p_value(draws, 15)
        if abs(p - 0.05) > 0.002:
            assert MANY.interval(draws).excludes_zero == (p < 0.05)


def test_no_difference_at_all_is_no_evidence() -> None:
    assert MANY.p_value(MANY.over_datasets(np.zeros(19)), 19) == 1.0
    assert MANY.p_value(MANY.over_datasets(np.ones(19)), 19) == pytest.approx(2 / 40_001)


def test_few_data_sets_cannot_show_much() -> None:
    """Six data sets of one sign: resamples would say 0.00005, signs say 1 in 32."""
    assert MANY.p_value(MANY.over_datasets(np.arange(1.0, 7)), 6) == pytest.approx(2 / 64)


def test_tiers_hold_their_level() -> None:
    """Ten methods that do not differ, on 8 data sets: a second tier in 1 of 20 tables, or less."""
    random = np.random.default_rng(6)
    apart = 0
    for _ in range(100):
        values = {f"m{m}": list(random.normal(70, 3, size=8)) for m in range(10)}
        apart += len(analyse(long(values), Bootstrap(resamples=1000))[0].family.tiers) > 1
    assert apart <= 12


@pytest.mark.parametrize("datasets", [5, 9, 19])
def test_coverage_is_what_it_is(datasets: int) -> None:
    random, bootstrap = np.random.default_rng(7), Bootstrap(resamples=1000)
    samples = random.normal(size=(600, datasets))
    intervals = [bootstrap.interval(bootstrap.over_datasets(sample)) for sample in samples]
    held = np.mean([interval.low <= 0 <= interval.high for interval in intervals])
    assert held == pytest.approx(bootstrap.coverage(datasets), abs=0.04)


def test_the_same_seed_gives_the_same_draws() -> None:
    values = np.arange(19.0)
    first, again, other = (Bootstrap(seed=seed).over_datasets(values) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()
