"""Sweeps as users run them: in process, in parallel, and on a real SLURM."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests.conftest import Cli, shared_path
from tests.runs.test_run import wait_for_epochs
from vpeft_bench.cli.launch import RUN
from vpeft_bench.records.run_record import LOCK
from vpeft_bench.runs import sweep

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


def test_busy_is_looked_at_again_at_the_end(
    cli: Cli,
    tmp_path: Path,
    tiny_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What another process has finished by then is done; what it still works on is busy."""
    done = cli("method=linear", "data=imagelist", f"data.root={tiny_data}", *TINY)
    assert done.returncode == 0, done.stderr
    (record,) = tmp_path.rglob("record.json")
    note = {"overrides": ["seed=0"], "result": "busy", "reason": "another process"}
    job = tmp_path / "sweep" / "0"
    job.mkdir(parents=True)
    (job / sweep.JOB).write_text(json.dumps(note))
    (job / sweep.NOTE).write_text(json.dumps({**note, "file": str(record)}))
    monkeypatch.setattr(sweep.NoteSweep, "directory", job.parent)

    assert sweep.summarise(RUN.summarise) == 0
    said = capsys.readouterr().out
    assert "by another process" in said
    assert "1 done" in said

    with FileLock(record.with_name(LOCK)):
        assert sweep.summarise(RUN.summarise) == 1
    assert "1 busy" in capsys.readouterr().out

    record.unlink()
    assert sweep.summarise(RUN.summarise) == 1
    assert "1 busy" in capsys.readouterr().out


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
