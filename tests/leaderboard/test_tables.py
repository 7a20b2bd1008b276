from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import pytest

from vpeft_bench.choices import choices_on_disk, config_dir
from vpeft_bench.data.listing import compose_data_configs
from vpeft_bench.leaderboard.benchmarks import BENCHMARKS, DEMO, FGVC, VTAB1K
from vpeft_bench.leaderboard.cells import Cell, collect
from vpeft_bench.leaderboard.tables import (
    Summary,
    best_first,
    dataset_csv_rows,
    dataset_rows,
    strangers,
    summaries,
    summary_csv_rows,
    summary_rows,
    to_csv,
    to_markdown,
)
from vpeft_bench.record import RunRecord, Status

Run = Callable[..., RunRecord]
PUBLISHED = Path(__file__).parents[2] / "results" / "published"


def cells(*records: RunRecord) -> list[Cell]:
    collection = collect((Path(f"{number}/record.json"), run) for number, run in enumerate(records))
    assert not collection.left_out
    return collection.cells


def summary(*records: RunRecord) -> Summary:
    (only,) = summaries(cells(*records))
    return only


def published(name: str) -> list[dict[str, str]]:
    with (PUBLISHED / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


VTAB_ROWS = published("vtab1k_vit_b16.csv")
GROUP_MEANS = {
    row["method"]: float(row["vtab_group_mean_7_4_8"])
    for row in published("mean_verification.csv")
    if row["table"] == "vtab"
}


def vtab_runs(run: Run, row: dict[str, str], **same: object) -> list[RunRecord]:
    return [
        run(
            float(row[name]),
            data=f"vtab1k/{name}",
            benchmark="vtab1k",
            method=row["method"],
            **same,
        )
        for name in VTAB1K.datasets
    ]


def test_benchmarks_have_the_published_data_sets() -> None:
    assert [len(group) for group in VTAB1K.groups.values()] == [7, 4, 8]
    assert [len(benchmark.datasets) for benchmark in (VTAB1K, FGVC, DEMO)] == [19, 5, 4]
    for benchmark, name in ((VTAB1K, "vtab1k_vit_b16.csv"), (FGVC, "fgvc_vit_b16.csv")):
        extra = {"method", "mean", "params_m", "ppt"}
        assert set(published(name)[0]) - extra == set(benchmark.datasets)


def test_every_data_set_of_the_configs_is_a_member() -> None:
    names = choices_on_disk()["data"]
    configs = compose_data_configs(config_dir(), names)
    for name, benchmark in BENCHMARKS.items():
        files = [config.name for config in configs if config.benchmark == name]
        assert {benchmark.member(file) for file in files} == set(benchmark.datasets)
        assert len(files) == len(benchmark.datasets)


@pytest.mark.parametrize("row", VTAB_ROWS, ids=lambda row: row["method"])
def test_both_means_of_published_rows(run: Run, row: dict[str, str]) -> None:
    (line,) = summary(*vtab_runs(run, row)).rows
    means = line.means()
    assert list(means) == ["mean over 19 datasets", "mean over 3 groups"]
    plain, grouped = means.values()
    assert plain == pytest.approx(float(row["mean"]), abs=0.005 + 1e-9)
    assert grouped == pytest.approx(GROUP_MEANS[row["method"]], abs=0.0005 + 1e-9)


def test_means_by_hand(run: Run) -> None:
    by_group = {"natural": 70.0, "specialized": 80.0, "structured": 50.0}
    runs = [
        run(by_group[group], data=f"vtab1k/{name}", benchmark="vtab1k")
        for group, names in VTAB1K.groups.items()
        for name in names
    ]
    (line,) = summary_csv_rows(summary(*runs))
    assert line["mean over 19 datasets"] == "63.6842"  # (7 * 70 + 4 * 80 + 8 * 50) / 19
    assert line["mean over 3 groups"] == "66.6667"
    assert [line[f"mean of {group}"] for group in by_group] == ["70.0000", "80.0000", "50.0000"]
    assert line["complete"] == "19/19"


def test_each_data_set_weighs_the_same_whatever_its_seeds(run: Run) -> None:
    names = [f"demo/{name}" for name in DEMO.datasets]
    runs = [run(top1, data=names[0], seed=top1) for top1 in (10, 20, 30)]
    runs += [run(60, data=name) for name in names[1:]]
    (line,) = summary_csv_rows(summary(*runs))
    assert line["mean over 4 datasets"] == "50.0000"
    assert [line["digits"], line["sprites_count"]] == ["20.00 ± 10.00 (3)", "60.00 (1)"]


def test_a_missing_cell_is_visible_and_blocks_its_means(run: Run) -> None:
    runs = [one for one in vtab_runs(run, VTAB_ROWS[0]) if "kitti" not in one.asked["data"]["name"]]
    table = summary(*runs)
    (line,), (shown,) = summary_csv_rows(table), summary_rows(table)
    assert (line["kitti"], shown["kitti"], line["complete"]) == ("", "–", "18/19")
    for name in ("mean over 19 datasets", "mean over 3 groups", "mean of structured"):
        assert (line[name], shown[name]) == ("", "–")
    assert line["mean of natural"] != ""


def test_two_configurations_are_ambiguous_and_never_the_better_one(run: Run) -> None:
    runs = [run(60, data=f"demo/{name}") for name in DEMO.datasets]
    (line,) = summary_csv_rows(summary(*runs, run(99, config_hash="lr=0.01")))
    assert line["digits"] == "ambiguous (2 configurations)"
    assert (line["mean over 4 datasets"], line["complete"]) == ("", "3/4")


def test_two_names_of_one_data_set_are_ambiguous(run: Run) -> None:
    pair = [run(60, data=name, benchmark="vtab1k") for name in ("vtab1k/cifar", "cifar100")]
    (line,) = summary_csv_rows(summary(*pair))
    assert line["cifar100"] == "ambiguous (2 configurations)"


def test_failed_cells(run: Run) -> None:
    runs = [run(60, data=f"demo/{name}") for name in DEMO.datasets[2:]]
    runs.append(run(data="demo/digits", status=Status.OOM))
    runs.append(run(data="demo/digits", status=Status.INTERRUPTED, seed=1))
    runs.append(run(data="demo/sprites_count", status=Status.INTERRUPTED))
    runs.append(run(data="demo/sprites_location", status=Status.FAILED, seed=1))
    (line,) = summary_csv_rows(summary(*runs))
    assert [line[name] for name in DEMO.datasets] == [
        "failed",
        "interrupted",
        "60.00 (1) 1 failed",
        "60.00 (1)",
    ]
    assert (line["mean over 4 datasets"], line["complete"]) == ("", "2/4")


def test_reasons_of_failures_are_counted(run: Run) -> None:
    runs = [run(60, seed=0)]
    runs += [run(seed=seed, status=Status.OOM, error="no\n memory") for seed in (1, 2)]
    runs.append(run(seed=3, status=Status.INTERRUPTED, error="SIGTERM"))
    (line,) = dataset_csv_rows(cells(*runs))
    assert (line["n"], line["seeds"], line["failed"]) == ("1", "0", "3")
    assert line["failed_reasons"] == "1 x interrupted: SIGTERM; 2 x oom: no memory"
    (shown,) = dataset_rows(cells(*runs))
    assert shown["not finished"] == "1 interrupted, 2 oom"


def test_the_best_comes_first_ties_go_by_name_and_blocked_rows_last(run: Run) -> None:
    tops = {"b": 60.001, "a": 60.0, "c": 80.0, "z": 60.0}
    runs = [
        run(top1, data=f"demo/{name}", method=method)
        for method, top1 in tops.items()
        for name in DEMO.datasets
    ]
    runs += [run(99, method=method) for method in ("y", "d")]
    assert [row.entry.method for row in summary(*runs).rows] == ["c", "a", "b", "z", "d", "y"]
    ordered = [cell.entry.method for cell in best_first(cells(*runs)) if cell.data == "demo/digits"]
    assert ordered == ["d", "y", "c", "a", "b", "z"]


def test_protocols_and_benchmarks_never_share_a_table(run: Run) -> None:
    tables = summaries(
        cells(
            run(protocol="final"),
            run(protocol="select"),
            run(data="fgvc/cub", benchmark="fgvc"),
            run(data="imagelist", benchmark="custom"),
        )
    )
    assert [(table.benchmark.name, table.protocol) for table in tables] == [
        ("demo", "final"),
        ("demo", "select"),
        ("fgvc", "final"),
    ]
    assert all(len(table.rows) == 1 for table in tables)


def test_a_stranger_is_named(run: Run) -> None:
    found = cells(run(data="demo/birds"), run(data="mine", benchmark="custom"))
    assert strangers(found) == ["demo/birds: demo has no such data set"]
    assert summaries(found) == []
    assert {cell.data for cell in best_first(found)} == {"demo/birds", "mine"}


def test_labels_are_marked_in_the_row(run: Run) -> None:
    found = cells(run(labels=("demo backbone", "demo data")), run(method="ssf"))
    for rows, column in (
        (summary_csv_rows(summaries(found)[0]), "labels"),
        (summary_rows(summaries(found)[0]), "notes"),
        (dataset_csv_rows(found), "labels"),
        (dataset_rows(found), "notes"),
    ):
        assert {row["method"]: row[column] for row in rows} == {
            "lora": "demo backbone, demo data",
            "ssf": "",
        }


def test_what_is_not_measured_is_empty_and_never_zero(run: Run) -> None:
    (line,) = dataset_csv_rows(cells(run(status=Status.FAILED)))
    measured = [name for name in line if name.startswith(("metric", "par", "sto", "tra", "peak"))]
    assert len(measured) == 12
    assert {line[name] for name in measured} == {""}


def test_a_data_set_row_in_full(run: Run) -> None:
    (line,) = dataset_csv_rows(cells(*(run(50.0 + 10 * seed, seed=seed) for seed in range(3))))
    wanted = {
        "split": "test",
        "options": "rank=8",
        "n": "3",
        "seeds": "0 1 2",
        "metric": "top1",
        "metric_mean": "60.0000",
        "metric_std": "10.0000",
        "metric_min": "50.0000",
        "metric_max": "70.0000",
        "top1_mean": "60.0000",
        "mean_per_class_accuracy_mean": "30.0000",
        "parameters_method": "1000",
        "parameters_head": "200",
        "parameters_total": "1200",
        "stored_delta_bytes": "4000",
        "train_seconds_mean": "31.0000",
        "train_images_per_second_mean": "250.0000",
        "peak_memory_bytes_max": "",
        "failed": "0",
        "failed_reasons": "",
    }
    assert {name: line[name] for name in wanted} == wanted


def test_equal_names_of_different_data_are_told_apart(run: Run) -> None:
    mine = {"data": "imagelist", "benchmark": "custom"}
    found = cells(run(**mine), run(**mine, method="ssf", data_fingerprint="sha256:0a1b2c3d4e5f"))
    assert {row["method"]: row["data version"] for row in dataset_rows(found)} == {
        "lora": "d1",
        "ssf": "0a1b2c3d",
    }


def test_csv_and_markdown_keep_awkward_values() -> None:
    rows = [{"a": 'x, "y"', "b": "1|2", "c": ""}, {"a": "± –", "b": "", "c": ""}]
    text = to_csv(rows)
    assert "\r" not in text
    assert list(csv.DictReader(io.StringIO(text))) == rows
    assert to_markdown(rows) == '| a | b |\n| --- | --- |\n| x, "y" | 1\\|2 |\n| ± – |  |\n'


def test_the_mean_does_not_depend_on_the_order_of_the_seeds(run: Run) -> None:
    tops = [0.1, 0.2, 0.3, 99.7, 33.3]
    forwards = [run(top1, seed=seed) for seed, top1 in enumerate(tops)]
    backwards = [run(top1, seed=seed) for seed, top1 in enumerate(reversed(tops))]
    assert cells(*forwards)[0].score == cells(*backwards)[0].score
    assert cells(*forwards)[0].score.mean == fmean(tops)
