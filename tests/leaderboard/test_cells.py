from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from tests.leaderboard.as_rows import gather, only
from vpeft_bench.config.identity import asked_hash
from vpeft_bench.files import sha256
from vpeft_bench.formats import option_text
from vpeft_bench.leaderboard.admitted import Admitted
from vpeft_bench.leaderboard.asked import DEMO_WEIGHTS
from vpeft_bench.leaderboard.cells import cells_of
from vpeft_bench.records.run_record import RunRecord, Split, Status, Weights, WeightsLabel, Where

Run = Callable[..., RunRecord]


def cell_of(shown: Admitted) -> Any:
    """The one cell of runs."""
    return only(cells_of(shown.rows))


def test_seeds_of_one_configuration_form_a_cell(run: Run) -> None:
    cell = cell_of(gather(run(60.0, seed=10), run(50.0, seed=2), run(70.0, seed=1)))
    assert cell.seeds == "1 2 10"
    assert (cell.n, cell.mean, cell.min, cell.max, cell.std) == (3, 60.0, 50.0, 70.0, 10.0)
    # t(0.975, 2) is 4.302653.
    assert cell.ci_high - cell.mean == cell.mean - cell.ci_low
    assert cell.ci_high - cell.mean == pytest.approx(4.302653 * 10 / 3**0.5, abs=1e-5)


def test_a_single_seed_has_neither_a_deviation_nor_an_interval(run: Run) -> None:
    cell = cell_of(gather(run(60.0)))
    assert (cell.n, cell.mean, cell.min, cell.max) == (1, 60.0, 60.0, 60.0)
    assert all(map(math.isnan, (cell.std, cell.ci_low, cell.ci_high)))


@pytest.mark.parametrize(
    "difference",
    [
        {"method": "ssf"},
        {"options": {"rank": 4}},
        {"backbone": "vit_b16"},
        {"weights": Weights("other", "sha256:ff", WeightsLabel.DEMO, "sha256:other")},
        {"weights": Weights(None, None, WeightsLabel.RANDOM)},
        {"normalization": "imagenet"},
        {"per_class": 4},
        {"protocol": "select"},
        {"data": "demo/sprites_count"},
        {"train": {"lr": 1e-2}},
    ],
)
def test_what_differs_is_not_averaged(run: Run, difference: dict[str, object]) -> None:
    first = run(seed=0)
    other = run(seed=1, **difference)
    assert len(cells_of(gather(first, other).rows)) == 2


def test_random_weights_of_several_seeds_stay_together(run: Run) -> None:
    runs = [
        run(seed=seed, weights=Weights(None, f"sha256:{seed}", WeightsLabel.RANDOM, "none"))
        for seed in range(3)
    ]
    assert cell_of(gather(*runs)).weights == "random"


def test_a_run_that_died_before_loading_joins_the_runs_that_asked_for_the_same(run: Run) -> None:
    good = run(seed=0)
    died = dataclasses.replace(
        run(seed=1, status=Status.OOM),
        asked={**good.asked, "seed": 1},
        where=dataclasses.replace(good.where, weights=None),
    )
    cell = cell_of(gather(good, died))
    assert (cell.seeds, cell.not_finished) == ("0", "1 oom")
    assert cell_of(gather(died)).weights == "unknown"


def test_cells_come_in_one_order(run: Run) -> None:
    runs = [run(method=method, seed=seed) for method in ("b", "c", "a") for seed in (1, 0)]
    one, other = (cells_of(gather(*order).rows) for order in (runs, runs[::-1]))
    assert one.equals(other)
    assert [*one["method"]] == ["a", "b", "c"]


def test_identical_copies_count_once(run: Run) -> None:
    collection = gather(run(60.0), run(60.0), run(60.0))
    assert (collection.copies, collection.left_out) == (2, [])
    assert cell_of(collection).n == 1


@pytest.mark.parametrize("backwards", [False, True])
def test_of_two_records_of_a_run_the_newest_counts(run: Run, backwards: bool) -> None:
    # As text, the older one sorts last.
    older = run(99.0, finished="2026-01-02T03:04:05Z")
    newer = run(60.0, finished="2026-01-02T03:04:05.5+00:00")
    collection = gather(*([newer, older] if backwards else [older, newer]))
    assert cell_of(collection).mean == 60.0
    (problem,) = collection.left_out
    assert problem.where == ("1/record.json" if backwards else "0/record.json")
    assert "is a newer record of run final/demo/digits" in problem.what


def test_of_two_records_of_one_moment_the_files_names_do_not_choose(run: Run) -> None:
    pair = [run(50.0), run(60.0)]
    assert cell_of(gather(*pair)).mean == cell_of(gather(*reversed(pair))).mean
    (problem,) = gather(*pair).left_out
    assert "is another record of run final/demo/digits" in problem.what


def test_a_newer_record_that_cannot_be_shown_does_not_hide_the_one_that_can(run: Run) -> None:
    right = run(60.0, finished="2026-01-02T03:04:05+00:00")
    newer = run(99.0, finished="2026-01-03T03:04:05+00:00")
    assert newer.happened.last_epoch is not None
    val = dataclasses.replace(newer.happened.last_epoch, split=Split.VAL)
    odd = dataclasses.replace(newer, happened=dataclasses.replace(newer.happened, last_epoch=val))
    collection = gather(right, odd)
    assert cell_of(collection).mean == 60.0
    (problem,) = collection.left_out
    assert "yet the last epoch was scored on val images" in problem.what


def test_an_unplaceable_record_is_left_out_with_its_reason(run: Run) -> None:
    def without(group: str) -> RunRecord:
        record = run(method=f"no_{group}")
        asked = {name: value for name, value in record.asked.items() if name != group}
        true = asked_hash(asked, "d1", "sha256:file")
        return dataclasses.replace(record, asked=asked, config_hash=true)

    reasons = [
        problem.what
        for problem in gather(
            without("data"),
            without("method"),
            without("backbone"),
            without("hardware"),
            without("seed"),
            run(protocol="final", split=Split.VAL),
            run(protocol="select", split=Split.TEST),
            run(protocol="peek", split=Split.TEST),
        ).left_out
    ]
    assert reasons == [
        "left out: asked.data.normalization is missing",
        "left out: asked.method.name is missing",
        "left out: asked.backbone.name is missing",
        "left out: asked.hardware.precision is missing",
        "left out: asked.seed is no whole number from 0",
        "left out: protocol 'final' scores test images, "
        "yet the last epoch was scored on val images",
        "left out: protocol 'select' scores val images, "
        "yet the last epoch was scored on test images",
        "left out: no table is defined for protocol 'peek'; there are: final, select",
    ]


def test_labels_of_any_seed_mark_the_cell(run: Run) -> None:
    cell = cell_of(gather(run(seed=0, labels=("demo data",)), run(seed=1, labels=("limited",))))
    assert cell.label_list == ("demo data", "limited")


def test_an_edited_record_is_set_aside(run: Run) -> None:
    good = run(97.0)
    for changed in (
        dataclasses.replace(good, asked={**good.asked, "seed": 1, "train": {"lr": 9.0}}),
        dataclasses.replace(
            run(seed=1), where=dataclasses.replace(good.where, data_fingerprint="d2")
        ),
        run(seed=1, config_hash="0123456789"),
    ):
        collection = gather(good, changed)
        assert (cell_of(collection).n, cell_of(collection).mean) == (1, 97.0)
        (problem,) = collection.left_out
        assert problem.where == "1/record.json"
        assert f"config_hash is {changed.config_hash}, but what was asked has" in problem.what


# Weights in a file of the user's, in a record from before schema 5, or of a run that died early.
UNTOLD = Weights("/home/me/weights.pth", "sha256:aa", WeightsLabel.PRETRAINED)


def test_a_record_that_cannot_be_checked_is_believed_alone(run: Run) -> None:
    one = run(60.0, weights=UNTOLD, config_hash="0123456789")
    assert cell_of(gather(one, dataclasses.replace(one, asked={**one.asked, "seed": 1}))).n == 2


def test_records_of_one_hash_that_were_asked_for_different_things_are_set_aside(run: Run) -> None:
    one = run(60.0, weights=UNTOLD, config_hash="0123456789")
    other = run(99.0, weights=UNTOLD, config_hash="0123456789", seed=1, train={"lr": 9.0})
    collection = gather(one, other)
    assert collection.rows.empty
    assert len(collection.left_out) == 2
    assert all("config_hash 0123456789" in problem.what for problem in collection.left_out)


def test_the_packaged_weights_of_older_records_are_known(run: Run) -> None:
    packaged = Weights("vpeft_demo_vit", "sha256:22", WeightsLabel.DEMO)
    record = run(weights=packaged)
    asked = {**record.asked, "backbone": {"name": "demo_vit", "weights": "hub"}}
    true = asked_hash(asked, "d1", sha256(DEMO_WEIGHTS))
    assert cell_of(gather(dataclasses.replace(record, asked=asked, config_hash=true))).n == 1
    (problem,) = gather(dataclasses.replace(record, asked=asked)).left_out
    assert "config_hash" in problem.what


def test_one_run_under_two_names_counts_once(run: Run) -> None:
    first = run(60.0)
    second = dataclasses.replace(first, run_id="final/copy/seed0")
    third = dataclasses.replace(second, labels=["edited"], where=later(first.where))
    collection = gather(first, second, third)
    assert cell_of(collection).n == 1
    assert len(collection.left_out) == 2


def test_a_date_in_the_future_does_not_win(run: Run) -> None:
    collection = gather(run(99.0, finished="2999-01-01T00:00:00+00:00"), run(60.0))
    assert cell_of(collection).mean == 60.0
    (problem,) = collection.left_out
    assert problem.where == "0/record.json"
    assert "its date 2999-01-01 is still to come" in problem.what


def later(where: Where) -> Where:
    return dataclasses.replace(where, finished="2026-01-02T03:04:06+00:00")


def test_a_measurement_that_one_seed_lacks_has_no_mean(run: Run) -> None:
    cell = cell_of(gather(run(seed=0, peak_memory_bytes=5), run(seed=1)))
    assert pd.isna(cell.peak_memory_bytes_max)
    assert cell.train_seconds_mean == 30.5


def test_different_options_have_different_texts() -> None:
    assert option_text({"rank": 8, "alpha": 16.0}) == "alpha=16.0 rank=8"
    assert option_text({"targets": ["q", "v"], "init": "zero"}) == 'init=zero targets=["q","v"]'
    values = [8, 8.0, "8", "8.0", True, "true", None, "null", "a b=1", ["a"], "[a]", {"a": 1}, ""]
    assert len({option_text({"x": value}) for value in values}) == len(values)
    assert option_text({"x": "a b=1"}) != option_text({"x": "a", "b": 1})
