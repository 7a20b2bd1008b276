"""The measurement on a GPU, tried out on a CPU with tiny networks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import benchmark_gpu
import pytest

from vpeft_bench.records import cost_card as cards

SCRIPT = Path(benchmark_gpu.__file__)


@pytest.mark.slow
def test_every_part_runs_and_what_is_there_is_kept(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--tiny", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = cards.find([tmp_path / "cards"])
    assert not found.problems
    status = sorted((card.asked["method"]["name"], str(card.status)) for _, card in found.cards)
    assert status == sorted([("linear", "ok"), ("vpt_deep", "ok")] * 3)
    assert list((tmp_path / "speed").rglob("lora_vs_full.json"))
    assert list((tmp_path / "speed").rglob("hundred_epochs.json"))

    again = subprocess.run([*command, "cards_vit"], capture_output=True, text=True, check=True)
    assert again.stdout.count("measuring") == 0
    assert "kept" in again.stdout


def test_a_misspelt_part_is_told() -> None:
    command = [sys.executable, str(SCRIPT), "card_vit"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no part card_vit; parts: cards_vit, speed, cards_swin, cards_detection" in done.stderr
