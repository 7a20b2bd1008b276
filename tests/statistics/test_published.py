"""What was computed elsewhere of the tuned table of Mai et al. (arXiv 2409.16434)."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import REPOSITORY, Cli, shared_path
from vpeft_bench.cli.statistics import main
from vpeft_bench.statistics import Report, analyse
from vpeft_bench.statistics.reading import kept, parse_condition, read_csv, with_roles

EXACT = {"abs": 0.0005}


def check(report: Report, convpass: str, lora: str, smallest: tuple[str, str]) -> None:
    assert len(report.table.methods) == 13
    assert len(report.table.datasets) == 19
    family = report.family
    assert family.friedman is not None
    assert family.friedman.p == pytest.approx(1.06e-5, rel=0.005)
    assert family.nemenyi is not None
    assert family.nemenyi.critical_difference == pytest.approx(4.19, abs=0.005)
    assert len(family.nemenyi.pairs) == 7
    assert family.holm is not None
    assert (family.holm.count, family.holm.significant) == (78, 0)
    uncorrected = sorted((pair.wilcoxon, pair.names) for pair in report.pairs if pair.wilcoxon)
    assert sum(p < 0.05 for p, _ in uncorrected) == 29
    assert uncorrected[0][0] == pytest.approx(6.447e-4, abs=5e-8)
    assert uncorrected[0][1] == frozenset(smallest)
    assert 0.05 / family.holm.count == pytest.approx(6.410e-4, abs=5e-8)
    (pair,) = (pair for pair in report.pairs if pair.names == {convpass, lora})
    assert (pair.first, pair.datasets) == (convpass, 19)
    assert pair.difference == pytest.approx(1.31, abs=0.05)
    assert pair.over_datasets is not None
    assert pair.over_datasets.low == pytest.approx(0.30, abs=0.05)
    assert pair.over_datasets.high == pytest.approx(2.42, abs=0.05)


def test_the_checked_in_table(published: pd.DataFrame) -> None:
    (report,) = analyse(published)
    check(report, "Convpass", "LoRA", ("Adapter (Houlsby)", "VPT-Deep"))
    means = {row.method: row.mean.value for row in report.summaries}
    assert means["Convpass"] == pytest.approx(74.2268, **EXACT)
    bitfit = next(p for p in report.pairs if p.names == {"Convpass", "BitFit"}).over_datasets
    assert bitfit is not None
    assert (bitfit.low, bitfit.high) == pytest.approx((0.49, 3.72), abs=0.05)
    # "Three groups, not thirteen places" where the interval alone decides; two after Holm.
    assert [tier.best for tier in report.family.tiers] == ["Convpass", "VPT-Deep"]


def test_the_page_shows_what_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every line of the page's output, up to its dots, stands in the output or the sentences."""
    monkeypatch.chdir(REPOSITORY)
    page = (REPOSITORY / "docs" / "statistics.md").read_text()
    part = page[page.index("## A paper checked") : page.index("## What the numbers are")]
    command, *outputs = re.findall(r"^```\w+\n(.*?)^```$", part, re.MULTILINE | re.DOTALL)
    arguments = shlex.split(command.replace("\\\n", " "))[4:]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    sentences = (tmp_path / "statements.md").read_text().replace("\\", "")
    printed = " ".join(f"{capsys.readouterr().out} {sentences}".split())
    assert len(outputs) == 2
    pieces = [" ".join(line.split()) for output in outputs for line in output.split("\n")]
    assert len([piece for piece in pieces if piece]) > 8
    for piece in pieces:
        assert piece.removesuffix(" ...").removesuffix(",") in printed


def test_the_file_as_its_authors_publish_it() -> None:
    path = shared_path("reference/osu/osu_vtab_tuned.csv")
    conditions = ["dataset!=cifar_aug_norm", "method!=full,linear,vpt_shallow"]
    frame = kept(read_csv(path), [parse_condition(text) for text in conditions])
    roles, unused = with_roles(frame, {"data": "dataset", "value": "last_epoch_test_acc"})
    assert unused == ["best_epoch_test_acc", "inserted_params", "best_tune_json"]
    (report,) = analyse(roles)
    check(report, "convpass", "lora", ("rand_h_adapter", "vpt_deep"))


def test_the_file_from_the_command_line(cli: Cli) -> None:
    path = shared_path("reference/osu/osu_vtab_tuned.csv")
    asked = ["statistics", str(path), "--value-column", "last_epoch_test_acc"]
    refused = cli(*asked)
    assert refused.returncode == 2
    assert "--data-column dataset" in refused.stderr
    asked += ["--data-column", "dataset"]
    twice = cli(*asked)
    assert twice.returncode == 2
    assert "method adaptformer, data cifar_aug_norm: has 2 rows (lines 4, 5)" in twice.stderr
    asked += ["--where", "dataset!=cifar_aug_norm", "--where", "method!=full,linear,vpt_shallow"]
    done = cli(*asked)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    for part in (
        "13 methods on 19 data sets, 247 values, 1 per cell",
        "p = 1.058e-05",
        "0 of 78 pairs, each on 19 common data sets, differ at 5 %",
        "0.0006447",
        "critical difference 4.19",
    ):
        assert part in said
