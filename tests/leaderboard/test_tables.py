from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean

import pytest

from tests.leaderboard.as_rows import SCORES, cells, datasets, in_file, in_print, summaries
from tests.leaderboard.conftest import CPU
from vpeft_bench.config.benchmarks import known
from vpeft_bench.config.choices import choices_on_disk, config_dir, use_folders
from vpeft_bench.config.identity import asked_hash
from vpeft_bench.data.composed import compose_data_configs
from vpeft_bench.formats import shortest, to_csv, to_markdown
from vpeft_bench.leaderboard.summaries import Summary, strangers
from vpeft_bench.leaderboard.tables import best_first
from vpeft_bench.records.cost_card import CardStatus, CostCard
from vpeft_bench.records.run_record import DataFacts, Diverged, Parameters, RunRecord, Status

Run = Callable[..., RunRecord]
Card = Callable[..., CostCard]
BENCHMARKS = known()
VTAB1K, FGVC, DEMO = (BENCHMARKS[name] for name in ("vtab1k", "fgvc", "demo"))
PUBLISHED = Path(__file__).parents[2] / "results" / "published"


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
        assert set(files) == set(benchmark.members)
        assert len(files) == len(benchmark.datasets)


@pytest.mark.parametrize("row", VTAB_ROWS, ids=lambda row: row["method"])
def test_both_means_of_published_rows(run: Run, row: dict[str, str]) -> None:
    (line,) = summary(*vtab_runs(run, row)).rows.to_dict("records")
    plain, grouped = line["mean over 19 datasets"], line["mean over 3 groups"]
    assert plain == pytest.approx(float(row["mean"]), abs=0.005 + 1e-9)
    assert grouped == pytest.approx(GROUP_MEANS[row["method"]], abs=0.0005 + 1e-9)


def test_means_by_hand(run: Run) -> None:
    by_group = {"natural": 70.0, "specialized": 80.0, "structured": 50.0}
    runs = [
        run(by_group[group], data=f"vtab1k/{name}", benchmark="vtab1k")
        for group, names in VTAB1K.groups.items()
        for name in names
    ]
    (line,) = in_file(summary(*runs))
    assert line["mean over 19 datasets"] == "63.684211"  # (7 * 70 + 4 * 80 + 8 * 50) / 19
    assert line["mean over 3 groups"] == "66.666667"
    assert [line[f"mean of {group}"] for group in by_group] == ["70", "80", "50"]
    assert line["complete"] == "19/19"


def test_each_data_set_weighs_the_same_whatever_its_seeds(run: Run) -> None:
    names = [f"demo/{name}" for name in DEMO.datasets]
    runs = [run(top1, data=names[0], seed=top1) for top1 in (10, 20, 30)]
    runs += [run(60, data=name) for name in names[1:]]
    table = summary(*runs)
    (line,), (shown,) = in_file(table), in_print(table)
    assert line["mean over 4 datasets"] == "50"
    assert [line["digits"], line["sprites_count"], line["cells"]] == ["20", "60", ""]
    assert [shown["digits"], shown["sprites_count"]] == ["20.00 ± 10.00 (3)", "60.00 (1)"]


def test_a_missing_cell_is_visible_and_blocks_its_means(run: Run) -> None:
    runs = [one for one in vtab_runs(run, VTAB_ROWS[0]) if "kitti" not in one.asked["data"]["name"]]
    table = summary(*runs)
    (line,), (shown,) = in_file(table), in_print(table)
    assert (line["kitti"], shown["kitti"], line["complete"]) == ("", "–", "18/19")
    assert line["cells"] == "kitti: no run"
    for name in ("mean over 19 datasets", "mean over 3 groups", "mean of structured"):
        assert (line[name], shown[name]) == ("", "–")
    assert line["mean of natural"] != ""


def test_two_configurations_are_ambiguous_and_never_the_better_one(run: Run) -> None:
    runs = [run(60, data=f"demo/{name}") for name in DEMO.datasets]
    table = summary(*runs, run(99, train={"lr": 1e-2}))
    (line,), (shown,) = in_file(table), in_print(table)
    assert shown["digits"] == "ambiguous (2 configurations)"
    assert (line["digits"], line["cells"]) == ("", "digits: ambiguous (2 configurations)")
    assert (line["mean over 4 datasets"], line["complete"]) == ("", "3/4")


def test_two_names_of_one_data_set_are_ambiguous(run: Run) -> None:
    pair = [run(60, data=name, benchmark="vtab1k") for name in ("vtab1k/cifar", "cifar100")]
    (line,), (shown,) = in_file(summary(*pair)), in_print(summary(*pair))
    assert shown["cifar100"] == "ambiguous (2 configurations)"
    assert line["cifar100"] == ""


def test_failed_cells(run: Run) -> None:
    runs = [run(60, data=f"demo/{name}") for name in DEMO.datasets[2:]]
    runs.append(run(data="demo/digits", status=Status.OOM))
    runs.append(run(data="demo/digits", status=Status.INTERRUPTED, seed=1))
    runs.append(run(data="demo/sprites_count", status=Status.INTERRUPTED))
    runs.append(run(data="demo/sprites_location", status=Status.FAILED, seed=1))
    (line,), (shown,) = in_file(summary(*runs)), in_print(summary(*runs))
    assert [line[name] for name in DEMO.datasets] == ["", "", "60", "60"]
    assert line["cells"] == (
        "digits: failed; sprites_count: interrupted; sprites_location: 60.00 (1) 1 failed"
    )
    assert [shown[name] for name in DEMO.datasets] == [
        "failed",
        "interrupted",
        "60.00 (1) 1 failed",
        "60.00 (1)",
    ]
    assert (line["mean over 4 datasets"], line["complete"]) == ("", "2/4")


def test_a_cell_of_which_a_seed_diverged_has_no_mean(run: Run) -> None:
    """The mean of the seeds that held would be a choice among them."""
    runs = [run(60, data=f"demo/{name}") for name in DEMO.datasets if name != "digits"]
    runs += [run(60, data="demo/digits", seed=seed) for seed in (0, 1)]
    diverged = run(data="demo/digits", seed=2, status=Status.FAILED, error="diverged: the loss")
    happened = dataclasses.replace(diverged.happened, diverged=Diverged("loss", 1, 2))
    runs.append(dataclasses.replace(diverged, happened=happened))
    (line,), (shown,) = in_file(summary(*runs)), in_print(summary(*runs))
    assert (line["digits"], line["cells"]) == ("", "digits: diverged (1 of 3)")
    assert shown["digits"] == "diverged (1 of 3)"
    assert (line["mean over 4 datasets"], line["complete"]) == ("", "3/4")
    found = cells(*runs)
    of_digits = found[found["data"] == "demo/digits"]
    (line,) = in_file(datasets(of_digits))
    assert (line["mean"], line["top1_mean"], line["failed"]) == ("", "", "1")
    (shown,) = in_print(datasets(of_digits))
    assert shown["top-1 %"] == "diverged"
    assert shown["not finished"] == "1 diverged"


def test_a_loss_that_was_nan_when_nobody_looked_counts_as_diverged(run: Run) -> None:
    """Earlier versions recorded such a run as ok; its last loss is null."""
    sound = run(60)
    curves: dict[str, list[float | None]] = {"train_loss": [2.0, None]}
    happened = dataclasses.replace(sound.happened, curves=curves)
    (line,) = in_file(datasets(cells(dataclasses.replace(sound, happened=happened))))
    assert (line["n"], line["mean"], line["failed_reasons"]) == ("0", "", "1 x diverged: ")


def test_reasons_of_failures_are_counted(run: Run) -> None:
    runs = [run(60, seed=0)]
    runs += [run(seed=seed, status=Status.OOM, error="no\n memory") for seed in (1, 2)]
    runs.append(run(seed=3, status=Status.INTERRUPTED, error="SIGTERM"))
    (line,) = in_file(datasets(cells(*runs)))
    assert (line["n"], line["seeds"], line["failed"]) == ("1", "0", "3")
    assert line["failed_reasons"] == "1 x interrupted: SIGTERM; 2 x oom: no memory"
    (shown,) = in_print(datasets(cells(*runs)))
    assert shown["not finished"] == "1 interrupted, 2 oom"


def test_the_best_comes_first_ties_go_by_name_and_blocked_rows_last(run: Run) -> None:
    tops = {"b": 60.001, "a": 60.0, "c": 80.0, "z": 60.0}
    runs = [
        run(top1, data=f"demo/{name}", method=method)
        for method, top1 in tops.items()
        for name in DEMO.datasets
    ]
    runs += [run(99, method=method) for method in ("y", "d")]
    assert [*summary(*runs).rows["method"]] == ["c", "a", "b", "z", "d", "y"]
    ordered = best_first(cells(*runs))
    of_digits = ordered.loc[ordered["data"] == "demo/digits", "method"]
    assert [*of_digits] == ["d", "y", "c", "a", "b", "z"]


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
    assert set(best_first(found)["data"]) == {"demo/birds", "mine"}


def test_labels_are_marked_in_the_row(run: Run) -> None:
    found = cells(run(labels=("demo backbone", "demo data")), run(method="ssf"))
    for rows, column in (
        (in_file(summaries(found)[0]), "labels"),
        (in_print(summaries(found)[0]), "notes"),
        (in_file(datasets(found)), "labels"),
        (in_print(datasets(found)), "notes"),
    ):
        assert {row["method"]: row[column] for row in rows} == {
            "lora": "demo backbone, demo data",
            "ssf": "",
        }


def test_what_is_not_measured_is_empty_and_never_zero(run: Run) -> None:
    (line,) = in_file(datasets(cells(run(status=Status.FAILED))))
    starts = ("m", "std", "ci_", "par", "sto", "tra", "peak")
    measured = [name for name in line if name.startswith(starts) and name != "method"]
    assert len(measured) == 14
    assert {line[name] for name in measured} == {""}


def test_a_data_set_row_in_full(run: Run) -> None:
    (line,) = in_file(datasets(cells(*(run(50.0 + 10 * seed, seed=seed) for seed in range(3)))))
    wanted = {
        "split": "test",
        "options": "rank=8",
        "n": "3",
        "seeds": "0 1 2",
        "metric": "top1",
        "mean": "60",
        "std": "10",
        # t(0.975, 2) is 4.302653.
        "ci_low": "35.158623",
        "ci_high": "84.841377",
        "min": "50",
        "max": "70",
        "top1_mean": "60",
        "mean_per_class_accuracy_mean": "30",
        "parameters_method": "1000",
        "parameters_head": "200",
        "parameters_total": "1200",
        "stored_delta_bytes": "4000",
        "train_seconds_mean": "31",
        "train_images_per_second_mean": "250",
        "peak_memory_bytes_max": "",
        "failed": "0",
        "failed_reasons": "",
    }
    assert {name: line[name] for name in wanted} == wanted


def test_a_data_set_row_has_its_card(run: Run, card: Card) -> None:
    found = cells(run(80.0), run(70.0, method="ssf"), cards=[card(labels=("busy",))])
    lines = {line["method"]: line for line in in_file(datasets(found))}
    wanted = {
        "card_train_step_ms_median": "128",
        "card_train_step_images_per_second": "500",
        "card_train_step_flops_per_image": "70500000001",
        "card_peak_allocated_bytes": "7865036296",
        "card_peak_resident_growth_bytes": "",
        "card_device": "NVIDIA H100 80GB HBM3",
        "card_batch_size": "64",
        "card_id": card(labels=("busy",)).card_id,
        "labels": "card: busy",
        "ppt": "0.799965",
        "score_constants": SCORES.constants,
        # The run's own, incidental measurements keep their names.
        "train_images_per_second_mean": "250",
        "device": "some CPU",
    }
    assert {name: lines["lora"][name] for name in wanted} == wanted
    pscp = SCORES.pscp(80.0, 1000, 70_500_000_001, 7_865_036_296)
    assert lines["lora"]["pscp_style"] == f"{pscp:.6f}" != ""
    assert lines["ssf"]["ppt"] == "0.69997"
    names = [name for name in lines["ssf"] if name.startswith("card_")] + ["pscp_style"]
    assert {lines["ssf"][name] for name in names} == {""}

    rows = {row["method"]: row for row in in_print(datasets(found))}
    names = ["PSCP style", "card step ms", "card images/s", "card GFLOPs", "card peak MiB"]
    assert [rows["lora"][name] for name in names] == [f"{pscp:.3f}", "128", "500", "70.5", "7,501"]
    assert {rows["ssf"][name] for name in names} == {"–"}
    assert rows["lora"]["images/s"] == "250"


def test_without_cards_print_has_no_card_columns(run: Run) -> None:
    found = cells(run())
    for row in (*in_print(datasets(found)), *in_print(summaries(found)[0])):
        assert "PPT" in row
        assert [name for name in row if "card" in name or "PSCP" in name] == []


def test_scores_of_a_summary_are_those_of_the_plain_mean(run: Run, card: Card) -> None:
    cards = [card(method=VTAB_ROWS[0]["method"])]
    found = cells(*vtab_runs(run, VTAB_ROWS[0]), cards=cards)
    (line,), (row,) = (rows_of(summaries(found)[0]) for rows_of in (in_file, in_print))
    mean = float(line["mean over 19 datasets"])
    assert float(line["ppt"]) == pytest.approx(SCORES.ppt(mean, 1000), abs=6e-5)
    pscp = SCORES.pscp(mean, 1000, 70_500_000_001, 7_865_036_296)
    assert float(line["pscp_style"]) == pytest.approx(pscp, abs=6e-5)
    assert row["PPT"] == f"{float(line['ppt']):.3f}"
    assert (line["card_train_step_ms_median"], row["card step ms"]) == ("128", "128")


def test_without_a_mean_there_is_no_score(run: Run, card: Card) -> None:
    runs = [run(60, data=f"demo/{name}") for name in DEMO.datasets[1:]]
    (line,) = in_file(summaries(cells(*runs, cards=[card()]))[0])
    assert (line["ppt"], line["pscp_style"]) == ("", "")
    assert line["card_batch_size"] == "64"
    dense = cells(run(60, data="demo/scenes_detection", benchmark="demo_dense"))
    (line,), (row,) = (rows_of(summaries(dense)[0]) for rows_of in (in_file, in_print))
    assert (line["ppt"], "PPT" in row) == ("", False)


def test_a_summary_row_whose_cells_have_other_networks_has_no_card(run: Run, card: Card) -> None:
    small = {"network": {"image_size": 16}}
    found = cells(
        run(data="demo/digits"),
        run(data="demo/sprites_count", **small),
        cards=[card(), card(**small)],
    )
    assert found["card_id"].notna().all()
    (line,) = in_file(summaries(found)[0])
    assert line["card_id"] == ""


def test_a_score_needs_what_it_is_made_of(run: Run, card: Card) -> None:
    unknown = card(device=CPU)
    assert unknown.measured is not None
    memory = dataclasses.replace(unknown.measured.memory, resident_growth=None, activations=None)
    measured = dataclasses.replace(unknown.measured, memory=memory)
    for one in (dataclasses.replace(unknown, measured=measured), card(status=CardStatus.OOM)):
        (line,) = in_file(datasets(cells(run(), cards=[card(method="ssf"), one])))
        assert line["ppt"] != ""
        assert line["pscp_style"] == ""


def test_a_score_is_of_the_parameters_of_all_seeds(run: Run) -> None:
    runs = [run(80.0, seed=seed) for seed in (0, 1)]
    more = Parameters(method=3_000_000, head=0, total=3_000_000, model=4_000_000)
    runs[1] = dataclasses.replace(
        runs[1], happened=dataclasses.replace(runs[1].happened, parameters=more)
    )
    (line,) = in_file(datasets(cells(*runs)))
    assert line["parameters_method"] == "3000000"
    assert line["ppt"] == f"{SCORES.ppt(80.0, 1_500_500):.6f}"


def test_equal_names_of_different_data_are_told_apart(run: Run) -> None:
    mine = {"data": "imagelist", "benchmark": "custom"}
    found = cells(run(**mine), run(**mine, method="ssf", data_fingerprint="sha256:0a1b2c3d4e5f"))
    assert {row["method"]: row["data version"] for row in in_print(datasets(found))} == {
        "lora": "d1",
        "ssf": "0a1b2c3d",
    }


def test_other_formats_of_pictures_are_told_apart(run: Run) -> None:
    def read_from(record: RunRecord, image_format: str) -> RunRecord:
        data = DataFacts(image_format=image_format)
        return dataclasses.replace(record, where=dataclasses.replace(record.where, data=data))

    png, jpeg = run(), run(data_fingerprint="d2")
    rows = in_print(datasets(cells(read_from(png, "png"), read_from(jpeg, "jpeg"))))
    assert sorted(row["pictures"] for row in rows) == ["jpeg", "png"]
    (row,) = in_print(datasets(cells(read_from(png, "png"))))
    assert row["pictures"] == ""
    (line,) = in_file(datasets(cells(read_from(png, "jpeg+png"))))
    assert line["image_format"] == "jpeg+png"


def test_the_shortest_text_reads_back_as_the_same_number() -> None:
    numbers = [0.1, 1e7, 8.58e7, 85_798_656.0, 123456789.5, 1 / 3, 105.0, 2**60, 0, 1_000_000]
    assert [float(shortest(number)) for number in numbers] == numbers
    assert [shortest(number) for number in (105.0, 1_000_000, None)] == ["105", "1000000", ""]


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
    columns = ["mean", "std", "ci_low", "ci_high", "top1_mean"]
    one, other = (cells(*runs)[columns].iloc[0].tolist() for runs in (forwards, backwards))
    assert one == other
    assert one[0] == fmean(tops)


@pytest.fixture
def mine(tmp_path: Path) -> Iterator[None]:
    """A benchmark of the user's own: two data sets, one of them ours."""
    (tmp_path / "benchmark").mkdir()
    text = "datasets: [demo/digits, cats]\n"
    (tmp_path / "benchmark" / "mine.yaml").write_text(text)
    use_folders([tmp_path])
    yield
    use_folders([])


@pytest.mark.usefixtures("mine")
def test_a_benchmark_of_ones_own_has_a_summary_and_a_mean(run: Run) -> None:
    found = cells(
        run(60, data="demo/digits"),
        run(80, data="cats", benchmark="mine"),
        run(10, data="dogs", benchmark="mine"),
        run(10, data="fish", benchmark="mien"),
    )
    by_name = {one.benchmark.name: one for one in summaries(found)}
    assert list(by_name) == ["demo", "mine"]
    (line,) = in_file(by_name["mine"])
    assert line["mean over 2 datasets"] == "70"
    assert (line["digits"], line["cats"]) == ("60", "80")
    assert [one.benchmark.name for one in summaries(found, "mine")] == ["mine"]
    first, second = strangers(found)
    assert first == "dogs: mine has no such data set"
    assert second.startswith("fish: no file benchmark/mien.yaml says what mien is; did you mean")


def test_what_a_search_cost_is_a_column_of_the_row_that_came_of_it(run: Run) -> None:
    def tuned(data: str, failed: int) -> RunRecord:
        made = run(data=data)
        here = {"failed": failed, "seconds": 30.0, "device": "a GPU"}
        tuning = {"budget": 8, "space": "0a1b", "per_data": {data: here}}
        variant = {
            "name": "lora/tuned@8",
            "chosen": "tuned: 8 points, space 0a1b",
            "tuning": tuning,
        }
        asked = made.asked | {"variant": variant}
        identity = made.where.weights.identity if made.where.weights else None
        hash_ = asked_hash(asked, made.where.data_fingerprint or "", identity or "none")
        return dataclasses.replace(made, asked=asked, config_hash=hash_, variant="lora/tuned@8")

    made = [tuned(f"demo/{name}", n) for n, name in enumerate(("digits", "sprites_count"))]
    found = cells(*made)
    assert found["tuning_seconds"].tolist() == [30.0, 30.0]
    (summary,) = (s for s in summaries(found) if s.benchmark.name == "demo")
    (row,) = in_file(summary)
    assert row["tuning_budget"] == "8"
    assert (row["tuning_failed"], float(row["tuning_seconds"])) == ("1", 60.0)
    assert (row["tuning_space"], row["tuning_device"]) == ("0a1b", "a GPU")
