from __future__ import annotations

import csv
from collections.abc import Callable
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest

from tests.leaderboard.as_rows import cells, datasets
from vpeft_bench.formats import GIB
from vpeft_bench.leaderboard.scores import Scores
from vpeft_bench.records.cost_card import CostCard
from vpeft_bench.records.run_record import RunRecord

PUBLISHED = Path(__file__).parents[2] / "results" / "published" / "ppt_verification.csv"
with PUBLISHED.open(encoding="utf-8", newline="") as file:
    ROWS = list(csv.DictReader(file))
PRINTED = [row for row in ROWS if row["ppt_printed"]]

AGREE = "agree_2dp"
WITHIN = "within_0.01_but_wrong_2dp"
BEYOND = "off_by_more_than_0.01"
INPUT_ROUNDING = "agree_within_input_rounding"


def recomputed(row: dict[str, str], metric_error: float = 0, millions_error: float = 0) -> float:
    percent = float(row["metric_value"]) + metric_error
    millions = max(0.0, float(row["params_m"]) + millions_error)
    ppt = Scores().ppt(percent, millions * 1e6)
    assert ppt is not None
    return ppt


def rounded(value: float, places: str) -> str:
    # Half a unit goes up, as in the published tables; the float next to 0.435 lies below it.
    return str(Decimal(f"{value:.9f}").quantize(Decimal(places), ROUND_HALF_UP))


def test_the_published_rows_are_all_there() -> None:
    counts = dict.fromkeys((AGREE, WITHIN, BEYOND, INPUT_ROUNDING), 0)
    for row in PRINTED:
        counts[row["status"]] += 1
    assert counts == {AGREE: 84, WITHIN: 4, BEYOND: 1, INPUT_ROUNDING: 2}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['table']}-{row['method']}")
def test_ppt_is_that_of_the_verification(row: dict[str, str]) -> None:
    assert rounded(recomputed(row), "0.0001") == row["ppt_recomputed"]


@pytest.mark.parametrize("row", PRINTED, ids=lambda row: f"{row['table']}-{row['method']}")
def test_published_ppt(row: dict[str, str]) -> None:
    """Rows said to agree do, to the printed decimals; the others do not."""
    assert (rounded(recomputed(row), "0.01") == row["ppt_printed"]) == (row["status"] == AGREE)
    difference = abs(recomputed(row) - float(row["ppt_printed"]))
    assert (difference > 0.01) == (row["status"] == BEYOND)
    if row["status"] == INPUT_ROUNDING:
        corners = [recomputed(row, m, -p) for m, p in ((-0.05, -0.005), (0.05, 0.005))]
        shown = [rounded(corner, "0.01") for corner in corners]
        assert min(shown) <= row["ppt_printed"] <= max(shown)


def test_ppt_without_parameters_is_the_metric() -> None:
    assert Scores().ppt(73.0, 0) == pytest.approx(0.73)
    assert Scores().ppt(73.0, 1e6) > Scores().ppt(73.0, 2e6)  # type: ignore[operator]


def test_ppt_has_the_form_of_one_factor_of_the_other_score() -> None:
    exponent = 0.4342944819032518  # 1 / ln 10
    alone = Scores(
        pscp_parameters=1e7,
        pscp_beta_parameters=exponent,
        pscp_beta_flops=0,
        pscp_beta_memory=0,
    )
    assert alone.pscp(73.0, 3e6, 1e11, 1e10) == pytest.approx(alone.ppt(73.0, 3e6))


def test_each_cost_at_its_constant_halves_the_score() -> None:
    scores = Scores()
    costs = (scores.pscp_parameters, scores.pscp_gflops * 1e9, scores.pscp_gib * GIB)
    assert scores.pscp(80.0, 0, 0, 0) == pytest.approx(0.8)
    for paid in range(3):
        one = [cost if place == paid else 0.0 for place, cost in enumerate(costs)]
        assert scores.pscp(80.0, *one) == pytest.approx(0.4)
    assert scores.pscp(80.0, *costs) == pytest.approx(0.1)
    squared = Scores(pscp_beta_memory=2.0)
    assert squared.pscp(80.0, 0, 0, costs[2]) == pytest.approx(0.2)


def test_defaults_are_full_fine_tuning_of_a_vit_b16() -> None:
    """The constants' derivation, as docs/leaderboard.md gives it."""
    width, depth, tokens, patch = 768, 12, 197, 3 * 16 * 16
    block = 12 * width**2 + 13 * width  # weights; biases and the two norms
    parameters = depth * block + (patch + 1) * width + (tokens + 1) * width + 2 * width
    assert parameters == 85_798_656
    products = depth * (12 * width**2 * tokens + 2 * tokens**2 * width)
    forward = 2 * (products + (tokens - 1) * patch * width)
    static, activations = 4 * 4 * parameters, 64 * 118_161_088
    scores = Scores()
    assert scores.pscp_parameters == pytest.approx(parameters, rel=0.001)
    assert scores.pscp_gflops == pytest.approx(3 * forward / 1e9, rel=0.005)
    assert scores.pscp_gib == pytest.approx((static + activations) / GIB, rel=0.005)


def test_what_is_not_known_has_no_score() -> None:
    scores = Scores()
    assert scores.ppt(None, 1) is None
    assert scores.ppt(1.0, None) is None
    for missing in range(4):
        values = [None if place == missing else 1.0 for place in range(4)]
        assert scores.pscp(*values) is None


def test_a_card_gives_the_operations_of_a_step_and_the_peak(
    run: Callable[..., RunRecord], card: Callable[..., CostCard]
) -> None:
    measured = card().measured
    assert measured is not None
    found = cells(run(50.0), cards=[card()])
    count = float(found["parameters_mean"].iloc[0])
    by_hand = Scores().pscp(50.0, count, 70_500_000_001, measured.memory.allocated)
    (row,) = datasets(found).rows.itertuples()
    assert row.pscp_style == pytest.approx(by_hand)


def test_the_constants_are_told() -> None:
    scores = Scores(ppt_parameters=2e7, pscp_gib=16.5, pscp_beta_flops=0.5)
    assert scores.constants == (
        "ppt_parameters=2e+07 pscp_parameters=8.58e+07 pscp_gflops=105 pscp_gib=16.5 "
        "pscp_beta_parameters=1 pscp_beta_flops=0.5 pscp_beta_memory=1"
    )
    assert "exp(-log10(P / 2e+07 + 1))" in scores.ppt_formula
    assert "(1 + P / 8.58e+07)^-1 (1 + F / 105)^-0.5 (1 + R / 16.5)^-1" in scores.pscp_formula
    assert "pscp_parameters=85798656.5" in Scores(pscp_parameters=85_798_656.5).constants


@pytest.mark.parametrize(
    "constant",
    [
        {"ppt_parameters": 0.0},
        {"pscp_gflops": -1.0},
        {"pscp_gib": float("nan")},
        {"pscp_parameters": float("inf")},
        {"pscp_beta_memory": -0.5},
    ],
)
def test_impossible_constants_are_refused(constant: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(constant))):
        Scores(**constant)
