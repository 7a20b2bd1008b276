"""What else differs between the rows of a table is told, not left to a hash."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from tests.leaderboard.as_rows import cells
from vpeft_bench.leaderboard.departures import departures, short_keys
from vpeft_bench.records.run_record import RunRecord

Run = Callable[..., RunRecord]


def told(*rows: list[RunRecord]) -> tuple[str, list[str]]:
    """What all rows share, and what each of them does otherwise."""
    made = [cells(*row).assign(row=number) for number, row in enumerate(rows)]
    together = pd.concat(made, ignore_index=True)
    found = departures(together, together["row"])
    return found.shared, found.rows.sort_index().tolist()


def test_what_all_rows_share_is_said_once(run: Run) -> None:
    same: dict[str, Any] = {"train": {"lr": 0.001, "epochs": 100}}
    rows = [[run(method=method, **same)] for method in ("lora", "ssf")]
    shared, departing = told(*rows)
    assert shared == "train.epochs=100 train.lr=0.001"
    assert departing == ["", ""]


def test_the_row_that_is_not_as_most_says_so(run: Run) -> None:
    rates = {"lora": 0.001, "ssf": 0.01, "adapter": 0.001}
    rows = [[run(method=method, train={"lr": lr, "epochs": 100})] for method, lr in rates.items()]
    shared, departing = told(*rows)
    assert shared == "train.epochs=100 train.lr=0.001"
    assert departing == ["", "train.lr=0.01", ""]
    assert short_keys(departing[1]) == "lr=0.01"


def test_data_set_by_data_set(run: Run) -> None:
    """What differs between data sets alone is no departure; what differs on one of them is."""
    names = ("demo/digits", "demo/sprites_count")
    usual = dict(zip(names, (0.001, 0.01), strict=True))
    others = dict(zip(names, (0.001, 0.5), strict=True))

    def row(method: str, rates: dict[str, float]) -> list[RunRecord]:
        return [run(method=method, data=d, train={"lr": lr}) for d, lr in rates.items()]

    shared, departing = told(row("lora", usual), row("ssf", usual), row("adapter", others))
    assert shared == "train.lr by data set"
    assert departing == ["", "", "train.lr by data set"]
    assert short_keys("train.lr by data set train.epochs=3") == "lr by data set epochs=3"


def test_what_is_absent_is_neutral(run: Run) -> None:
    """A record from before a key existed is as one at its neutral value."""
    rows = [
        [run(method="lora", train={"lr": 1.0})],
        [run(method="ssf", train={"lr": 1.0, "layer_decay": 1.0})],
        [run(method="adapter", train={"lr": 1.0, "layer_decay": 0.8})],
    ]
    shared, departing = told(*rows)
    assert departing == ["", "", "train.layer_decay=0.8"]
    assert "train.layer_decay=1.0" in shared
