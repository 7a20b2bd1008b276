"""``python -m vpeft_bench statistics``: what is printed, what is written, what is said."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.text import Text

from tests.statistics.conftest import drawn, long
from vpeft_bench.cli.statistics import main
from vpeft_bench.errors import ConfigError
from vpeft_bench.statistics import analyse
from vpeft_bench.statistics.figures import critical_difference, matrix


def saved(frame: pd.DataFrame, folder: Path) -> str:
    path = folder / "table.csv"
    frame.to_csv(path, index=False)
    return str(path)


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out


def test_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    groups = {f"d{d:02d}": "ab"[d % 2] for d in range(12)}
    frame = drawn(methods=4, seeds=3)
    table = saved(frame.assign(group=frame["data"].map(groups)), tmp_path)
    out = tmp_path / "out"
    printed = shown(capsys, table, "--out", str(out), "--figures", "cd")
    names = {path.name for path in out.iterdir()}
    figures = {
        f"{name}.{end}" for name in ("matrix", "critical_difference") for end in ("svg", "png")
    }
    assert names == {"summary.csv", "pairs.csv", "statements.md", "statistics.json", *figures}
    assert all(str(out / name) in printed for name in names)
    rows = list(csv.DictReader((out / "summary.csv").open()))
    assert [row["method"] for row in rows] == ["m3", "m2", "m1", "m0"]
    assert all(float(row["mean_groups_over_seeds_low"]) < float(row["mean_groups"]) for row in rows)
    pairs = list(csv.DictReader((out / "pairs.csv").open()))
    assert len(pairs) == 6
    assert {row["holm_pairs"] for row in pairs} == {"6"}
    whole = json.loads((out / "statistics.json").read_text())
    assert whole["source"]["table"] == "table.csv"
    (part,) = whole["tables"]
    assert part["means"] == {"mean": "mean over 12 datasets", "group_mean": "mean over 2 groups"}
    by_file = {row["method"]: float(row["mean_datasets"]) for row in rows}
    assert {row["method"]: row["mean"]["value"] for row in part["summaries"]} == by_file
    text = (out / "statements.md").read_text()
    for section in ("What was read", "Each method", "All methods together", "Each pair"):
        assert f"## {section}" in text
    assert text.count("12 common data sets, 72 runs, 3 per cell") == 6
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    shown(capsys, table, "--out", str(out), "--figures", "cd")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_names_are_text_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing that others wrote is markup, a formula or an escape sequence."""
    names = ["[red]x[/red]", "$a_b$", "=cmd()", "<script>", "a\x1b[31mb", "日本"]
    values = {name: [60.0 + n + d for d in range(6)] for n, name in enumerate(names)}
    out = tmp_path / "out"
    printed = shown(capsys, saved(long(values), tmp_path), "--out", str(out), "--figures", "cd")
    assert "[red]x[/red]" in printed
    assert "\x1b[31m" not in printed
    text = (out / "statements.md").read_text()
    assert "<script>" not in text
    assert "\x1b" not in text
    assert "'=cmd()" in (out / "summary.csv").read_text()
    assert (out / "matrix.svg").stat().st_size > 10_000


def test_no_name_is_a_formula_in_a_picture() -> None:
    """Matplotlib would set ``$a_b$`` as mathematics."""
    (report,) = analyse(long({"$a_b$": [60.0] * 6, "$c^d$": [50.0] * 6, "e": [40.0] * 6}))
    for figure in (matrix(report), critical_difference(report)):
        figure.draw_without_rendering()
        texts = [text for text in figure.findobj(Text) if text.get_text().count("$") == 2]
        assert len(texts) >= 2
        assert not any(text.get_parse_math() for text in texts)


def test_numbers_are_whole_in_a_narrow_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    printed = shown(capsys, saved(drawn(methods=5, seeds=1), tmp_path))
    assert "…" not in printed


@pytest.mark.parametrize(
    ("frame", "parts"),
    [
        (long({"a": [90.0] * 6}), ["one method: comparing needs at least 2"]),
        (long({"a": [90.0], "b": [80.0]}), ["tests over data sets need at least 2 data sets"]),
        (
            long({"a": [90.0, 80.0, 75.0], "b": [80.0, 70.0, 60.0], "c": [1.5, 2.0, 3.0]}),
            ["need at least 5", "cannot fall below 0.25", "no interval over seeds"],
        ),
        (
            drawn(methods=3, seeds=1)[1:],
            ["m0: 11 of 12 data sets (without d00), so no mean and no rank", "n=11"],
        ),
        (
            pd.concat([drawn(methods=4, seeds=1), long({"m0": [50.0]}).assign(seed=0)]),
            [
                "m1, m2, m3: 12 of 13 data sets (without d0)",
                "most methods lack d0: leave it out to rank the others",
            ],
        ),
    ],
)
def test_what_is_too_little_is_said(
    frame: pd.DataFrame, parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = " ".join(shown(capsys, saved(frame, tmp_path)).split())
    assert [part for part in parts if part not in printed] == [], printed
    assert "nan" not in printed


def test_methods_without_any_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = long({"a": [float("nan")] * 6, "b": [float("nan")] * 6, "c": [60.0] * 6})
    out = tmp_path / "out"
    printed = shown(capsys, saved(frame, tmp_path), "--out", str(out), "--figures", "cd")
    assert "a, b: 0 of 6 data sets" in printed
    assert "nan" not in printed
    assert "a and b have no data set in common" in (out / "statements.md").read_text()


def test_mixing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = drawn(methods=2, seeds=1)
    table = saved(pd.concat([one.assign(budget=1), one.assign(budget=8)]), tmp_path)
    apart = shown(capsys, table)
    assert "budget 1: 2 methods" in apart
    assert "mixed" not in apart
    together = " ".join(shown(capsys, table, "--mix").split())
    assert "rows of unlike budget (1, 8) are ranked together" in together
    variants = saved(one.assign(variant="tuned " + one["method"]), tmp_path)
    assert "--mix" in shown(capsys, variants)


def test_what_is_typed_wrongly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = saved(drawn(methods=2), tmp_path)
    with pytest.raises(ConfigError, match="add --out DIR"):
        main([table, "--figures", "cd"])
    for flags in (
        ["--figures", "cdd"],
        ["--where", "method"],
        ["--seed", "-1"],
        ["--resamples", "10"],
        ["--resamples", "1e9"],
        ["--out", table],
        [],
    ):
        with pytest.raises(SystemExit) as stopped:
            main([table, *flags] if flags else [])
        assert stopped.value.code == 2
        assert "Traceback" not in capsys.readouterr().err


def test_fast_and_without_torch(tmp_path: Path) -> None:
    """16 methods on 19 data sets with 3 seeds, figures and imports included: 4 s of a quiet CPU."""
    table = saved(drawn(methods=16, datasets=19, seeds=3, ties=False), tmp_path)
    code = f"""
import sys, time
from vpeft_bench.cli.statistics import main
assert main([{table!r}, "--out", {str(tmp_path / "out")!r}]) == 0
heavy = {{"torch", "timm", "hydra", "pytorch_lightning", "sklearn"}} & set(sys.modules)
assert not heavy, heavy
assert time.process_time() < 20
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
