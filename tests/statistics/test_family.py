"""Tests over all methods: against scipy, scikit-posthocs and published tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import friedmanchisquare

from tests.statistics.conftest import drawn, long
from vpeft_bench.statistics import analyse
from vpeft_bench.statistics.family import critical_difference, holm


@pytest.mark.parametrize("seed", range(3))
def test_friedman_is_scipys(seed: int) -> None:
    frame = drawn(methods=4, datasets=10, seeds=1, seed=seed)
    wide = frame.pivot(index="data", columns="method", values="value")
    expected = friedmanchisquare(*wide.T.to_numpy())
    friedman = analyse(frame)[0].family.friedman
    assert friedman is not None
    assert friedman.statistic == pytest.approx(expected.statistic)
    assert friedman.p == pytest.approx(expected.pvalue)


def test_nemenyi_agrees_with_scikit_posthocs(published: pd.DataFrame) -> None:
    scikit_posthocs = pytest.importorskip("scikit_posthocs")
    wide = published.pivot(index="data", columns="method", values="value")
    p_values = scikit_posthocs.posthoc_nemenyi_friedman(wide.reset_index(drop=True))
    expected = {
        frozenset((a, b)) for a in p_values for b in p_values if a < b and p_values.loc[a, b] < 0.05
    }
    nemenyi = analyse(published)[0].family.nemenyi
    assert nemenyi is not None
    assert {frozenset(pair) for pair in nemenyi.pairs} == expected


def test_critical_differences_as_demsar_prints_them() -> None:
    """JMLR 7, 2006: q of two methods is 1.960, of four 2.569; his example has CD 1.25 for 4, 14."""
    assert critical_difference(2, 6) == pytest.approx(1.960 * np.sqrt(2 * 3 / 36), abs=0.001)
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    assert critical_difference(10, 30) == pytest.approx(3.164 * np.sqrt(110 / 180), abs=0.001)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_is_statsmodels() -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p_values = np.random.default_rng(0).uniform(size=40) ** 4
    assert holm(list(p_values)) == pytest.approx(multitest.multipletests(p_values, 0.05, "holm")[1])


def test_tiers_part_what_clearly_differs() -> None:
    random = np.random.default_rng(0)
    base = random.uniform(40, 80, size=12)
    levels = {"best": 6.0, "good": 5.9, "bad": 1.0, "worse": 0.9}
    frame = long({name: base + level + random.normal(0, 0.3, 12) for name, level in levels.items()})
    tiers = analyse(frame)[0].family.tiers
    assert [set(tier.methods) for tier in tiers] == [{"best", "good"}, {"bad", "worse"}]
    assert len(tiers[0].corrected) == 3
    assert len(tiers[1].corrected) == 1


def test_all_ties() -> None:
    (report,) = analyse(long({name: [70.0] * 8 for name in "abc"}))
    family = report.family
    assert family.friedman is not None
    assert family.friedman.p == 1.0
    assert family.holm is not None
    assert family.holm.significant == 0
    assert [tier.methods for tier in family.tiers] == [("a", "b", "c")]
    assert {row.win_rate for row in report.summaries} == {0.5}
    assert {row.average_rank for row in report.summaries} == {2.0}
    assert {row.improvability for row in report.summaries} == {0.0}
    assert all(pair.wilcoxon == 1.0 and pair.ties == 8 for pair in report.pairs)


def test_one_method_one_data_set() -> None:
    (report,) = analyse(long({"a": [70.0]}))
    assert report.pairs == ()
    assert (report.family.friedman, report.family.nemenyi, report.family.holm) == (None,) * 3
    assert report.summaries[0].mean.value == 70
    assert report.summaries[0].average_rank is None
    assert report.family.tiers == ()
    (two,) = analyse(long({"a": [70.0], "b": [60.0], "c": [50.0]}))
    assert two.family.friedman is None
    assert two.family.holm is None
    assert two.family.tiers == ()
