"""The command line as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("command", ["--help", "methods", "data"])
def test_a_reader_that_leaves_is_no_error_to_report(command: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "vpeft_bench", command], stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    assert done.stderr == b""
    assert done.returncode == 1


def here(*arguments: str, stdout: int, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "vpeft_bench", *arguments]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, cwd=cwd)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux")
@pytest.mark.parametrize("command", ["methods", "--version"])
def test_output_on_a_full_disk_is_one_line(command: str, tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    done = here(command, stdout=full, cwd=tmp_path)
    os.close(full)
    assert (done.returncode, done.stderr) == (1, b"error: No space left on device\n")


def test_a_process_without_output_does_its_work(tmp_path: Path) -> None:
    script = f"exec {sys.executable} -m vpeft_bench --version >&- 2>&-"
    assert subprocess.run(["sh", "-c", script], cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("train.epochs=0", "train.epochs must be at least 1"),
        ("leaderbord", "did you mean python -m vpeft_bench leaderboard"),
        ("method=LoRA", "did you mean method=lora"),
        ("data=coco head=upernet", "is no head for detection"),
    ],
)
def test_what_is_refused_at_once_is_refused_without_torch(typed: str, said: str) -> None:
    code = (
        "import sys; from vpeft_bench.cli.launch import main; status = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *typed.split()], capture_output=True, text=True
    )
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
