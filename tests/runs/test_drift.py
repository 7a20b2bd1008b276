"""How far a run has moved the features of each block."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import Cli
from vpeft_bench.runs.drift import BlockDrift, measure
from vpeft_bench.runs.shown import reopen


def run_of(cli: Cli, folder: Path, data: Path, method: str) -> Path:
    done = cli(
        "data=imagelist",
        f"data.root={data}",
        f"method={method}",
        "train.epochs=1",
        "hardware=cpu",
        "hardware.threads=1",
    )
    assert done.returncode == 0, done.stderr
    (record,) = folder.rglob("record.json")
    return record.parent


@pytest.mark.slow
def test_a_linear_probe_moves_nothing(cli: Cli, tmp_path: Path, tiny_data: Path) -> None:
    for one in measure(reopen(run_of(cli, tmp_path, tiny_data, "linear"))):
        assert one.rank_before == one.rank_after > 1
        assert (one.cka, one.cosine) == pytest.approx((1.0, 1.0), abs=1e-12)


def test_the_drift_of_each_block_is_shown(cli: Cli, tmp_path: Path, tiny_data: Path) -> None:
    """Only the last block is trained: those before it are as they were."""
    run = run_of(cli, tmp_path, tiny_data, "partial")
    found: list[BlockDrift] = measure(reopen(run))
    assert [one.name for one in found] == [f"blocks.{index}" for index in range(6)]
    moved = [one.cka < 1 - 1e-9 for one in found]
    assert moved == [False] * 5 + [True]
    shown = cli("show", str(run), "--drift")
    assert shown.returncode == 0, shown.stderr
    assert "drift from the frozen model" in shown.stdout
    with Image.open(run / "drift.png") as picture:
        assert picture.width > 800
