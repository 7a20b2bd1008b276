"""Sweeps as users run them: in process, in parallel, and on a real SLURM."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from tests.conftest import Cli, shared_path
from tests.runs.test_run import wait_for_epochs
from vpeft_bench.cli.flags import Line
from vpeft_bench.cli.launch import RUN, _checked
from vpeft_bench.config.schema import RunConfig
from vpeft_bench.records.run_record import CLAIM
from vpeft_bench.runs import rounds, sweep, sweep_progress
from vpeft_bench.runs.claim import claimed, holder_of
from vpeft_bench.runs.rounds import Sweep
from vpeft_bench.runs.sweep_progress import SweepProgress

TINY = ("train.epochs=1", "train.batch_size=50", "hardware.threads=1")


def results_of(sweep_output: str) -> list[str]:
    """The second column of the closing table, top to bottom."""
    return re.findall(r"│ (done|skipped|busy|failed|died) +│", sweep_output)


def test_sweep_runs_skips_and_survives_a_failure(cli: Cli, tmp_path: Path, tiny_data: Path) -> None:
    """Two good methods and one that the backbone refuses; then only that one is tried again."""
    sweep = (
        "-m",
        "method=linear,hst,ssf",
        "backbone=timm",
        "backbone.name=swin_tiny_patch4_window7_224",
        "backbone.weights=none",
        "backbone.image_size=64",
        "+backbone.model_args.window_size=2",
        "+backbone.model_args.embed_dim=24",
        "+backbone.model_args.depths=[1,1]",
        "+backbone.model_args.num_heads=[2,2]",
        "data=imagelist",
        f"data.root={tiny_data}",
        *TINY,
    )
    first = cli(*sweep)
    assert results_of(first.stdout) == ["done", "failed", "done"], first.stdout + first.stderr
    assert first.returncode == 1
    assert "hst does not support swin" in first.stdout
    assert "2 done, 1 failed" in first.stdout
    records = sorted((tmp_path / "results" / "runs").rglob("record.json"))
    assert [json.loads(r.read_text())["status"] for r in records] == ["ok", "ok"]
    assert "random weights" in json.loads(records[0].read_text())["labels"]

    second = cli(*sweep)
    assert results_of(second.stdout) == ["skipped", "failed", "skipped"]
    assert second.returncode == 1


@pytest.mark.slow
def test_sweep_in_parallel(cli: Cli, tmp_path: Path, tiny_data: Path) -> None:
    done = cli(
        "-m",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
        "method=linear",
        "seed=0,1",
        "data=imagelist",
        f"data.root={tiny_data}",
        *TINY,
    )
    assert results_of(done.stdout) == ["done", "done"], done.stdout + done.stderr
    assert done.returncode == 0
    assert len(list(tmp_path.rglob("record.json"))) == 2


def started(tmp_path: Path, *sweep: str) -> subprocess.Popen[str]:
    """A process of its own that works on a sweep."""
    return subprocess.Popen(
        [sys.executable, "-m", "vpeft_bench", "-m", *sweep],
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "120"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_claim(tmp_path: Path, process: subprocess.Popen[str]) -> Path:
    """The directory of the run that a process works on."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for path in tmp_path.rglob(CLAIM):
            if (holder := holder_of(path)) is not None and holder.pid == process.pid:
                return path.parent
        assert process.poll() is None
        time.sleep(0.01)
    raise AssertionError("no run was begun within two minutes")


@pytest.mark.slow
def test_two_processes_share_a_sweep(tmp_path: Path, tiny_data: Path) -> None:
    """Each run is run once, by one of them; both end well, and leave nothing half-done."""
    sweep = ("method=linear", "seed=range(0,6)", "data=imagelist", f"data.root={tiny_data}", *TINY)
    both = [started(tmp_path, *sweep) for _ in range(2)]
    outputs = [each.communicate(timeout=300)[0] for each in both]
    assert [each.returncode for each in both] == [0, 0], outputs
    for output in outputs:
        assert len(results_of(output)) == 6
        assert set(results_of(output)) <= {"done", "skipped"}
    runs = [output.count("linear on imagelist: epochs: 1") for output in outputs]
    assert sum(runs) == 6
    records = [json.loads(path.read_text()) for path in tmp_path.rglob("record.json")]
    assert [record["status"] for record in records] == ["ok"] * 6
    assert [*tmp_path.rglob(CLAIM), *tmp_path.rglob("*.tmp")] == []


@pytest.mark.slow
def test_what_a_killed_process_held_is_done_by_another(tmp_path: Path, tiny_data: Path) -> None:
    """Two work, one is killed with SIGKILL in the middle of a run: the other ends all of it."""
    sweep = ("method=linear", "seed=0,1,2", "data=imagelist", f"data.root={tiny_data}")
    sweep = (*sweep, *TINY)
    killed = started(tmp_path, *sweep)
    held = wait_for_claim(tmp_path, killed)
    killed.send_signal(signal.SIGSTOP)  # in the middle of its run, however slow the machine is
    other = started(tmp_path, *sweep)
    wait_for_claim(tmp_path, other)
    killed.kill()
    killed.communicate(timeout=60)
    left = (held / CLAIM).exists()
    output, _ = other.communicate(timeout=300)
    assert other.returncode == 0, output
    assert set(results_of(output)) <= {"done", "skipped"}
    assert len(list(tmp_path.rglob("record.json"))) == 3
    assert json.loads((held / "record.json").read_text())["status"] == "ok"
    assert left
    assert [*tmp_path.rglob(CLAIM), *tmp_path.rglob("*.tmp")] == []


def jobs_of(tmp_path: Path, tiny_data: Path, *overrides: str) -> Sweep:
    """The jobs of a sweep over small data."""
    typed = ["method=linear", "data=imagelist", f"data.root={tiny_data}", *TINY, *overrides]
    typed.append(f"results_dir={tmp_path / 'runs'}")
    _, jobs = _checked(Line(typed, multirun=True), RUN, Console(quiet=True))
    assert jobs is not None
    return jobs


def test_nothing_is_launched_in_vain(cli: Cli, tmp_path: Path, tiny_data: Path) -> None:
    """Finished runs are known before any job is; where all are, nothing starts."""
    place = f"results_dir={tmp_path / 'runs'}"
    options = ("method=linear", "data=imagelist", f"data.root={tiny_data}", *TINY, place)
    assert cli(*options, "seed=1").returncode == 0
    launched: list[tuple[list[list[str]], int]] = []
    jobs = jobs_of(tmp_path, tiny_data, "seed=0,1,2")
    jobs.run(tmp_path / "sweep", lambda some, first: launched.append((some, first)))
    [(some, first)] = launched
    assert first == 0
    assert [overrides[-2] for overrides in some] == ["seed=0", "seed=2"]
    notes = sweep.notes_of(tmp_path / "sweep")
    assert [note.result for note in notes] == ["not run", "skipped", "not run"]
    assert notes[1].value is not None

    again = cli("-m", *options, "seed=1,1")
    assert again.returncode == 0
    assert results_of(again.stdout) == ["skipped"]
    assert "Launching" not in again.stdout


def test_what_another_holds_is_looked_at_again(
    cli: Cli, tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has done by then is done; what it has left is launched again."""
    monkeypatch.setattr(rounds, "POLL", 0.01)
    jobs, rounds_of_jobs = jobs_of(tmp_path, tiny_data, "seed=0,1"), []
    files = [standing.file for standing in jobs.standings]
    for file in files:
        assert file is not None
        file.parent.mkdir(parents=True)
    assert files[0] is not None
    left = claimed(files[0].with_name(CLAIM))
    left.__enter__()

    def launch(some: list[list[str]], first: int) -> None:
        rounds_of_jobs.append(([text for job in some for text in job if "seed" in text], first))
        for number, overrides in enumerate(some, start=first):
            file = files[int(overrides[-2].removeprefix("seed="))]
            answer = sweep.Answer("busy", False, "another process", file)
            if len(rounds_of_jobs) > 1:
                answer = sweep.Answer("done", True, "", file)
            sweep.write_note(tmp_path / "sweep" / str(number), overrides, answer)
        if len(rounds_of_jobs) == 1:
            options = ("method=linear", "data=imagelist", f"data.root={tiny_data}", *TINY)
            assert cli(*options, f"results_dir={tmp_path / 'runs'}", "seed=1").returncode == 0
            threading.Timer(0.1, left.__exit__, (None, None, None)).start()

    jobs.run(tmp_path / "sweep", launch)
    assert rounds_of_jobs == [(["seed=0", "seed=1"], 0), (["seed=0"], 2)]
    notes = sweep.notes_of(tmp_path / "sweep")
    assert [(n.result, n.reason) for n in notes] == [("done", ""), ("done", "by another process")]


def test_a_run_that_failed_in_another_process_is_not_tried_by_each(
    cli: Cli, tmp_path: Path, tiny_data: Path
) -> None:
    """It is told as failed; a sweep that begins later tries it again."""
    options = ("method=linear", "data=imagelist", f"data.root={tiny_data}", *TINY)
    jobs = jobs_of(tmp_path, tiny_data, "seed=0")
    place, overrides = tmp_path / "sweep" / "0", jobs.jobs[0].overrides
    jobs.run(place.parent, lambda some, first: None)
    assert sweep._made_meanwhile(place, overrides) is None
    failed = cli(*options, f"results_dir={tmp_path / 'runs'}", "train.lr=1e30", "train.min_lr=1e30")
    assert failed.returncode == 1, failed.stdout
    [record] = (tmp_path / "runs").rglob("record.json")
    file = jobs.standings[0].file
    assert file is not None
    file.parent.mkdir(parents=True)
    record.rename(file)
    told = sweep._failed(sweep._made_meanwhile(place, overrides))
    assert told is not None
    assert (told.result, told.went_well) == ("failed", False)
    assert told.reason.endswith("(in another process)")
    os.utime(file, (0, 0))
    assert sweep._made_meanwhile(place, overrides) is None


def test_of_two_processes_that_run_again_one_does_each(tmp_path: Path, tiny_data: Path) -> None:
    """``rerun=true`` is about what was there before; what the other has made since stays."""
    jobs, asked = jobs_of(tmp_path, tiny_data, "seed=0", "rerun=true"), []
    jobs.run(tmp_path / "sweep", lambda some, first: None)

    def ask(config: RunConfig, console: Console) -> sweep.Answer:
        asked.append(config.rerun)
        return sweep.Answer("done", True)

    config, file = OmegaConf.structured(jobs.jobs[0].config), jobs.standings[0].file
    assert file is not None
    file.parent.mkdir(parents=True)
    for changed in (None, 0, time.time() + 1):
        if changed is not None:
            file.write_text("{}")
            os.utime(file, (changed, changed))
        folder, overrides = tmp_path / "sweep" / "0", jobs.jobs[0].overrides
        sweep._noted(ask, config, folder, overrides, Console(quiet=True))
    assert asked == [True, True, False]


def test_a_job_of_a_large_sweep_reads_its_plan_once(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, reads = jobs_of(tmp_path, tiny_data, "seed=range(0,20)"), 0
    jobs.run(tmp_path / "sweep", lambda some, first: None)
    read = sweep.read_plan

    def counted(directory: Path) -> sweep.SweepPlan:
        nonlocal reads
        reads += 1
        return read(directory)

    monkeypatch.setattr(sweep, "read_plan", counted)
    for number, job in enumerate(jobs.jobs):
        assert sweep._made_meanwhile(tmp_path / "sweep" / str(number), job.overrides) is None
    assert reads == 1


def test_how_far_a_sweep_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 60.0, 120.0])
    monkeypatch.setattr(sweep_progress.time, "monotonic", lambda: next(clock))

    def note(number: int, answer: sweep.Answer) -> None:
        sweep.write_note(tmp_path / str(number), [f"seed={number % 10}"], answer)

    note(0, sweep.Answer("skipped", True))
    progress = SweepProgress(tmp_path, 10)
    assert progress.line() is None
    note(1, sweep.Answer("busy", False, file=tmp_path))
    assert progress.line() is None
    note(2, sweep.Answer("done", True))
    note(3, sweep.Answer("failed", False))
    rate = "at this rate the others take"
    assert progress.line() == f"sweep: 3 of 10 jobs ended, 1 failed; {rate} 4 min"  # 2 in 60 s
    note(11, sweep.Answer("done", True))  # what was busy, in the next round
    assert progress.line() == f"sweep: 4 of 10 jobs ended, 1 failed; {rate} 4 min"
    for number in range(4, 10):
        note(number, sweep.Answer("done", True))
    assert progress.line() is None


@pytest.fixture
def slurm() -> Iterator[Path]:
    """A real SLURM of two virtual nodes on this machine; gives its control script."""
    script = shared_path("tools/local-slurm.sh")
    if os.geteuid() != 0:
        pytest.skip("a local SLURM needs root")
    started = subprocess.run(
        [script, "start", "--nodes", "2"], capture_output=True, text=True, timeout=300
    )
    assert started.returncode == 0, started.stderr
    try:
        yield script
    finally:
        subprocess.run([script, "stop"], capture_output=True, timeout=120, check=True)


@pytest.mark.slurm
def test_slurm_job_is_requeued_and_resumes(slurm: Path, tmp_path: Path, tiny_data: Path) -> None:
    """A running job is requeued: it goes on from its checkpoint and is counted once."""
    environment = {**os.environ, "SLURM_CONF": "/run/local-slurm/etc/slurm.conf", "COLUMNS": "120"}
    command = [
        *(sys.executable, "-m", "vpeft_bench", "-m", "hardware=slurm"),
        *("hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=1"),
        *("hydra.launcher.timeout_min=10", "method=lora", "seed=0,1"),
        *("data=imagelist", f"data.root={tiny_data}", "train.epochs=30", "train.batch_size=20"),
    ]
    sweep = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_for_epochs(tmp_path, 2)
        queue = subprocess.run(
            ["squeue", "-h", "-t", "R", "-o", "%A"], env=environment, capture_output=True, text=True
        )
        job = queue.stdout.split()[0]
        subprocess.run(["scontrol", "requeue", job], env=environment, check=True)
        output, _ = sweep.communicate(timeout=400)
    finally:
        sweep.kill()
    assert results_of(output) == ["done", "done"], output
    assert sweep.returncode == 0
    records = [json.loads(p.read_text()) for p in tmp_path.rglob("record.json")]
    assert sorted(r["happened"]["resumed"] for r in records) in ([0, 1], [1, 1])
    for record in records:
        assert record["happened"]["curves"]["epoch"] == list(range(1, 31))
