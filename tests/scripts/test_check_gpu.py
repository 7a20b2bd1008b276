"""The first check on a GPU, tried out on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import check_gpu
import pytest
import torch

SCRIPT = Path(check_gpu.__file__)


def _called(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_misspelt_check_is_told() -> None:
    done = _called("resumes")
    assert done.returncode == 2
    assert "no check resumes; checks: place, tests, precision" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = _called("--out", str(tmp_path))
    assert done.returncode == 1
    assert "this machine has no CUDA device; --device cpu tries the script itself" in done.stdout


def test_all_of_it_takes_less_than_eight_minutes() -> None:
    assert sum(seconds for _, seconds in check_gpu.CHECKS.values()) < 8 * 60


def test_a_check_that_fails_costs_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(bench: check_gpu.Bench) -> check_gpu.Found:
        yield "before", "fine", True
        raise ValueError("of the check")

    def fine(bench: check_gpu.Bench) -> check_gpu.Found:
        yield "after", "fine", True

    monkeypatch.setattr(check_gpu, "CHECKS", {"broken": (broken, 1), "fine": (fine, 1)})
    rows = list(check_gpu.checked(check_gpu.Bench("cpu", tmp_path), ["broken", "fine"]))
    assert [row.passed for row in rows] == [True, False, True]
    assert "ValueError: of the check" in check_gpu.table(rows)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_script_works_on_a_cpu(tmp_path: Path) -> None:
    done = _called("--device", "cpu", "--out", str(tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "cpu.jsonl").read_text().splitlines()]
    assert not [row for row in rows if row["passed"] is False], done.stdout
    assert {row["check"] for row in rows} == set(check_gpu.CHECKS)
    assert done.returncode == 0, done.stdout + done.stderr
