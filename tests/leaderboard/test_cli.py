from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from vpeft_bench.leaderboard.benchmarks import DEMO, VTAB1K
from vpeft_bench.leaderboard.cli import main
from vpeft_bench.record import RunRecord, Status, Weights, WeightsLabel, write

Run = Callable[..., RunRecord]
Save = Callable[..., Path]


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
        run(1.25, config_hash="other", labels=("limited",)),
        run(77.7, protocol="select"),
        run(9.5, weights=random_weights, labels=("random weights",)),
        run(method="ssf", status=Status.OOM, error="out of [memory]", weights=None),
        run(80, data="imagelist", benchmark="custom"),
    ]


def outputs(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_files_are_the_same_bytes_in_whatever_order_records_lie(
    mixed: list[RunRecord], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, printed = [], []
    for shuffle in range(3):
        order = list(mixed)
        random.Random(shuffle).shuffle(order)
        roots = [tmp_path / f"{shuffle}{side}" for side in "ab"]
        for number, record in enumerate(order):
            write(record, roots[number % 2] / f"{number * 7919 % 100:02}" / "record.json")
        write(order[0], roots[1] / "copy" / "record.json")
        if shuffle % 2:
            roots.reverse()
        out = tmp_path / f"{shuffle}out"
        assert main(["--records", *map(str, roots), "--out", str(out)]) == 0
        results.append(outputs(out))
        printed.append(capsys.readouterr().out.replace(str(out), "OUT"))
    assert all(result == results[0] for result in results)
    assert all(text == printed[0] for text in printed)
    assert "1 left out: the same as another, in every value" in printed[0]
    assert sorted(results[0]) == [
        "datasets_final.csv",
        "datasets_final.md",
        "datasets_select.csv",
        "datasets_select.md",
        "demo_final_summary.csv",
        "demo_final_summary.md",
        "demo_select_summary.csv",
        "demo_select_summary.md",
        "vtab1k_final_summary.csv",
        "vtab1k_final_summary.md",
    ]


@pytest.mark.parametrize("columns", [60, 100, 120])
def test_the_terminal_shows_every_digit(
    mixed: list[RunRecord],
    save: Save,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    columns: int,
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["--records", str(save(*mixed)), "--out", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    tables = text.partition("records: ")[0]
    assert "…" not in tables
    assert tables.count("adaptformer") == 19 + 1 + 3
    assert max(map(len, tables.splitlines())) <= 120
    words = text.split()
    summaries = [path.read_text() for path in (tmp_path / "out").glob("*_summary.csv")]
    for seeds in ("(2)", "(3)"):
        assert tables.count(seeds) == sum(summary.count(seeds) for summary in summaries) > 0
    for summary in summaries:
        for value in summary.replace(",", " ").split():
            number = value.strip("()±")
            if number.count(".") == 1 and len(number.partition(".")[2]) == 2:
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
    }
    assert f"{len(mixed) - 1} left out: not asked for" in capsys.readouterr().out
    assert main(["--records", records, "--out", str(out), "--benchmark", "fgvc"]) == 1
    message = capsys.readouterr().err
    assert "there are: custom (final), demo (final), demo (select), vtab1k (final)" in message


def test_no_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
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
    records = save(run(50.0), run(60.0, finished="2027-01-01T00:00:00Z"), run(protocol="peek"))
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
    assert "60.00 (1)" in (out / "demo_final_summary.csv").read_text()


def test_published_numbers_never_enter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(Path(__file__).parents[2] / "results" / "published", tmp_path / "published")
    assert main(["--records", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "no run records to show" in capsys.readouterr().err
