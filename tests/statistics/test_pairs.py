"""Two methods by themselves: against scipy, by hand, and whoever else is in the table."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata, wilcoxon

from tests.statistics.conftest import drawn, long
from vpeft_bench.statistics import Pair, analyse
from vpeft_bench.statistics.pairs import signed_rank
from vpeft_bench.statistics.statements import of_pair


def pairs_of(frame: pd.DataFrame, **options: bool) -> dict[frozenset[str], Pair]:
    return {pair.names: pair for pair in analyse(frame, **options)[0].pairs}


def uneven() -> pd.DataFrame:
    """Missing cells of several methods, and one, two or three seeds per cell."""
    frame = drawn(methods=6, datasets=11, seeds=3, ties=False)
    lost = {("m1", "d03"), ("m1", "d04"), ("m4", "d03"), ("m5", "d10")}
    keep = [key not in lost for key in zip(frame["method"], frame["data"], strict=True)]
    frame = frame[keep]
    return frame[~((frame["method"] == "m2") & (frame["seed"] > 0) & (frame["data"] < "d02"))]


@pytest.mark.parametrize("kind", ["published", "ties", "uneven", "lower is better"])
def test_no_third_method_changes_a_pair(kind: str, published: pd.DataFrame) -> None:
    """Each method is removed in turn; every pair of the others stays as it was, to the last bit."""
    frame = {
        "published": published,
        "ties": drawn(methods=5, seeds=2),
        "uneven": uneven(),
        "lower is better": drawn(methods=5, seeds=2, seed=9),
    }[kind]
    lower = kind == "lower is better"
    (whole,) = analyse(frame, lower_is_better=lower)
    every = {pair.names: pair for pair in whole.pairs}
    said = {names: of_pair(pair, whole) for names, pair in every.items()}
    for method in whole.table.methods:
        (fewer,) = analyse(frame[frame["method"] != method], lower_is_better=lower)
        left = {pair.names: pair for pair in fewer.pairs}
        assert left == {names: pair for names, pair in every.items() if method not in names}
        for names, pair in left.items():
            assert of_pair(pair, fewer) == said[names]


def test_no_third_method_changes_a_mean() -> None:
    frame = drawn(methods=5, seeds=3)
    every = {row.method: row for row in analyse(frame)[0].summaries}
    for method in every:
        for row in analyse(frame[frame["method"] != method])[0].summaries:
            assert row.mean == every[row.method].mean


def test_a_third_method_with_a_data_set_of_its_own_changes_no_pair() -> None:
    frame = drawn(methods=3, datasets=7)
    own = long({"other": [50.0] * 9}).assign(seed=0)
    before, after = pairs_of(frame), pairs_of(pd.concat([frame, own]))
    assert before == {names: pair for names, pair in after.items() if "other" not in names}


def test_a_third_method_of_another_scale_changes_no_sentence() -> None:
    """Neither the decimals nor the unit: a value above 100 is no percentage any more."""
    frame = drawn(methods=2, datasets=7)
    (two,) = analyse(frame)
    (three,) = analyse(pd.concat([frame, long({"other": [12345.6] * 7}).assign(seed=0)]))
    said = {pair.names: of_pair(pair, three) for pair in three.pairs}
    assert said[two.pairs[0].names] == of_pair(two.pairs[0], two)


def test_the_p_is_scipys(published: pd.DataFrame) -> None:
    """Of the differences as a reader computes them: 91.3 - 91.1 and 80.3 - 80.1 tie."""
    wide = published.pivot(index="data", columns="method", values="value")
    for pair in pairs_of(published).values():
        differences = (wide[pair.first] - wide[pair.second]).round(2)
        assert pair.wilcoxon == pytest.approx(wilcoxon(differences).pvalue, rel=1e-9)


def by_every_sign(differences: list[float]) -> float:
    """The definition: how rare the sum of the positive ranks is if every sign is by chance."""
    ranks = rankdata([abs(d) for d in differences if d])
    signs = [d > 0 for d in differences if d]
    sums = [
        sum(rank for rank, sign in zip(ranks, chosen, strict=True) if sign)
        for chosen in product([False, True], repeat=len(ranks))
    ]
    seen = sum(rank for rank, sign in zip(ranks, signs, strict=True) if sign)
    low, high = (sum(s <= seen for s in sums), sum(s >= seen for s in sums))
    return min(1.0, 2 * min(low, high) / len(sums))


def test_the_p_is_exact_for_few_data_sets() -> None:
    """All six differences in one direction: 2 of 64 signs."""
    assert signed_rank(np.array([1.0, 2, 3, 4, 5, 6])) == pytest.approx(2 / 64)
    assert signed_rank(np.array([1.0, 2, 3])) == pytest.approx(2 / 8)
    for differences in ([1.0, 1, -1, 2, 0, 3], [1.0, -1, 2, -2, 0], [3.0, 1, -1, 2, 2, -5, 4]):
        assert signed_rank(np.array(differences)) == pytest.approx(by_every_sign(differences))
    assert signed_rank(np.zeros(19)) == 1.0
    assert signed_rank(np.array([1.0])) is None


def test_counts_by_hand_on_common_data_sets() -> None:
    frame = long({"a": [90, 80, 70, 60], "b": [80, 80, 75, 50]})
    (pair,) = pairs_of(frame[~((frame["method"] == "b") & (frame["data"] == "d3"))]).values()
    assert (pair.first, pair.second, pair.datasets, pair.runs) == ("a", "b", 3, (3, 3))
    assert (pair.wins, pair.ties, pair.losses) == (1, 1, 1)
    assert pair.difference == pytest.approx(5 / 3)
    assert pair.means == pytest.approx((80, 235 / 3))
    turned = pair.seen_from("b")
    assert (turned.first, turned.wins, turned.losses) == ("b", 1, 1)
    assert turned.difference == -pair.difference
    assert turned.seen_from("a") == pair


def test_means_of_the_same_seeds_in_any_order_tie() -> None:
    """(0.1 + 0.2 + 0.3) / 3 is not 0.2 to a computer; to a reader it is."""
    rows = [("a", "d", s, v) for s, v in enumerate([0.1, 0.2, 0.3])]
    rows += [("b", "d", s, 0.2) for s in range(3)]
    frame = pd.DataFrame(rows, columns=["method", "data", "seed", "value"])
    (pair,) = pairs_of(frame).values()
    assert (pair.wins, pair.ties, pair.losses) == (0, 1, 0)
    assert pair.difference == 0


def test_few_data_sets_and_many_seeds_speak_of_these_data_sets() -> None:
    frame = drawn(methods=2, datasets=3, seeds=5, ties=False)
    for shift, said in ((10, "m1 is better than m0 on these data sets"), (-0.5, "not told apart")):
        moved = frame["value"] + shift * (frame["method"] == "m1")
        (report,) = analyse(frame.assign(value=moved))
        (pair,) = report.pairs
        assert pair.over_datasets is None
        assert said in of_pair(pair, report)


def test_nothing_in_common() -> None:
    frame = long({"a": [90.0, 80.0], "b": [80.0, 70.0]})
    (pair,) = pairs_of(frame[(frame["method"] == "a") == (frame["data"] == "d0")]).values()
    assert (pair.datasets, pair.difference, pair.wilcoxon) == (0, None, None)
    assert "no data set in common" in of_pair(pair, analyse(frame)[0])


def test_the_interval_is_of_the_differences(published: pd.DataFrame) -> None:
    """Not of two means: a bootstrap written out with other random numbers agrees."""
    wide = published.pivot(index="data", columns="method", values="value")
    random = np.random.default_rng(123)
    chosen = random.integers(19, size=(20_000, 19))
    for pair in list(pairs_of(published).values())[::9]:
        differences = (wide[pair.first] - wide[pair.second]).to_numpy()
        expected = np.quantile(differences[chosen].mean(axis=1), [0.025, 0.975])
        assert pair.over_datasets is not None
        found = [pair.over_datasets.low, pair.over_datasets.high]
        assert found == pytest.approx(expected, abs=0.12)
