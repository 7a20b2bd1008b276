"""Whatever becomes of the measuring process, there is a card, or a refusal."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cost.measuring import PYTHON, request
from vpeft_bench.cost import process
from vpeft_bench.errors import DeviceBusyError
from vpeft_bench.records import cost_card as cards
from vpeft_bench.records.cost_card import CardStatus, CostCard

KILLED = "import os, sys; print('hm', file=sys.stderr); os.kill(os.getpid(), 9)"


def measured_by(code: str, folder: Path) -> tuple[CostCard, Path]:
    """The card after ``code`` was run instead of a measurement, and its path."""
    asked = request("lora", results_dir=str(folder))
    path = asked.card_path("a CPU")
    card = process.measure(asked, path, (*PYTHON, code))
    assert cards.read(path) == card
    assert card.card_id == asked.card_id("a CPU")
    assert card.measured is None
    assert card.asked["method"]["rank"] == 8
    assert card.labels == ["demo backbone"]
    return card, path


def test_killed_by_a_signal(tmp_path: Path) -> None:
    card, path = measured_by(KILLED, tmp_path)
    assert card.status is CardStatus.FAILED
    assert card.error == "the measuring process was killed by SIGKILL"
    assert path.with_name("stderr.txt").read_text() == "hm\n"


def test_killed_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel counts what it kills."""
    counts = iter([11, 12])
    monkeypatch.setattr(process, "_killed_for_memory", lambda: next(counts))
    card, _ = measured_by(KILLED, tmp_path)
    assert card.status is CardStatus.OOM
    assert card.error is not None
    assert "by the kernel for lack of memory" in card.error


def test_ended_without_a_card(tmp_path: Path) -> None:
    card, path = measured_by("print('early'); raise SystemExit('no such thing')", tmp_path)
    assert card.status is CardStatus.FAILED
    assert card.error == "the measuring process ended with status 1: no such thing"
    assert path.with_name("stderr.txt").exists()


def test_device_in_use(tmp_path: Path) -> None:
    asked = request(results_dir=str(tmp_path))
    path = asked.card_path("a CPU")
    code = f"print('a CPU: in use by others'); raise SystemExit({process.EXIT_BUSY})"
    with pytest.raises(DeviceBusyError, match=r"(?s)a CPU: in use.*cost\.allow_busy=true"):
        process.measure(asked, path, (*PYTHON, code))
    assert list(tmp_path.rglob("*.*")) == []


@pytest.mark.slow
def test_request_and_card_travel(tmp_path: Path) -> None:
    """The real process, with a method that it refuses."""
    asked = request("hf/c3a", results_dir=str(tmp_path))
    path = asked.card_path("another name")
    card = process.measure(asked, path)
    assert card.status is CardStatus.UNSUPPORTED
    assert card.asked == asked.asked()
    assert [file.name for file in path.parent.iterdir()] == ["card.json"]


def test_kills_for_memory_are_counted_where_the_kernel_tells() -> None:
    if Path("/proc/vmstat").exists():
        assert process._killed_for_memory() is not None
