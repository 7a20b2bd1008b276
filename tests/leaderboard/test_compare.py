"""Our rows beside published numbers: of the same method, data set, backbone and weights."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.leaderboard.as_rows import cells, in_file, in_print
from vpeft_bench.backbones.load import traits_of
from vpeft_bench.cli.leaderboard import main
from vpeft_bench.cli.overrides import check_overrides
from vpeft_bench.config.benchmarks import known
from vpeft_bench.config.identity import asked_hash
from vpeft_bench.config.schema import plain, typed
from vpeft_bench.config.variants import find
from vpeft_bench.errors import ConfigError
from vpeft_bench.leaderboard import published
from vpeft_bench.leaderboard.column import In
from vpeft_bench.leaderboard.compare import Comparison, compare
from vpeft_bench.leaderboard.published import Provenance, read
from vpeft_bench.leaderboard.written import schema
from vpeft_bench.methods.registry import build_method, list_methods, option_problems
from vpeft_bench.records.run_record import (
    Metrics,
    RunRecord,
    Split,
    Status,
    Weights,
    WeightsLabel,
    write,
)

Run = Callable[..., RunRecord]
HUB = Weights("hub", "sha256:abc", WeightsLabel.PRETRAINED, "sha256:file")
VIT: dict[str, Any] = {"backbone": "vit_b16", "benchmark": "vtab1k", "weights": HUB}
DTD: dict[str, Any] = {**VIT, "data": "vtab1k/dtd"}


def beside(*runs: RunRecord, asked: str = "published") -> Comparison:
    return compare(cells(*runs), read([asked]))


def reasons(found: Comparison, whose: str) -> dict[str, str]:
    return {
        line["row"]: line["reason"] for line in in_file(found.left_out) if line["whose"] == whose
    }


def own_table(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines))
    return str(path)


FOLDERS = {"records": "runs", "cards": "cards", "out": "out"}


def test_json_and_page_have_it_apart_from_all_else(run: Run, tmp_path: Path) -> None:
    table = own_table(
        tmp_path / "theirs.csv",
        "method,data,value,source,provenance",
        "lora,demo/digits,61.5,Some paper,quoted",
        "lora,demo/sprites_count,40.25,Some paper,quoted",
        "<b>nobody</b>,demo/digits,12.5,Some paper,quoted",
    )
    for number, data in enumerate(("demo/digits", "demo/sprites_count")):
        record = run(60.0 + number, data=data)
        write(record, tmp_path / "runs" / str(number) / "record.json")
    (tmp_path / "cards").mkdir()
    where = [f"--{name}={tmp_path / of}" for name, of in FOLDERS.items()]
    assert main([*where, "--compare", table]) == 0
    content = json.loads((tmp_path / "out" / "leaderboard.json").read_text())
    jsonschema.validate(content, schema())
    apart = content.pop("beside_published")
    assert [(row["mean"], row["published"]) for row in apart["cells"][0]["rows"]] == [
        (60.0, 61.5),
        (61.0, 40.25),
    ]
    assert "last epoch" in apart["cells"][0]["notes"][0]
    assert [row["row"] for row in apart["not_compared"]["rows"]] == ["<b>nobody</b>"]
    assert "61.5" not in json.dumps(content)
    page = (tmp_path / "out" / "index.html").read_text()
    before, _, after = page.partition('id="published"')
    main_part = before.partition("<main")[2]
    assert "61.50" not in main_part
    assert "Some paper" not in main_part
    for text in ("61.50", "-1.50", "+9.62", "row by row", "cell by cell"):
        assert text in after
    assert after.index("last epoch, mean over seeds") < after.index("61.50"), "first what to know"
    assert "1 row, ours or published, beside nothing" in after
    assert "nothing here is a published number" not in page

    assert main(where) == 0
    content = json.loads((tmp_path / "out" / "leaderboard.json").read_text())
    assert content["beside_published"] is None
    page = (tmp_path / "out" / "index.html").read_text()
    assert 'id="published"' not in page
    assert "nothing here is a published number" in page


# ---- the tables of results/published -------------------------------------------------------------


def test_every_published_row_has_one_line_that_says_what_it_is() -> None:
    rows = published.lines("rows")
    keys = [(row["table"], row["paper"], row["row"]) for row in rows]
    assert [key for key, count in Counter(keys).items() if count > 1] == []
    whole = {table for table, _, row in keys if row == published.EVERY_ROW}
    tables = {path.stem for path in published.folder().glob("*.csv")}
    derived = {"rows", "columns", "sources", "parameters", "mean_verification", "ppt_verification"}
    assert {table for table, _, _ in keys} == tables - derived
    for table in tables - derived - whole:
        printed = {(line.get("paper", ""), line["method"]) for line in published.lines(table)}
        assert {(paper, row) for of, paper, row in keys if of == table} == printed


def test_what_rows_name_is_there() -> None:
    names = {member for one in known().values() for member in one.members}
    assert {line["data"] for line in published.lines("columns")} <= names
    sources = {line["source"] for line in published.lines("sources")}
    for row in published.lines("rows"):
        assert row["source"] in sources
        assert row["provenance"] in list(Provenance)
        assert row["evidence"]
        assert bool(row["method"]) != bool(row["not_compared"])
        assert row["method"] in ["", *list_methods()]
        if row["variant"]:
            variant = find(row["variant"])
            assert variant is not None
            assert variant.method == row["method"]
        elif row["options"]:
            options = dict(text.split("=") for text in row["options"].split())
            assert list(option_problems(row["method"], options)) == []


def test_numbers_are_those_that_are_printed() -> None:
    values = read(["published"]).values
    assert len(values) == 20 * 19 + 15 * 5 + 11 * 2 + 11 * 2 + 15 * 19 + 2 * 19 + 2 * 19
    keys = ["source", "table", "row", "data", "metric"]
    assert not values.duplicated(keys).any()
    found = values.set_index(keys)["value"]
    a, b, c = "A, V-PETL Bench", "B, OSU-MLB", "C, Convpass"
    other = "vtab1k_other_sources_long"
    assert found[a, "vtab1k_vit_b16", "SNF", "vtab1k/cifar", "top1"] == 84.0
    assert found[a, "coco_swin_b", "Mona", "coco", "mask_ap"] == 46.0
    assert found[b, other, "AdaptFormer", "vtab1k/cifar", "top1"] == 74.25
    assert found[c, other, "Convpass", "vtab1k/dtd", "top1"] == 72.18
    left_out = read(["published"]).left_out
    assert "a second value on vtab1k/cifar: separate run directory" in " ".join(left_out["reason"])


def test_quoted_says_what_can_be_seen_to_be_equal() -> None:
    """The rows of A that are called VPT's have its 19 numbers, as another source quotes them."""
    rows = {line["method"]: line for line in published.lines("vtab1k_vit_b16")}
    quotes = [
        line
        for line in published.lines("vtab1k_other_sources_long")
        if "quoting VPT" in line["paper"]
    ]
    assert len(quotes) == 38
    assert all(
        float(rows[line["method"]][line["dataset"]]) == float(line["acc"]) for line in quotes
    )


# ---- what stands beside what ---------------------------------------------------------------------


def test_a_cell_stands_beside_the_numbers_of_its_method(run: Run) -> None:
    found = beside(
        run(70.0, **DTD, method="hydra", options={"rank": 4}, seed=0),
        run(71.0, **DTD, method="hydra", options={"rank": 4}, seed=1),
    )
    (line,) = in_file(found.tables[0])
    told = {name: line[name] for name in ("mean", "n", "published", "difference", "source", "row")}
    assert told == {
        "mean": "70.5",
        "n": "2",
        "published": "72",
        "difference": "-1.5",
        "source": "A, V-PETL Bench",
        "row": "Hydra",
    }
    assert (line["provenance"], line["settings"]) == ("unknown", "parameters.csv")
    assert line["departs"] == "rank=4 not 2"
    assert "no code of it" in line["evidence"]
    assert found.tables[0].name == "compare_vtab1k"


def test_published_numbers_are_never_in_a_column_with_ours(run: Run) -> None:
    (table,) = beside(run(70.0, **DTD)).tables
    (a, b) = in_file(table)
    assert (a["mean"], b["mean"]) == ("70", "70")
    assert (a["published"], b["published"]) == ("69.4", "68.99")
    assert [line["provenance"] for line in (a, b)] == ["unknown", "re-implemented"]
    printed = in_print(table)[0]
    assert (printed["ours"], printed["published"], printed["ours - published"]) == (
        "70.00",
        "69.40",
        "+0.60",
    )


def test_the_published_settings_of_the_data_set_decide_what_departs(run: Run) -> None:
    wanted = {"rank": 1, "init": "kaiming"}
    same = run(70.0, **DTD, options=wanted, train={"lr": 0.001, "weight_decay": 0.0001})
    other = run(70.0, **{**VIT, "data": "vtab1k/svhn"}, options=wanted, train={"lr": 0.01})
    osu = {
        line["data"]: line["departs"]
        for line in in_file(beside(same, other).tables[0])
        if line["settings"] == "lora/osu"
    }
    assert osu["vtab1k/dtd"] == ""
    assert osu["vtab1k/svhn"] == "rank=1 not 32, lr=0.01 not 0.001"


@pytest.mark.parametrize(
    "variant", ["lora/vpetl", "convpass/authors_attn", "fact_tk/authors", "ssf/osu"]
)
def test_a_run_of_the_variant_with_the_published_settings_departs_in_nothing(
    run: Run, variant: str
) -> None:
    checked = check_overrides([f"variant={variant}", "data=vtab1k/dtd", "backbone=vit_b16"], [])
    asked = plain(typed(checked.config))  # type: ignore[arg-type]
    options = {key: value for key, value in asked["method"].items() if key != "name"}
    method = build_method(asked["method"]["name"], options)
    uncounted = method.uncounted(traits_of(asked["backbone"]["model"]))
    name = asked_hash(asked, "d1", str(HUB.identity), uncounted)
    made = replace(run(70.0, **DTD), asked=asked, uncounted=uncounted, config_hash=name)
    (departs,) = (
        line["departs"] for line in in_file(beside(made).tables[0]) if line["settings"] == variant
    )
    assert departs == ""


def test_any_of_several_sets_of_options_will_do(run: Run) -> None:
    """Where the authors' rank differs by task and nothing more is known."""
    gps = run(
        80.0,
        backbone="vit_b16",
        benchmark="fgvc",
        weights=HUB,
        data="fgvc/cub",
        method="adapter",
        options={"bottleneck": 12},
    )
    (line,) = in_file(beside(gps).tables[0])
    assert (line["settings"], line["departs"]) == ("parameters.csv", "")


def test_of_two_rows_of_one_method_the_nearer_one_counts(run: Run) -> None:
    options = {"bottleneck": 8, "scale": 0.1, "placement": "attn"}
    found = beside(run(70.0, **DTD, method="convpass", options=options))
    rows = {line["source"]: line["row"] for line in in_file(found.tables[0])}
    assert rows == {"B, OSU-MLB": "Convpass", "C, Convpass": "Convpass-attn"}


def test_a_box_is_not_compared_with_a_mask(run: Run) -> None:
    coco = run(
        50.0,
        data="coco",
        benchmark="dense",
        backbone="swin_b",
        weights=HUB,
        method="mona",
        head={"name": "mask_rcnn"},
    )
    last = Metrics(Split.TEST, 36, 5000, "box_ap", {"box_ap": 50.0, "mask_ap": 44.0})
    coco = replace(coco, happened=replace(coco.happened, last_epoch=last))
    lines = in_file(beside(coco).tables[0])
    assert [(line["metric"], line["mean"], line["published"]) for line in lines] == [
        ("box_ap", "50", "53.4"),
        ("mask_ap", "44", "46"),
    ]
    assert {line["departs"] for line in lines} == {"head=mask_rcnn not cascade_mask_rcnn"}


# ---- what does not -------------------------------------------------------------------------------


def test_a_demo_backbone_is_never_compared(run: Run) -> None:
    found = beside(run(99.0), run(99.0, data="vtab1k/dtd", benchmark="vtab1k", seed=1))
    assert found.tables == found.pairs == []
    (reason,) = set(reasons(found, "ours").values())
    assert "backbone demo_vit: " in reason
    assert "vit_b16" in reason


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"weights": Weights(None, None, WeightsLabel.RANDOM)}, "random weights"),
        (
            {"backbone": "vit_b16_augreg"},
            "backbone vit_b16_augreg: the published number has vit_b16",
        ),
        ({"protocol": "select"}, "protocol select: published numbers are of test images"),
        ({"per_class": 4}, "4 pictures of each class: the published number is of all"),
        ({"labels": ("test split of 2,000 images",)}, "test split of 2,000 images"),
        ({"status": Status.OOM}, "no value"),
        ({"method": "arc"}, "no published number"),
    ],
)
def test_what_is_unlike_is_not_compared(run: Run, changed: dict[str, Any], reason: str) -> None:
    found = beside(run(**{**DTD, **changed}))
    assert found.tables == []
    assert reason in next(iter(reasons(found, "ours").values()))


def test_every_published_row_without_a_counterpart_is_named(run: Run) -> None:
    theirs = reasons(beside(run(70.0, **DTD, method="hydra")), "published")
    assert theirs["DiffFit"] == "no such method here"
    assert theirs["NOAH"] == "no run of the method with vit_b16"
    assert theirs["Mona"] == "no run of the method with swin_l"
    assert "data set" in theirs["VPT"]


def test_the_mean_is_over_the_data_sets_of_both(run: Run) -> None:
    svhn = run(80.0, **{**VIT, "data": "vtab1k/svhn"}, method="hydra")
    (pairs,) = beside(run(70.0, **DTD, method="hydra"), svhn).pairs
    (row,) = pairs.rows.to_dict("records")
    assert (row["data_sets"], row["mean"]) == (2, 75.0)
    assert row["published"] == pytest.approx((72.0 + 90.7) / 2)
    assert all(column.where in In.READERS or column.title for column in pairs.of(In.TERMINAL))


# ---- a user's own table --------------------------------------------------------------------------


def test_any_long_table_will_do(run: Run, tmp_path: Path) -> None:
    table = own_table(
        tmp_path / "mine.csv",
        "method,data,value,source,note",
        "lora,digits,40,a paper,x",
        "lora,demo/sprites_count,41,a paper,x",
        "nothing_of_ours,digits,1,a paper,x",
    )
    found = beside(run(50.0), run(60.0, data="demo/sprites_count"), asked=table)
    lines = in_file(found.tables[0])
    assert [(line["data"], line["published"], line["source"]) for line in lines] == [
        ("demo/digits", "40", "a paper"),
        ("demo/sprites_count", "41", "a paper"),
    ]
    assert {line["provenance"] for line in lines} == {"unknown"}
    assert reasons(found, "published") == {"nothing_of_ours": "no run of the method"}


def test_a_backbone_that_a_table_names_must_be_that_of_the_run(run: Run, tmp_path: Path) -> None:
    table = own_table(tmp_path / "t.csv", "method;data;value;backbone", "lora;digits;40,5;vit_b16")
    found = beside(run(50.0), asked=table)
    assert found.tables == []
    assert "vit_b16" in reasons(found, "ours")["lora rank=8"]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["model,data,acc", "lora,digits,1"], ["no column method and no column value", "model"]),
        (["method,data,value", "lora,digits,high"], ["line 2", "no number"]),
        (["method,data,value", "lora,digits,1", "lora,digits,2"], ["line 3", "source or backbone"]),
        (["method,data,value,provenance", "lora,digits,1,guessed"], ["guessed", "re-run"]),
        (["method,data,value"], ["no row"]),
    ],
)
def test_a_wrong_table_is_told_what_to_type(
    tmp_path: Path, lines: list[str], said: list[str]
) -> None:
    table = own_table(tmp_path / "t.csv", *lines)
    with pytest.raises(ConfigError) as error:
        read([table])
    assert all(text in str(error.value) for text in said)


def test_a_mistyped_word_is_no_file() -> None:
    with pytest.raises(ConfigError, match="did you mean --compare published"):
        read(["publised"])
    with pytest.raises(ConfigError, match="no such file"):
        read(["tables/mine.csv"])


# ---- the command ---------------------------------------------------------------------------------


def test_the_command_prints_and_writes_it(
    run: Run, save: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = save(run(70.0, **DTD, method="hydra", options={"rank": 2}), run(50.0))
    out = tmp_path / "out"
    call = ["--records", str(records), "--out", str(out), "--cards", str(records), "--compare"]
    assert main([*call, "published"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "A, V-PETL Bench: its code keeps the best test accuracy" in text
    assert "backbone demo_vit: published numbers are with vit_b16 (vtab1k, fgvc), swin_b" in text
    for name in ("compare_vtab1k", "not_compared"):
        assert {path.suffix for path in out.glob(f"{name}.*")} == {".csv", ".md", ".tex"}
    with (out / "compare_vtab1k.csv").open() as file:
        assert [line["difference"] for line in csv.DictReader(file)] == ["-2"]
    assert "best test accuracy" in (out / "compare_vtab1k.md").read_text()


def test_a_cell_of_several_configurations_blocks_the_mean(run: Run) -> None:
    """Each stands beside the number, and none of them is the row."""
    rates = [run(70.0 + n, **DTD, train={"lr": rate}) for n, rate in enumerate((1e-3, 1e-2))]
    found = beside(*rates)
    assert len(found.tables[0].rows) == 2 * len(found.pairs[0].rows)
    assert found.pairs[0].rows["mean"].isna().all()
