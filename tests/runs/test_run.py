"""Whole runs, as a user starts them: records, resuming, locking, repeatability."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Cli
from vpeft_bench.backbones.demo_vit import WEIGHTS_FILE

QUICK = ("train.epochs=4", "train.batch_size=20", "hardware=cpu", "hardware.threads=1")


@pytest.fixture
def quick(tiny_data: Path) -> tuple[str, ...]:
    """Options of a run of a few seconds."""
    return ("data=imagelist", f"data.root={tiny_data}", *QUICK)


def record_of(directory: Path) -> dict[str, Any]:
    """The only record below ``directory``."""
    (path,) = directory.rglob("record.json")
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_default_run_end_to_end(cli: Cli, tmp_path: Path) -> None:
    """The README's first command, of one epoch: trains, prints the table, writes the record, then
    is skipped. With all its epochs it is one of the runs of ``test_zoo.py``.
    """
    first = cli("train.epochs=1")
    assert first.returncode == 0, first.stderr
    for row in (
        "task",
        "backbone",
        "method",
        "seed",
        "top-1, last epoch",
        "trainable parameters",
        "stored bytes",
        "train time",
        "training speed",
        "peak allocated memory",
        "record:",
        "leaderboard:",
    ):
        assert row in first.stdout
    record = record_of(tmp_path / "results")
    assert record["status"] == "ok"
    assert record["labels"] == ["demo backbone", "demo data"]
    last = record["happened"]["last_epoch"]
    assert last["split"] == "test"
    assert last["images"] == 797
    assert last["values"]["top1"] > 50
    assert record["happened"]["peak_memory_bytes"] is None
    assert record["happened"]["peak_memory_note"]

    again = cli("train.epochs=1")
    assert again.returncode == 0
    assert "skipped: a finished record exists" in again.stdout
    assert record_of(tmp_path / "results") == record

    board = cli("leaderboard")
    assert board.returncode == 0, board.stderr
    assert "lora" in board.stdout


def test_what_was_decided_about_the_weights_is_told_and_recorded(
    cli: Cli, quick: tuple[str, ...], tmp_path: Path
) -> None:
    state = load_file(WEIGHTS_FILE)
    content = {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}
    torch.save(content, tmp_path / "odd [1].ckpt")
    weights = f"backbone.weights='{tmp_path / 'odd [1].ckpt'}'"
    done = cli(*quick, "method=linear", "train.epochs=1", weights)
    assert done.returncode == 0, done.stderr
    told = f'{tmp_path / "odd [1].ckpt"} (took state_dict; prefix "module." left out)'
    assert f"weights: {told}\n" in done.stdout
    recorded = record_of(tmp_path / "results")["where"]["weights"]
    assert recorded["source"] == told
    assert recorded["label"] == "pretrained"


@pytest.mark.parametrize(
    ("method", "dropout"),
    [
        pytest.param("lora", "dropout", marks=pytest.mark.slow),
        pytest.param("vpt_deep", "dropout", marks=pytest.mark.slow),
        pytest.param("hf/adalora", "lora_dropout", marks=pytest.mark.slow),
    ],
)
def test_killed_run_resumes_to_the_same_result(
    cli: Cli, tmp_path: Path, quick: tuple[str, ...], method: str, dropout: str
) -> None:
    """``kill -9`` after an epoch: no record; the next start ends as if nothing had happened."""
    options = (f"method={method}", f"method.{dropout}=0.1", *quick)
    whole = cli(*options, "results_dir=whole")
    assert whole.returncode == 0, whole.stderr

    command = [sys.executable, "-m", "vpeft_bench", *options, "results_dir=killed"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    wait_for_epochs(tmp_path / "killed", 1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list((tmp_path / "killed").rglob("record.json"))

    resumed = cli(*options, "results_dir=killed")
    assert resumed.returncode == 0, resumed.stderr
    expected, got = record_of(tmp_path / "whole"), record_of(tmp_path / "killed")
    assert got["happened"]["resumed"] == 1
    assert got["happened"]["last_epoch"] == expected["happened"]["last_epoch"]
    for curve in ("train_loss", "lr", "epoch"):
        assert got["happened"]["curves"][curve] == expected["happened"]["curves"][curve]
    assert not list((tmp_path / "killed").rglob("*.ckpt"))


def test_killed_behind_the_data_pass_resumes_to_the_same_result(
    cli: Cli, tmp_path: Path, quick: tuple[str, ...]
) -> None:
    """What is placed starts the same whether it was selected just now or by an earlier start."""
    options = (
        "method=spt",
        "method.budget=30000",
        "method.mode=train",
        "method.dropout=0.5",
        *quick,
    )
    options = (*options, "backbone.drop_path=0.2", "train.epochs=1")
    whole = cli(*options, "results_dir=whole")
    assert whole.returncode == 0, whole.stderr
    (selection,) = (tmp_path / "whole").rglob("selection.safetensors")
    directory = tmp_path / "killed" / selection.parent.relative_to(tmp_path / "whole")
    directory.mkdir(parents=True)
    shutil.copy(selection, directory)  # all that a process killed right then would have left
    assert cli(*options, "results_dir=killed").returncode == 0
    for name in ("delta.safetensors", "head.safetensors"):
        assert (directory / name).read_bytes() == selection.with_name(name).read_bytes()
    changed, expected = record_of(tmp_path / "killed"), record_of(tmp_path / "whole")
    assert changed["happened"]["last_epoch"] == expected["happened"]["last_epoch"]


def wait_for_epochs(results: Path, epochs: int) -> None:
    """Until ``metrics.csv`` and a checkpoint tell of that many epochs."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for path in results.rglob("metrics.csv"):
            ready = len(path.read_text().splitlines()) > epochs
            if ready and path.with_name("last.ckpt").exists():
                return
        time.sleep(0.02)
    raise AssertionError(f"no {epochs} epochs within two minutes")


def test_same_run_twice_is_identical(cli: Cli, tmp_path: Path, quick: tuple[str, ...]) -> None:
    """Same seed and config, once more with ``rerun=true``: the same metrics and weights."""
    quick = (*quick, "train.epochs=2")
    assert cli("method=ssf", *quick).returncode == 0
    first = record_of(tmp_path)
    (delta,) = tmp_path.rglob("delta.safetensors")
    content = delta.read_bytes()
    assert cli("method=ssf", *quick, "rerun=true").returncode == 0
    second = record_of(tmp_path)
    assert second["happened"]["last_epoch"] == first["happened"]["last_epoch"]
    assert second["happened"]["curves"]["train_loss"] == first["happened"]["curves"]["train_loss"]
    assert delta.read_bytes() == content
    assert second["where"]["finished"] >= first["where"]["finished"]


def test_two_processes_one_run(cli: Cli, tmp_path: Path, quick: tuple[str, ...]) -> None:
    """One works, the other says so and leaves."""
    long = (*quick, "train.epochs=200")
    command = [sys.executable, "-m", "vpeft_bench", *long]
    worker = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        wait_for_epochs(tmp_path, 1)
        other = cli(*long)
        assert worker.poll() is None, "the first process should still be at it"
    finally:
        worker.kill()
        worker.wait(60)
    assert other.returncode == 1
    assert "busy: another process is working on this run" in other.stdout


def test_select_never_touches_test(cli: Cli, tmp_path: Path, quick: tuple[str, ...]) -> None:
    """``protocol=select`` works where the test list is beyond reading, and reports validation."""
    done = cli("method=linear", "protocol=select", *quick)
    assert done.returncode == 0, done.stderr
    happened = record_of(tmp_path)["happened"]
    assert happened["last_epoch"]["split"] == "val"
    assert happened["last_epoch"]["images"] == 40
    top1 = happened["curves"]["val_top1"]
    assert happened["last_epoch"]["values"]["top1"] == pytest.approx(top1[-1])
    assert happened["selected_epoch"]["values"]["top1"] == max(top1)
    assert happened["selected_epoch"]["epoch"] == top1.index(max(top1)) + 1


def test_failure_is_recorded(cli: Cli, tmp_path: Path, tiny_data: Path) -> None:
    """A picture that cannot be read ends the run with a failed record; mending it finishes it."""
    copy = tmp_path / "digits"
    shutil.copytree(tiny_data, copy)
    broken = copy / (copy / "test.txt").read_text().split()[0]
    content = broken.read_bytes()
    broken.write_bytes(b"no picture")
    # Nothing is kept in memory, so that the test split is first read after training.
    unkept = ("data.cache_gib=0", "hardware.workers=0", "hardware.feature_cache=off")
    options = ("data=imagelist", f"data.root={copy}", "method=linear", *unkept, *QUICK)
    options = (*options, "train.epochs=2")
    failed = cli(*options)
    assert failed.returncode == 1
    assert str(broken) in failed.stderr
    record = record_of(tmp_path / "results")
    assert record["status"] == "failed"
    assert broken.name in record["error"]
    assert len(record["happened"]["curves"]["train_loss"]) == 2  # what was computed is kept

    broken.write_bytes(content)
    mended = cli(*options)
    assert mended.returncode == 0, mended.stderr
    record = record_of(tmp_path / "results")
    assert record["status"] == "ok"
    assert record["happened"]["resumed"] == 1  # no epoch was trained twice


@pytest.mark.parametrize(
    ("logger", "trace"),
    [
        ("tensorboard", "events.out*"),
        pytest.param("wandb", "*.wandb", marks=pytest.mark.slow),
    ],
)
def test_loggers_write_into_the_run_directory(
    cli: Cli, tmp_path: Path, quick: tuple[str, ...], logger: str, trace: str
) -> None:
    done = cli("method=linear", f"logger={logger}", *quick, "train.epochs=1")
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob(trace))
    assert list(tmp_path.rglob("metrics.csv"))


def test_failing_logger_does_not_cost_the_run(
    cli: Cli, tmp_path: Path, quick: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights & Biases online without a key or a network."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    done = cli(
        "method=linear", "logger=wandb", "logger.wandb_mode=online", *quick, "train.epochs=1"
    )
    assert done.returncode == 0, done.stderr
    assert "logger wandb failed and is off" in done.stderr
    assert record_of(tmp_path)["status"] == "ok"


@pytest.mark.slow
def test_ctrl_c_is_recorded_and_resumes(cli: Cli, tmp_path: Path, quick: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "vpeft_bench", *quick, "train.epochs=40"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts background jobs with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for_epochs(tmp_path, 1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "the same command resumes" in errors
    record = record_of(tmp_path)
    assert record["status"] == "interrupted"
    assert record["happened"]["curves"]["train_loss"]
