"""Jobs on SLURM: what the queue tells of them, and sweeps that go on by themselves."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.runs.test_sweep import TINY, jobs_of, results_of, slurm
from vpeft_bench.cli.overrides import check_overrides
from vpeft_bench.runs import sweep
from vpeft_bench.runs.packing import Pack
from vpeft_bench.runs.rounds import SLURM, _note_lost

__all__ = ["slurm"]
pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
from vpeft_bench.runs import slurm as jobs


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds, which pass only by sleeping."""
    now = [0.0]
    monkeypatch.setattr(jobs.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(jobs.time, "sleep", lambda seconds: now.append(now.pop() + seconds))
    return now


def test_a_job_that_left_the_queue_is_lost_after_a_while(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at once, nor where the queue does not answer, nor where it is back: it was requeued."""
    answers: dict[float, set[str] | None] = {
        0: {"7_0"},
        20: None,
        50: set(),
        70: {"7_0"},
        90: set(),
    }
    told = lambda: answers[max(since for since in answers if since <= clock[0])]  # noqa: E731
    monkeypatch.setattr(jobs, "_jobs", told)
    queue, lost = jobs.Queue(), []
    for _ in range(15):
        lost.append(queue.has_lost("7_0"))
        clock[0] += 10
    assert lost == [False] * 12 + [True] * 3


def test_a_lost_job_does_not_hold_up_the_others(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(jobs, "_jobs", lambda: {"7_1"} if clock[0] < 60 else set())
    (tmp_path / "2.pkl").touch()

    def job(number: int) -> Any:
        paths = SimpleNamespace(result_pickle=tmp_path / f"{number}.pkl")
        return SimpleNamespace(job_id=f"7_{number}", paths=paths, result=lambda: number)

    queue = jobs.Queue()
    assert [jobs._waited(job(number), queue) for number in range(3)] == [None, None, 2]
    assert 90 <= clock[0] < 120


def test_runs_of_a_lost_job_are_told_as_died(tmp_path: Path, tiny_data: Path) -> None:
    asked = jobs_of(tmp_path, tiny_data, "seed=0,1")
    place = tmp_path / "sweep"

    def launch(some: list[list[str]], first: int) -> None:
        _note_lost(place, Pack(first, some))

    asked.run(place, launch)
    assert {note.result for note in sweep.notes_of(place)} == {sweep.DIED}
    assert {note.reason for note in sweep.notes_of(place)} == {"its job was cancelled, or killed"}


def test_the_launcher_is_known_by_the_name_that_hydra_has() -> None:
    assert jobs.NAME == SLURM


def test_only_jobs_of_a_cluster_go_on_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: name)
    alone = check_overrides(["seed=0,1", "sweep.detach=true"]).problems
    assert [problem.where for problem in alone] == ["sweep.detach=true"]
    assert check_overrides(["seed=0,1", "sweep.detach=true", "hardware=slurm"]).problems == []


@pytest.mark.slurm
def test_a_sweep_goes_on_without_its_launcher(
    slurm: Path, tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher ends at once and says how to look; then one of two jobs is cancelled."""
    monkeypatch.setenv("SLURM_CONF", "/run/local-slurm/etc/slurm.conf")
    monkeypatch.setenv("COLUMNS", "120")
    options = ("hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=1")
    asked = (
        "hardware=slurm",
        *options,
        "method=linear",
        "data=imagelist",
        f"data.root={tiny_data}",
    )

    def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vpeft_bench", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    started = bench("-m", *asked, *TINY, "seed=0,1", "sweep.detach=true")
    assert started.returncode == 0, started.stdout + started.stderr
    [summary] = re.findall(r"python -m vpeft_bench (runs summary .*)", started.stdout)
    deadline = time.monotonic() + 200
    while (now := bench(*summary.split())).returncode and time.monotonic() < deadline:
        time.sleep(3)
    assert results_of(now.stdout) == ["done", "done"], now.stdout

    def queued() -> list[str]:
        command = ["squeue", "-h", "-o", "%A"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    while queued():  # jobs that are done stay there for a moment
        time.sleep(1)
    long = ("seed=2", "train.epochs=5000", "train.batch_size=20", "hydra.launcher.timeout_min=30")
    waiting = subprocess.Popen(
        [sys.executable, "-m", "vpeft_bench", "-m", *asked, *long],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not (queue := queued()):
        assert waiting.poll() is None
        time.sleep(1)
    subprocess.run(["scancel", *queue], check=True)
    output, _ = waiting.communicate(timeout=200)
    assert waiting.returncode == 1
    assert "has left the queue without a result" in output
    assert "died" in output
