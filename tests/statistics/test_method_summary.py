"""Each method's numbers against tables small enough to compute by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tests.statistics.conftest import drawn, long
from vpeft_bench.statistics import analyse
from vpeft_bench.statistics.wording import remarks


def test_a_table_computed_by_hand() -> None:
    frame = long({"a": [90, 80, 70], "b": [80, 80, 75], "c": [70, 60, 50]})
    (report,) = analyse(frame)
    rows = {row.method: row for row in report.summaries}
    assert [row.method for row in report.summaries] == ["a", "b", "c"]
    assert rows["a"].mean.value == 80
    assert rows["b"].mean.value == pytest.approx(235 / 3)
    # Ranks: a 1, 1.5, 2; b 2, 1.5, 1; c 3, 3, 3.
    assert [rows[name].average_rank for name in "abc"] == pytest.approx([1.5, 1.5, 3])
    assert [rows[name].borda for name in "abc"] == [4.5, 4.5, 0]
    assert [rows[name].win_rate for name in "abc"] == [0.75, 0.75, 0]
    assert [rows[name].improvement for name in "abc"] == [0.75, 0.75, 0]  # one run per cell
    # Errors: a 10, 20, 30; b 20, 20, 25; c 30, 40, 50; best 10, 20, 25.
    assert rows["a"].improvability == pytest.approx((0 + 0 + 1 / 6) / 3)
    assert rows["b"].improvability == pytest.approx((1 / 2 + 0 + 0) / 3)
    assert rows["c"].improvability == pytest.approx((2 / 3 + 1 / 2 + 1 / 2) / 3)
    assert rows["a"].mean.over_datasets is None  # three data sets are too few
    assert rows["a"].places is None


def test_the_two_means_differ_by_their_groups() -> None:
    groups = ["natural"] * 3 + ["special"] * 2 + ["structured"]
    frame = long({"a": [90, 80, 70, 60, 50, 40], "b": [1, 2, 3, 4, 5, 6]}, group=groups)
    (report,) = analyse(frame)
    row = report.summaries[0]
    assert row.mean.value == pytest.approx(65)
    assert row.of_groups == {"natural": 80, "special": 55, "structured": 40}
    assert row.group_mean.value == pytest.approx((80 + 55 + 40) / 3)
    assert row.mean.over_datasets is not None
    assert row.group_mean.over_datasets is None  # a group of one data set cannot be drawn from
    assert any("a group of one data set" in remark for remark in remarks(report))
    assert row.group_mean.over_seeds is None


def test_probability_of_improvement_counts_pairs_of_runs() -> None:
    """Mann and Whitney's U over the product of the numbers of runs."""
    from scipy.stats import mannwhitneyu

    frame = drawn(methods=2, datasets=6, seeds=4, seed=7)
    (report,) = analyse(frame)
    (pair,) = report.pairs
    cells = frame.groupby(["method", "data"])["value"].apply(list)
    expected = np.mean(
        [
            mannwhitneyu(cells[pair.first, data], cells[pair.second, data]).statistic / 16
            for data in sorted(set(frame["data"]))
        ]
    )
    assert pair.improvement == pytest.approx(expected)
    rows = {row.method: row for row in report.summaries}
    assert rows[pair.first].improvement == pytest.approx(expected)
    assert rows[pair.second].improvement == pytest.approx(1 - expected)


def test_intervals_over_seeds_are_of_the_seeds_alone() -> None:
    frame = drawn(methods=2, datasets=12, seeds=3, ties=False)
    same = frame.copy()
    same["value"] = frame.groupby(["method", "data"])["value"].transform("mean")
    (report,), (settled,) = analyse(frame), analyse(same)
    noisy, still = report.summaries[0].mean, settled.summaries[0].mean
    assert noisy.value == pytest.approx(still.value)
    assert noisy.over_seeds is not None
    assert still.over_seeds is not None
    assert noisy.over_seeds.high - noisy.over_seeds.low > 0.5
    assert still.over_seeds.high - still.over_seeds.low < 1e-9
    assert noisy.over_datasets is not None
    assert noisy.over_datasets == still.over_datasets


def test_lower_is_better_turns_everything_but_the_values() -> None:
    frame = drawn(methods=5, seeds=2)
    turned = frame.assign(value=-frame["value"])
    (up,), (down,) = analyse(turned), analyse(frame, lower_is_better=True)
    for high, low in zip(up.summaries, down.summaries, strict=True):
        assert (high.method, high.average_rank) == (low.method, low.average_rank)
        assert high.borda == low.borda
        assert high.mean.value == pytest.approx(-(low.mean.value or 0))
        assert high.win_rate == low.win_rate
        assert high.improvement == low.improvement
        assert high.places == low.places
    assert [t.methods for t in up.family.tiers] == [t.methods for t in down.family.tiers]
    for first, second in zip(up.pairs, down.pairs, strict=True):
        assert (first.first, first.wins, first.ties) == (second.first, second.wins, second.ties)
        assert first.difference == pytest.approx(-(second.difference or 0))
        assert first.wilcoxon == pytest.approx(second.wilcoxon)


def test_improvability_only_of_shares() -> None:
    assert analyse(long({"a": [150, 80], "b": [120, 90]}))[0].summaries[0].improvability is None
    errors = long({"a": [1.5, 3.0], "b": [3.0, 3.0]})
    rows = analyse(errors, lower_is_better=True)[0].summaries
    assert [row.improvability for row in rows] == [0.0, pytest.approx(0.25)]
    fractions = analyse(long({"a": [0.9, 1.0], "b": [0.8, 1.0]}))[0].summaries
    assert [row.improvability for row in fractions] == [0.0, pytest.approx(0.25)]


def test_a_missing_cell_blocks_and_is_never_zero() -> None:
    frame = drawn(methods=4, datasets=8, seeds=2)
    whole = analyse(frame[frame["method"] != "m3"])[0]
    lacking = analyse(frame[~((frame["method"] == "m3") & (frame["data"] == "d05"))])[0]
    row = lacking.summaries[-1]
    assert (row.method, row.datasets, row.missing, row.runs) == ("m3", 7, ("d05",), 14)
    assert (row.mean.value, row.average_rank, row.borda, row.win_rate) == (None,) * 4
    assert (row.improvement, row.improvability, row.places) == (None,) * 3
    # Nobody else gains or loses by a method that is not whole.
    assert lacking.summaries[:3] == whole.summaries
    assert lacking.family.tiers == whole.family.tiers
    assert lacking.family.friedman == whole.family.friedman
    pairs = [pair for pair in lacking.pairs if "m3" in pair.names]
    assert [pair.datasets for pair in pairs] == [7, 7, 7]


def test_a_run_without_a_value_makes_its_cell_missing() -> None:
    frame = drawn(methods=2, datasets=6, seeds=3)
    frame.loc[1, "value"] = float("nan")
    (report,) = analyse(frame)
    assert report.summaries[-1].missing == ("d00",)
    assert any("m0 on d00" in note for note in report.table.notes)


def test_rows_in_any_order_give_the_same() -> None:
    frame = drawn(methods=5, datasets=9, seeds=3, ties=False)
    first = analyse(frame)[0]
    for seed in range(3):
        again = analyse(frame.sample(frac=1, random_state=seed))[0]
        assert again.summaries == first.summaries
        assert again.pairs == first.pairs
        assert again.family == first.family


def test_pandas_types_of_names_do_not_matter() -> None:
    frame = drawn(methods=3, seeds=2)
    typed = frame.assign(
        method=frame["method"].astype("category"),
        data=frame["data"].astype("string"),
        seed=frame["seed"].astype(float),
        value=frame["value"].astype("Float64"),
    )
    assert analyse(typed)[0].summaries == analyse(frame)[0].summaries


def test_tables_are_parted_by_benchmark_and_settings() -> None:
    vtab, fgvc = drawn(methods=3, seeds=1), drawn(methods=2, datasets=5, seeds=1, seed=3)
    both = pd.concat([vtab.assign(benchmark="vtab1k"), fgvc.assign(benchmark="fgvc")])
    reports = analyse(both)
    assert [report.table.benchmark for report in reports] == ["fgvc", "vtab1k"]
    assert reports[1].summaries == analyse(vtab)[0].summaries
    tuned = vtab.assign(value=vtab["value"] + 1)
    rows = pd.concat([vtab.assign(budget=1), tuned.assign(budget=8)])
    apart = analyse(rows)
    assert [report.table.settings for report in apart] == [{"budget": "1"}, {"budget": "8"}]
    assert apart[0].summaries == analyse(vtab)[0].summaries
    (mixed,) = analyse(rows, mix=True)
    assert mixed.table.mixed == {"budget": ("1", "8")}
    assert set(mixed.table.methods) == {f"m{m} [{b}]" for m in range(3) for b in (1, 8)}
