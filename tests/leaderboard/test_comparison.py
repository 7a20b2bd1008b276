"""Published numbers beside ours."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.leaderboard.as_rows import cells, in_file
from tests.leaderboard.conftest import DEMO_WEIGHTS, make_run
from vpeft_bench.cli.leaderboard import main
from vpeft_bench.errors import ConfigError
from vpeft_bench.leaderboard.comparison import compared, read_published
from vpeft_bench.records.run_record import RunRecord, WeightsLabel

REPOSITORY = Path(__file__).parents[2]
PUBLISHED = REPOSITORY / "results/published"
WEIGHTS = replace(DEMO_WEIGHTS, label=WeightsLabel.PRETRAINED)


def ours(value: float, method: str = "lora", data: str = "cifar", seed: int = 0) -> RunRecord:
    return make_run(
        value,
        method=method,
        data=f"vtab1k/{data}",
        benchmark="vtab1k",
        backbone="vit_b16",
        weights=WEIGHTS,
        seed=seed,
        options={"rank": 4} if method == "lora" else None,
    )


def test_each_number_stands_beside_ours_with_where_it_is_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(REPOSITORY)
    made = cells(ours(68.0), ours(70.0, seed=1))
    table, notes = compared(made, read_published("published"))
    assert table is not None
    assert notes == []
    found = {line["source"][0]: line for line in in_file(table)}
    assert set(found) == {"A", "B"}
    assert (found["A"]["mean"], found["A"]["published"], found["A"]["n"]) == ("69", "67.1", "2")
    assert float(found["A"]["difference"]) == pytest.approx(1.9)
    assert found["A"]["provenance"] == "unknown"
    assert found["A"]["differs"] == "rank=4 (published 8)"
    assert found["B"]["provenance"] == "re-implemented"


def test_a_demo_backbone_is_never_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    table, (note,) = compared(cells(make_run(60.0)), read_published("published"))
    assert table is None
    assert note == "not compared: demo_vit has no published weights; there are for vit_b16"


def test_what_was_not_published_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    made = cells(ours(68.0), ours(60.0, method="attn_scale"))
    table, notes = compared(made, read_published("published"))
    assert table is not None
    assert notes == ["not compared, methods of which nothing was published: attn_scale"]


def test_a_file_of_ones_own_is_compared(
    save: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "paper.csv"
    file.write_text("method,data,value\nlora,vtab1k/cifar,75.5\nlora,vtab1k/dtd,60\n")
    out = tmp_path / "out"
    asked = ["--records", str(save(ours(68.0))), "--out", str(out), "--compare", str(file)]
    assert main(asked) == 0
    assert "-7.50" in capsys.readouterr().out
    (line,) = csv.DictReader((out / "comparison.csv").open())
    assert (line["published"], line["provenance"]) == ("75.5", "unknown")
    assert "75.50" in (out / "comparison.md").read_text()
    assert "75.50" in (out / "comparison.tex").read_text()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("methods,data,value\nlora,x,1\n", "is 'methods' meant? Call it method"),
        ("method,data,value\nlora,x,high\n", "line 2: value 'high' is no number"),
        ("method,data,value,year\nlora,x,1,2024\n", "unknown column 'year'"),
    ],
)
def test_a_file_that_is_wrong_is_told_at_once(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "paper.csv"
    file.write_text(content)
    with pytest.raises(ConfigError, match=said.replace("?", r"\?")):
        main(["--records", str(tmp_path), "--compare", str(file)])
    with pytest.raises(ConfigError, match="there is no file"):
        read_published(str(tmp_path / "none.csv"))


def test_comparable_numbers_are_those_of_the_tables() -> None:
    """Every number of source A stands in its own table too."""
    wide = {}
    for name in ("vtab1k_vit_b16.csv", "fgvc_vit_b16.csv"):
        for line in csv.DictReader((PUBLISHED / name).open()):
            for column, value in line.items():
                wide[line["method"], column] = value
    names = {"cifar": "cifar100", "cub": "cub_200_2011"}
    count = 0
    for line in csv.DictReader((PUBLISHED / "comparable.csv").open()):
        if line["source"].startswith("A"):
            data = line["data"].partition("/")[2]
            assert wide[line["row"], names.get(data, data)] == line["value"]
            count += 1
    assert count == 20 * 19 + 15 * 5 - _absent()


def _absent() -> int:
    """Cells that the source prints as a dash."""
    absent = 0
    for name in ("vtab1k_vit_b16.csv", "fgvc_vit_b16.csv"):
        for line in csv.DictReader((PUBLISHED / name).open()):
            cells_ = [v for k, v in line.items() if k not in ("method", "mean", "params_m", "ppt")]
            absent += cells_.count("")
    return absent
