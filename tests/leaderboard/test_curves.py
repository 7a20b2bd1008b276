"""How rows came to their scores, as pictures."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.leaderboard.as_rows import SCORES
from tests.leaderboard.conftest import make_run
from vpeft_bench.config.identity import asked_hash
from vpeft_bench.leaderboard.admitted import admitted
from vpeft_bench.leaderboard.cards import cards_of, join
from vpeft_bench.leaderboard.cells import cells_of
from vpeft_bench.leaderboard.curves import expected_best, write_curves
from vpeft_bench.leaderboard.reading import find_runs
from vpeft_bench.leaderboard.summaries import summaries
from vpeft_bench.records.run_record import RunRecord


@pytest.mark.parametrize("gains", [[3.0, 1.0, 2.0, 2.0, 5.0], [7.0], [0.5, 0.5]])
def test_the_expected_best_is_the_mean_over_all_draws(gains: list[float]) -> None:
    for k, found in enumerate(expected_best(gains), 1):
        draws = [max(draw) for draw in itertools.combinations(gains, k)]
        assert found == pytest.approx(np.mean(draws))


def drawn(folder: Path, out: Path, *highlight: str) -> dict[str, str]:
    """The pictures of the benchmark ``demo`` by name, as SVG."""
    runs = admitted(find_runs([folder], use_cache=False).runs).rows
    found = join(cells_of(runs), cards_of([]).rows).cells
    of = [one for one in summaries(found, SCORES) if one.benchmark.name == "demo"]
    paths = write_curves(of, runs, runs, highlight, out)
    assert all(path.stat().st_size > 500 for path in paths)
    return {path.stem: path.read_text() for path in paths if path.suffix == ".svg"}


def learned(record: RunRecord, **curves: list[float | None]) -> RunRecord:
    return replace(record, happened=replace(record.happened, curves=dict(curves)))


def test_each_data_set_has_a_panel_of_its_learning_curves(
    save: Callable[..., Path], tmp_path: Path
) -> None:
    runs = [
        learned(
            make_run(60.0, method=method, data=f"demo/{data}", seed=seed),
            epoch=[1.0, 2.0],
            train_loss=[2.0 - seed, 0.5],
        )
        for method in ("lora", "ssf")
        for data in ("digits", "sprites_count")
        for seed in (0, 1)
    ]
    (picture,) = drawn(save(*runs), tmp_path / "out", "ssf").values()
    for text in ("digits", "sprites_count", "training loss", "epoch", "ssf", "1 others"):
        assert text in picture
    assert ">lora<" not in picture


def test_what_is_scored_on_val_in_every_epoch_is_drawn(
    save: Callable[..., Path], tmp_path: Path
) -> None:
    run = make_run(60.0, protocol="select")
    folder = save(learned(run, epoch=[1.0, 2.0], train_loss=[2.0, 0.5], val_top1=[50.0, 60.0]))
    assert "val top-1" in drawn(folder, tmp_path)["demo_select_curves"]


def test_a_cell_of_several_configurations_has_no_curve(
    save: Callable[..., Path], tmp_path: Path
) -> None:
    runs = [
        learned(make_run(60.0, seed=seed, train={"lr": rate}), train_loss=[2.0, 0.5])
        for seed, rate in enumerate((1e-3, 1e-2))
    ]
    assert drawn(save(*runs), tmp_path) == {}


def test_a_search_is_drawn_from_the_runs_that_it_names(
    save: Callable[..., Path], tmp_path: Path
) -> None:
    points = [
        make_run(value, protocol="select", train={"lr": rate})
        for value, rate in ((60.0, 1e-3), (70.0, 1e-2), (50.0, 1e-1))
    ]
    tuning = {
        "budget": 4,
        "space": "2ef0bd1b",
        "per_data": {"demo/digits": {"runs": [*(p.config_hash for p in points), None]}},
    }
    variant = {"name": "lora/tuned@4", "method": "lora", "tuning": tuning, "chosen": "tuned: 4"}
    made = make_run(80.0)
    asked = {**made.asked, "variant": variant}
    assert made.where.weights is not None
    hash_ = asked_hash(asked, made.where.data_fingerprint or "", made.where.weights.identity or "")
    final = replace(made, asked=asked, config_hash=hash_, variant="lora/tuned@4")
    found = drawn(save(*points, final), tmp_path)
    assert "points tried" in found["demo_final_budget"]
    assert "best val top-1" in found["demo_final_budget"]


def test_curves_are_of_the_rows_that_they_are_named_for(
    save: Callable[..., Path], tmp_path: Path
) -> None:
    """Also where the table is in another order than that of names: here ssf is the best row."""
    datasets = ("digits", "sprites_count", "sprites_location", "sprites_orientation")
    runs = [make_run(60.0, method="lora", data=f"demo/{data}") for data in datasets]
    runs += [
        learned(make_run(70.0, method="ssf", data=f"demo/{data}"), train_loss=[2.0, 0.5])
        for data in datasets
    ]
    picture = drawn(save(*runs), tmp_path / "out")["demo_final_curves"]
    assert ">ssf<" in picture
    assert ">lora<" not in picture


def test_the_score_by_pictures_of_each_class(save: Callable[..., Path], tmp_path: Path) -> None:
    runs = [
        make_run(50.0 + seed + (count or 40), method=method, seed=seed, per_class=count)
        for method in ("lora", "ssf")
        for count in (2, 16, None)
        for seed in (0, 1, 2)
    ]
    picture = drawn(save(*runs), tmp_path / "out")["demo_final_per_class"]
    for text in (">2<", ">16<", ">all<", "training pictures of each class", ">lora<", ">ssf<"):
        assert text in picture
    assert "per class" not in picture  # each row is one line


def test_without_few_pictures_there_is_no_such_picture(
    save: Callable[..., Path], tmp_path: Path
) -> None:
    assert drawn(save(make_run(50.0), make_run(51.0, seed=1)), tmp_path) == {}
