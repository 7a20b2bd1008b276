from __future__ import annotations

import csv
import dataclasses
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.leaderboard.conftest import A100, CPU
from vpeft_bench.cli.leaderboard import main
from vpeft_bench.config.benchmarks import known
from vpeft_bench.errors import ConfigError
from vpeft_bench.records.cost_card import CardStatus, CostCard
from vpeft_bench.records.cost_card import write as write_card
from vpeft_bench.records.run_record import RunRecord, Status, Weights, WeightsLabel, write

VTAB1K, DEMO = known()["vtab1k"], known()["demo"]

Run = Callable[..., RunRecord]
Card = Callable[..., CostCard]
Save = Callable[..., Path]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Away from the checkout, whose default directories may hold anything."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def measured(card: Card) -> list[CostCard]:
    """Cards of one setting for the runs of ``mixed``, and some that fit none of them."""
    vit = {"backbone": "vit_b16", "method": "adaptformer"}
    busy = ("demo backbone", "device in use by others")
    return [
        card(labels=busy),
        card(method="hf/lora"),
        card(**vit, step_ms=140.125),
        card(method="ssf", status=CardStatus.OOM, error="training step: out of [memory]"),
        card(method="dtl", backbone="swin_b", status=CardStatus.UNSUPPORTED, error="not on swin"),
        card(method="full", device=CPU, batch_size=8),
        card(**vit, precision="bf16", device=A100, hardware={"compile": True}),
    ]


@pytest.fixture
def mixed(run: Run) -> list[RunRecord]:
    """Everything at once: two benchmarks, two protocols, failures, ambiguity, random weights."""
    random_weights = Weights(None, None, WeightsLabel.RANDOM)
    vit = {"backbone": "vit_b16", "benchmark": "vtab1k", "peak_memory_bytes": 3 * 2**30}
    chance = random.Random(0)
    records = [
        run(chance.uniform(40, 99.99), data=f"demo/{name}", method=method, seed=seed)
        for name in DEMO.datasets
        for method in ("lora", "hf/lora")
        for seed in range(3)
    ]
    records += [
        run(
            chance.uniform(0, 20) + 39 * seed,
            data=f"vtab1k/{name}",
            method="adaptformer",
            seed=seed,
            **vit,
        )
        for name in VTAB1K.datasets
        for seed in range(2)
    ]
    return [
        *records,
        run(1.25, train={"lr": 1e-2}, labels=("limited",)),
        run(77.7, protocol="select"),
        run(9.5, weights=random_weights, labels=("random weights",)),
        run(method="ssf", status=Status.OOM, error="out of [memory]", weights=None),
        run(80, data="imagelist", benchmark="custom"),
    ]


def outputs(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_files_are_the_same_bytes_in_whatever_order_records_lie(
    mixed: list[RunRecord],
    measured: list[CostCard],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results, printed = [], []
    for shuffle in range(3):
        order = list(mixed)
        random.Random(shuffle).shuffle(order)
        roots = [tmp_path / f"{shuffle}{side}" for side in "ab"]
        for number, record in enumerate(order):
            write(record, roots[number % 2] / f"{number * 7919 % 100:02}" / "record.json")
        write(order[0], roots[1] / "copy" / "record.json")
        cards = list(measured)
        random.Random(shuffle).shuffle(cards)
        for number, one in enumerate(cards):
            write_card(one, roots[number % 2] / f"{number * 31 % 100:02}" / "card.json")
        if shuffle % 2:
            roots.reverse()
        out = tmp_path / f"{shuffle}out"
        names = [*map(str, roots)]
        assert main(["--records", *names, "--cards", *names, "--out", str(out)]) == 0
        results.append(outputs(out))
        printed.append(capsys.readouterr().out.replace(str(out), "OUT"))
    assert all(result == results[0] for result in results)
    assert all(text == printed[0] for text in printed)
    assert "1 left out: the same as another, in every value" in printed[0]
    tables = [
        "costs",
        "datasets_final",
        "datasets_select",
        "demo_final_summary",
        "demo_select_summary",
        "vtab1k_final_summary",
    ]
    files = [f"{table}.{suffix}" for table in tables for suffix in ("csv", "md", "tex")]
    more = ["index.html", "leaderboard.json", "leaderboard.schema.json", "runs.parquet"]
    assert sorted(results[0]) == sorted([*files, *more, "seeds.csv"])


@pytest.mark.parametrize(
    "columns", [60, *(pytest.param(width, marks=pytest.mark.slow) for width in (100, 120))]
)
@pytest.mark.parametrize("cards", [False, True])
def test_the_terminal_shows_every_digit(
    mixed: list[RunRecord],
    measured: list[CostCard],
    save: Save,
    save_cards: Save,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    columns: int,
    cards: bool,
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    directories = ["--records", str(save(*mixed)), "--out", str(tmp_path / "out")]
    if cards:
        directories += ["--cards", str(save_cards(*measured))]
    assert main(directories) == 0
    text = capsys.readouterr().out
    tables = text.partition("records: ")[0]
    assert "…" not in tables
    assert tables.count("adaptformer") == 19 + 1 + 3 + 2 * cards
    assert max(map(len, tables.splitlines())) <= 120
    words = text.split()
    summaries = [path.read_text() for path in (tmp_path / "out").glob("*_summary.md")]
    for seeds in ("(2)", "(3)"):
        assert tables.count(seeds) == sum(summary.count(seeds) for summary in summaries) > 0
    for summary in summaries:
        for value in summary.replace("|", " ").split():
            number = value.strip("()±")
            if re.fullmatch(r"\d+\.\d\d", number):
                assert number in words or f"±{number}" in words
    assert "ambiguous" in words
    assert "demo 01234567" in text
    assert "\\[" not in text


def test_filters(
    mixed: list[RunRecord], save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records, out = str(save(*mixed)), tmp_path / "out"
    wanted = ["--benchmark", "demo", "--protocol", "select"]
    assert main(["--records", records, "--out", str(out), *wanted]) == 0
    assert {name.partition(".")[0] for name in outputs(out)} == {
        "datasets_select",
        "demo_select_summary",
        "index",
        "leaderboard",
        "runs",
        "seeds",
    }
    assert f"{len(mixed) - 1} left out: not asked for" in capsys.readouterr().out
    assert main(["--records", records, "--out", str(out), "--benchmark", "fgvc"]) == 1
    message = capsys.readouterr().err
    assert "there are: custom (final), demo (final), demo (select), vtab1k (final)" in message


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        (["--method", "hf/lora"], 12),
        (["--method", "hf/lora", "adaptformer"], 12 + 38),
        (["--data", "demo/digits", "--method", "hf/lora"], 3),
        (["--backbone", "vit_b16"], 38),
    ],
)
def test_runs_are_filtered_by_name(
    mixed: list[RunRecord],
    save: Save,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    shown: int,
) -> None:
    assert main(["--records", str(save(*mixed)), "--out", str(tmp_path / "out"), *flags]) == 0
    assert f"{len(mixed)} read, {shown} shown" in capsys.readouterr().out
    lines = csv.DictReader((tmp_path / "out" / "seeds.csv").open())
    assert sum(1 for _ in lines) == shown


def test_rows_are_chosen_by_their_name(run: Run, save: Save, tmp_path: Path) -> None:
    named = [dataclasses.replace(run(60, method=m), variant=f"{m} rank=8") for m in ("lora", "ssf")]
    where = ["--records", str(save(*named)), "--out", str(tmp_path / "out")]
    assert main([*where, "--variant", "ssf rank=8"]) == 0
    (line,) = csv.DictReader((tmp_path / "out" / "datasets_final.csv").open())
    assert (line["name"], line["method"]) == ("ssf rank=8", "ssf")


def test_a_name_that_no_run_has_is_an_error_with_the_nearest_one(
    mixed: list[RunRecord], save: Save, tmp_path: Path
) -> None:
    where = ["--records", str(save(*mixed)), "--out", str(tmp_path / "out")]
    with pytest.raises(ConfigError) as caught:
        main([*where, "--method", "adaptfromer", "--data", "digits"])
    assert "--method=adaptfromer: no such choice" in str(caught.value)
    assert "did you mean --method=adaptformer" in str(caught.value)
    assert "did you mean --data=demo/digits" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_what_a_call_wrote_stands_for_its_records(
    mixed: list[RunRecord], save: Save, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["--records", str(save(*mixed)), "--out", str(first)]) == 0
    assert main(["--records", str(first / "runs.parquet"), "--out", str(second)]) == 0
    assert outputs(first) == outputs(second)


def test_a_long_table_is_cut_in_the_terminal_alone(
    run: Run, save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [run(50 + number / 10, method=f"m{number:03}") for number in range(70)]
    assert main(["--records", str(save(*runs)), "--out", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "and 10 rows more: datasets_final.csv" in text
    assert "m069" in text
    assert "m009" not in text.partition("\ndemo; ")[0]
    assert len((tmp_path / "out" / "datasets_final.md").read_text().splitlines()) > 70


def test_statistics_of_the_runs_lie_beside_the_tables(run: Run, save: Save, tmp_path: Path) -> None:
    """An ambiguous cell has no value there either; unlike epochs are not ranked together."""
    made = [
        run(value + seed, method=method, data=f"demo/{data}", benchmark="demo", seed=seed)
        for method, value in (("lora", 80.0), ("ssf", 70.0), ("adapter", 60.0))
        for data in ("digits", "sprites_count")
        for seed in (0, 1)
    ]
    longer = {"lr": 1e-3, "epochs": 500}
    made += [
        run(99.0, method="mona", data=f"demo/{data}", benchmark="demo", train=longer)
        for data in ("digits", "sprites_count")
    ]
    made.append(run(50.0, method="adapter", data="demo/digits", benchmark="demo", train=longer))
    out = tmp_path / "out"
    assert main(["--records", str(save(*made)), "--out", str(out), "--statistics"]) == 0
    text = (out / "statistics" / "statements.md").read_text()
    first, *others = text.split("\n## ")[1:]
    assert "lora" in first
    assert "mona" not in first
    assert any("mona" in other and "epochs" in other for other in others)
    assert (out / "statistics" / "matrix.svg").exists()


def test_who_is_marked_in_figures_must_be_there(run: Run, save: Save, tmp_path: Path) -> None:
    wanted = ["--records", str(save(run(50.0))), "--out", str(tmp_path / "out"), "--highlight"]
    with pytest.raises(ConfigError) as caught:
        main([*wanted, "lroa"])
    (problem,) = caught.value.problems
    assert "lroa" in str(problem)
    assert "lora" in problem.fix
    assert main([*wanted, "lora"]) == 0


def test_no_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "no run records to show below results/runs",
        "not shown:",
        "  results/runs: no such directory",
        "make one with: python -m vpeft_bench",
    ]
    assert not list(tmp_path.iterdir())


def test_what_is_not_shown_is_said(
    run: Run, save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = save(run(50.0), run(60.0, finished="2026-02-01T00:00:00Z"), run(protocol="peek"))
    save(run(data="demo/birds"))
    (records / "torn").mkdir()
    (records / "torn" / "record.json").write_text('{"schema_version": 1')
    out = tmp_path / "out"
    assert main(["--records", str(records), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "records: 4 read, 2 shown" in text
    assert "not in the summary: demo/birds: demo has no such data set" in text
    assert f"{records}/torn/record.json: not a whole JSON file" in text
    assert f"{records}/000/record.json: left out: {records}/001/record.json is a newer" in text
    assert f"{records}/002/record.json: left out: no table is defined for protocol 'peek'" in text
    assert f"  {out}/datasets_final.csv\n" in text
    assert "60.00 (1)" in (out / "demo_final_summary.md").read_text()


def test_strict_fails_where_anything_was_set_aside(
    run: Run, save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records, out = save(run(50.0)), tmp_path / "out"
    asked = ["--records", str(records), "--out", str(out), "--strict"]
    assert main(asked) == 0
    (records / "torn").mkdir()
    (records / "torn" / "record.json").write_text("{")
    assert main(asked) == 1
    assert main(asked[:-1]) == 0
    assert "not shown:" in capsys.readouterr().out


def test_names_from_records_have_no_effect_where_they_are_shown(
    run: Run, save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = save(
        run(
            97.0,
            data="=1+1",
            benchmark="\x1b]0;title\x07",
            method="<script>alert(1)</script>",
            options={"name\n# of": "\x1b[31m"},
            backbone="\x1b[31mred\x1b[0m",
            labels=("first line\n# second line", "@SUM(1)"),
        ),
        run(status=Status.FAILED, error="\x1b[2J | gone\nreally", method="-1+cmd"),
    )
    out = tmp_path / "out"
    assert main(["--records", str(records), "--out", str(out)]) == 0
    printed = "".join(capsys.readouterr())
    texts = {path.suffix: path.read_text() for path in out.iterdir() if path.suffix != ".parquet"}
    for text in (printed, *texts.values()):
        assert all(line.isprintable() for line in text.splitlines())
    for path in out.glob("*.csv"):
        for row in csv.reader(path.open()):
            assert not [field for field in row if field[:1] in ("=", "+", "-", "@")]
    for path in out.glob("*.md"):
        heading, *lines = path.read_text().splitlines()
        assert heading.startswith("# ")
        assert "<" not in path.read_text()
        assert not [line for line in lines if line.startswith("#")]


def test_published_numbers_never_enter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(Path(__file__).parents[2] / "results" / "published", tmp_path / "published")
    assert main(["--records", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "no run records to show" in capsys.readouterr().err


def test_what_a_card_says_stands_in_every_table(
    mixed: list[RunRecord],
    measured: list[CostCard],
    save: Save,
    save_cards: Save,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    records, cards = str(save(*mixed)), str(save_cards(*measured))
    assert main(["--records", records, "--cards", cards, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    setting = "card columns: NVIDIA H100 80GB HBM3, batch 64; peak: allocated memory"
    assert text.count(setting) == 1
    assert "cost cards: 7 read, 7 shown" in text
    assert "full: " not in text
    assert "ssf: training step: out of [memory]\n" in text
    assert "dtl: not on swin\n" in text
    assert text.count("140 ") > 19
    for name in ("datasets_final", "demo_final_summary", "vtab1k_final_summary"):
        assert setting in (out / f"{name}.md").read_text()
        assert "card hardware: compile=false" in (out / f"{name}.md").read_text()
        assert "140.125" in (out / f"{name}.csv").read_text() or name.startswith("demo")
    costs = (out / "costs.csv").read_text().splitlines()
    assert len(costs) == 1 + len(measured)


def test_constants_stand_beside_every_table(
    run: Run,
    card: Card,
    save: Save,
    save_cards: Save,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    flags = "--ppt-parameters 2e6 --pscp-parameters 3e5 --pscp-gflops 1.5 --pscp-gib 0.25"
    flags += " --pscp-beta 1 0.5 0"
    directories = ["--records", str(save(run())), "--cards", str(save_cards(card()))]
    assert main([*directories, "--out", str(out), *flags.split()]) == 0
    ppt = "PPT = M exp(-log10(P / 2e+06 + 1))"
    pscp = "PSCP-style = M (1 + P / 300000)^-1 (1 + F / 1.5)^-0.5 (1 + R / 0.25)^-0"
    printed = capsys.readouterr().out
    for text in (printed, *(path.read_text() for path in out.glob("d*.md"))):
        assert ppt in text
        assert pscp in text
    constants = (
        "ppt_parameters=2e+06 pscp_parameters=300000 pscp_gflops=1.5 pscp_gib=0.25 "
        "pscp_beta_parameters=1 pscp_beta_flops=0.5 pscp_beta_memory=0"
    )
    for path in out.glob("d*.csv"):
        assert path.read_text().count(constants) == 1
    assert len(list(out.glob("d*.csv"))) == 2


def test_impossible_constants_end_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--pscp-gib", "0"])
    assert ended.value.code == 2
    assert "pscp_gib is 0; it must be more than 0" in capsys.readouterr().err


def test_several_settings_are_told_and_one_is_chosen(
    run: Run,
    card: Card,
    save: Save,
    save_cards: Save,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    cards = [
        card(step_ms=100.5),
        card(batch_size=8, step_ms=20.5),
        card(device=A100, step_ms=150.5),
    ]
    arguments = ["--records", str(save(run())), "--cards", str(save_cards(*cards))]
    arguments += ["--out", str(out)]

    def step() -> str:
        (line,) = csv.DictReader((out / "datasets_final.csv").open())
        return line["card_train_step_ms_median"]

    assert main(arguments) == 0
    assert step() == ""
    assert (
        "no card columns: the cost cards that fit differ in more than a row shows; choose:\n"
        "  --device 'NVIDIA A100-SXM4-80GB' --batch 64: 1 card\n"
        "  --device 'NVIDIA H100 80GB HBM3' --batch 8: 1 card\n"
        "  --device 'NVIDIA H100 80GB HBM3' --batch 64: 1 card\n"
    ) in capsys.readouterr().out
    assert "no card columns" in (out / "datasets_final.md").read_text()
    for flags, wanted in (
        (["--device", "a100"], "150.5"),
        (["--batch", "8"], "20.5"),
        (["--device", "H100", "--batch", "64"], "100.5"),
        (["--device", "H100"], ""),
    ):
        assert main([*arguments, *flags]) == 0
        assert step() == wanted
        assert len((out / "costs.csv").read_text().splitlines()) == 4
    capsys.readouterr()
    assert main([*arguments, "--device", "B200"]) == 1
    assert "there are:\n  NVIDIA A100-SXM4-80GB, batch 64\n" in capsys.readouterr().err


def test_cards_that_fit_no_run_are_told(
    run: Run,
    card: Card,
    save: Save,
    save_cards: Save,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    directories = ["--records", str(save(run())), "--cards", str(save_cards(card(method="ssf")))]
    assert main([*directories, "--out", str(tmp_path / "out")]) == 0
    assert "no card columns: no cost card has a run's method" in capsys.readouterr().out


def test_cards_alone_make_the_table_of_costs(
    card: Card, save_cards: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cards = save_cards(card(), card(method="ssf"))
    out = tmp_path / "out"
    assert main(["--cards", str(cards), "--out", str(out)]) == 0
    assert sorted(outputs(out)) == ["costs.csv", "costs.md", "costs.tex", "index.html"]
    text = capsys.readouterr().out
    assert "records: 0 read, 0 shown" in text
    assert "PPT" not in text
    assert "no card columns" not in text


def test_cards_are_looked_for_in_one_place_unless_told(
    run: Run, card: Card, save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--records", str(save(run())), "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert "cost" not in capsys.readouterr().out.replace(str(tmp_path), "")
    assert main([*arguments, "--cards", "missing"]) == 0
    assert "  missing: no such directory\n" in capsys.readouterr().out
    write_card(card(), Path("results/cost/demo_vit/lora/0123456789/card.json"))
    Path("results/cost/torn").mkdir()
    Path("results/cost/torn/card.json").write_text("{")
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "cost cards: 1 read, 1 shown" in text
    assert "torn/card.json: not a whole JSON file" in text
    assert "card columns: NVIDIA H100" in text


def test_no_torch_is_imported() -> None:
    code = (
        "import sys, vpeft_bench.cli.leaderboard; "
        "assert not {'torch', 'timm', 'hydra', 'omegaconf'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
