"""Signals end a run in good order, whatever it is at, and are no end of its progress."""

from __future__ import annotations

import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.running import run_here, signal_after_epoch
from tests.runs.test_run import record_of, wait_for_epochs
from vpeft_bench.methods.sct import SCT
from vpeft_bench.records.run_record import Status, find
from vpeft_bench.runs import feature_store, interruption, run
from vpeft_bench.runs.interruption import Interrupted, interruptible
from vpeft_bench.tasks.classification.module import Classification
from vpeft_bench.terminal import Terminal

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(number, marks=() if number is signal.SIGTERM else pytest.mark.slow)
        for number in SIGNALS
    ],
)
def test_every_signal_is_recorded_and_keeps_the_checkpoint(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    before = [signal.getsignal(s) for s in SIGNALS]
    signal_after_epoch(monkeypatch, 2, number)
    with pytest.raises(Interrupted) as caught:
        run_here(tmp_path, "data=imagelist", f"data.root={tiny_data}", "method=linear")
    assert caught.value.exit_status == 128 + number
    ((path, record),) = find([tmp_path]).records
    assert record.status is Status.INTERRUPTED
    assert record.error == f"interrupted by {number.name}"
    assert len(record.happened.curves["epoch"]) == 2
    assert record.happened.last_epoch is None
    assert path.with_name("last.ckpt").exists()
    assert [signal.getsignal(s) for s in SIGNALS] == before


def signalling(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, in which the process gets SIGTERM."""

    def wrapped(*arguments: Any, **options: Any) -> Any:
        result = function(*arguments, **options)
        signal.raise_signal(signal.SIGTERM)
        return result

    return wrapped


@pytest.mark.parametrize(
    "phase",
    [
        "setup",
        "features",
        "storing",
        *(pytest.param(phase, marks=pytest.mark.slow) for phase in ("data pass", "evaluation")),
    ],
)
def test_whatever_it_is_at(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    feature_store.forget()
    owner, name, method = {
        "setup": (run, "build_model", "linear"),
        "data pass": (SCT, "_largest", "sct"),
        "features": (feature_store.MemoryStore, "empty", "linear"),
        "evaluation": (Classification, "score", "linear"),
        "storing": (run, "save_tensors", "linear"),
    }[phase]
    options = ("data=imagelist", f"data.root={tiny_data}", f"method={method}", "train.epochs=2")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, signalling(getattr(owner, name)))
        with pytest.raises(Interrupted, match="SIGTERM"):
            run_here(tmp_path, *options)
    ((path, record),) = find([tmp_path]).records
    assert record.status is Status.INTERRUPTED
    left = {file.name for file in path.parent.iterdir()}
    assert left <= {"record.json", "metrics.csv", "last.ckpt"}
    assert run_here(tmp_path, *options).record is not None
    ((_, record),) = find([tmp_path]).records
    assert record.status is Status.OK
    assert record.happened.curves["epoch"] == [1, 2]


def test_a_second_signal_does_not_cut_the_record_off(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal_after_epoch(monkeypatch, 1, signal.SIGTERM)
    monkeypatch.setattr(run._Run, "_record", signalling(run._Run._record))
    with pytest.raises(Interrupted):
        run_here(tmp_path, "data=imagelist", f"data.root={tiny_data}", "method=linear")
    ((_, record),) = find([tmp_path]).records
    assert record.error == "interrupted by SIGTERM"


def test_a_signal_while_a_failure_is_recorded_comes_afterwards(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither is lost: the record says that the run failed, and the sweep around it stops."""
    options = ("data=imagelist", f"data.root={tiny_data}", "method=linear", "train.lr=1e30")
    monkeypatch.setattr(run._Run, "_record", signalling(run._Run._record))
    with interruptible(), pytest.raises(Interrupted, match="SIGTERM"):
        run_here(tmp_path, *options, "train.warmup_epochs=0")
    ((_, record),) = find([tmp_path]).records
    assert record.outcome == "diverged"


def test_what_somebody_else_handles_or_ignores_is_left_alone() -> None:
    """A launcher of SLURM jobs handles SIGTERM; ``nohup`` ignores SIGHUP."""
    seen: list[int] = []
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with interruptible():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGHUP)
            with pytest.raises(Interrupted), interruptible():  # nested
                signal.raise_signal(signal.SIGUSR1)
            assert interruption.received() is signal.SIGUSR1
        assert interruption.received() is None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert seen == [signal.SIGTERM]


def test_sent_between_processes() -> None:
    back = pickle.loads(pickle.dumps(Interrupted(signal.SIGHUP)))
    assert (str(back), back.exit_status) == ("interrupted by SIGHUP", 129)


def start(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    """``python -m vpeft_bench`` in a process group of its own, as a terminal starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "vpeft_bench", *arguments],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell starts background jobs with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env={**os.environ, "COLUMNS": "120"},
    )


def test_a_process_group_with_loader_processes(tmp_path: Path, tiny_data: Path) -> None:
    """As Ctrl-C and time limits do, everybody is told, twice: one line, and no noise of workers."""
    process = start(
        tmp_path,
        "data=imagelist",
        f"data.root={tiny_data}",
        "method=linear",
        "data.augmentation=randaugment",
        "hardware.workers=2",
        "hardware.threads=1",
        "train.epochs=200",
    )
    wait_for_epochs(tmp_path, 1)
    os.killpg(process.pid, signal.SIGTERM)
    time.sleep(0.1)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert errors.splitlines() == [
        "interrupted by SIGTERM; the same command resumes from the last whole epoch"
    ]
    assert record_of(tmp_path)["error"] == "interrupted by SIGTERM"
    assert list(tmp_path.rglob("last.ckpt"))


@pytest.mark.slow
def test_a_sweep_stops(tmp_path: Path, tiny_data: Path) -> None:
    process = start(
        tmp_path,
        "-m",
        "data=imagelist",
        f"data.root={tiny_data}",
        "method=linear",
        "seed=0,1",
        "hardware.threads=1",
        "train.epochs=200",
    )
    wait_for_epochs(tmp_path, 1)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "1 interrupted" in output
    assert "the same command resumes" in errors
    (note,) = tmp_path.rglob("outcome.json")
    content = json.loads(note.read_text())
    assert (content["result"], content["reason"]) == ("interrupted", "interrupted by SIGTERM")
    assert record_of(tmp_path)["status"] == "interrupted"


class ClosedPipe(io.StringIO):
    """An output that takes one line: its reader is ``head -1``."""

    def write(self, text: str) -> int:
        if "\n" in self.getvalue():
            raise BrokenPipeError
        return super().write(text)


def test_a_run_whose_output_nobody_reads_any_more_is_interrupted(
    tiny_data: Path, tmp_path: Path
) -> None:
    overrides = ("data=imagelist", f"data.root={tiny_data}", "method=linear", "train.epochs=2")
    with pytest.raises(BrokenPipeError, match="what read the output has left"):
        run_here(tmp_path, *overrides, console=Terminal(file=ClosedPipe(), width=120))
    ((_, record),) = find([tmp_path]).records
    assert record.status is Status.INTERRUPTED
    assert record.error == "interrupted: what read the output has left"
    resumed = run_here(tmp_path, *overrides).record
    assert resumed is not None
    assert resumed.status is Status.OK
