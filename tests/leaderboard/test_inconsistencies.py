"""The page on what does not agree within the published tables is computed, and up to date."""

from __future__ import annotations

import csv

import pytest

from tests.conftest import REPOSITORY
from vpeft_bench.catalogue.counts import mean_classes
from vpeft_bench.leaderboard import inconsistencies
from vpeft_bench.leaderboard.published import folder

PPT_VERIFIED = folder() / "ppt_verification.csv"


def test_the_page_is_what_the_tables_say() -> None:
    page = (REPOSITORY / inconsistencies.PAGE).read_text()
    assert page == inconsistencies.page(mean_classes), "run scripts/generate_docs.py"


def test_scores_that_do_not_follow_are_those_that_were_found_before() -> None:
    """By another hand, on the whole tables."""
    with PPT_VERIFIED.open(newline="") as file:
        wrong = {
            (line["method"], line["ppt_printed"])
            for line in csv.DictReader(file)
            if line["status"] in ("within_0.01_but_wrong_2dp", "off_by_more_than_0.01")
        }
    found = {(row[1], row[3]) for row in inconsistencies.wrong_scores()}
    assert found == wrong
    assert ("RepAdapter", "0.72") in found


def test_rounding_is_no_inconsistency(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"method": "m", "mean": "73.10", "params_m": "0.20", "ppt": "0.72"}
    assert score_is_wrong(row, monkeypatch) == []
    assert score_is_wrong({**row, "ppt": "0.73"}, monkeypatch) != []
    assert score_is_wrong({**row, "ppt": "0.71"}, monkeypatch)[0][-1] == ""
    cut = {**row, "mean": "73.41", "params_m": "0.20", "ppt": "0.72"}
    assert score_is_wrong(cut, monkeypatch)[0][-1] == "cut, not rounded"


def score_is_wrong(row: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> list:
    monkeypatch.setattr(inconsistencies, "lines", lambda table: [row])
    monkeypatch.setattr(inconsistencies, "SCORES", (("one", "mean", "ppt"),))
    return list(inconsistencies.wrong_scores())


def test_a_wrong_mean_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(inconsistencies.wrong_means()) == []
    lines = inconsistencies.lines
    changed = lines(inconsistencies.FGVC)
    changed[0]["mean"] = "88.56"
    monkeypatch.setattr(
        inconsistencies, "lines", lambda table: changed if "fgvc" in table else lines(table)
    )
    ((_, method, printed, computed),) = inconsistencies.wrong_means()
    assert (method, printed, computed) == ("Full fine-tuning", "88.56", "88.5400")


def test_exchanged_cells_and_twins() -> None:
    exchanged = {row[1] for row in inconsistencies.exchanged()}
    assert exchanged == {"Prefix Tuning", "U-Tuning"}
    assert [row[0] for row in inconsistencies.twins()] == ["Full fine-tuning", "VPT-Deep"]
    assert len(list(inconsistencies.doubles())) == 16
