"""Claims: of several processes one works, and what a dead one held is taken over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from vpeft_bench.errors import ClaimedError, ClaimLostError
from vpeft_bench.runs import claim
from vpeft_bench.runs.claim import Claim, Holder, claimed, holder_of

HOLD = """
import sys, time
from pathlib import Path
from vpeft_bench.runs.claim import claimed
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.claim"


def elsewhere(path: Path, age: float) -> None:
    """A claim of another machine that was touched ``age`` seconds ago."""
    holder = replace(Holder.here(), system="another boot 1", host="node7", pid=12)
    path.write_text(json.dumps(asdict(holder)))
    then = time.time() - age
    os.utime(path, (then, then))


def test_one_holds_it_and_leaves_nothing(path: Path) -> None:
    with claimed(path) as mine:
        assert holder_of(path) == mine.holder
        with pytest.raises(ClaimedError, match=f"process {os.getpid()} on "):
            claimed(path).__enter__()
        mine.require()
    assert holder_of(path) is None
    assert list(path.parent.iterdir()) == []


def test_a_killed_process_holds_nothing(path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    assert holder_of(path) is not None
    with pytest.raises(ClaimedError, match=f"process {holder.pid}"):
        claimed(path).__enter__()
    holder.send_signal(signal.SIGKILL)
    # Not waited for: what the kernel still lists of it does not count as alive.
    deadline = time.monotonic() + 10
    while holder_of(path) is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    with claimed(path) as mine:
        assert holder_of(path) == mine.holder
        assert [each.name for each in path.parent.iterdir()] == [path.name]
    holder.wait(10)


def test_a_process_that_got_the_number_of_a_dead_one_does_not_hold_its_claim(path: Path) -> None:
    earlier = replace(Holder.here(), born=1)
    path.write_text(json.dumps(asdict(earlier)))
    assert holder_of(path) is None


@pytest.mark.parametrize(("age", "held"), [(5.0, True), (-3600.0, True), (1000.0, False)])
def test_another_machines_claim_is_told_by_its_signs_of_life(
    path: Path, age: float, held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "BEAT", 0.05)
    elsewhere(path, age)
    assert (holder_of(path) is not None) == held
    if held:
        with pytest.raises(ClaimedError, match="process 12 on node7"):
            claimed(path).__enter__()
    else:
        with claimed(path) as mine:
            assert holder_of(path) == mine.holder


def test_a_servers_clock_that_is_set_takes_nothing_from_the_living(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All claims look old then; the next beat shows who lives."""
    monkeypatch.setattr(claim, "BEAT", 0.2)
    elsewhere(path, 1000)
    beat = threading.Timer(0.1, os.utime, [path])
    beat.start()
    with pytest.raises(ClaimedError):
        claimed(path).__enter__()


def test_a_claim_that_was_not_written_to_its_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "BEAT", 0.01)
    path.write_bytes(b"")
    with pytest.raises(ClaimedError, match="since a moment ago"):
        claimed(path).__enter__()
    os.utime(path, (0, 0))
    with claimed(path):
        pass
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("attempt", range(10))
def test_of_many_that_take_over_one_succeeds(path: Path, attempt: int) -> None:
    """Each finds the claim of the same dead process; nobody takes that of the winner."""
    path.write_text(json.dumps(asdict(replace(Holder.here(), born=1))))
    ready, over = threading.Barrier(8), threading.Event()
    held: list[Claim] = []
    refused: list[ClaimedError] = []

    def take() -> None:
        ready.wait()
        try:
            with claimed(path) as mine:
                held.append(mine)
                over.wait(10)
                mine.require()
        except ClaimedError as error:
            refused.append(error)
        if len(refused) == 7:
            over.set()

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert (len(held), len(refused)) == (1, 7)
    assert list(path.parent.iterdir()) == []


def test_who_slept_finds_its_claim_lost_and_takes_nothing_from_the_new_owner(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "BEAT", 0.01)
    slept = Claim(path, Holder.here())
    other = replace(Holder.here(), host="node7")
    path.write_text(json.dumps(asdict(other)))
    slept._thread.join(5)
    assert slept.lost
    with pytest.raises(ClaimLostError, match="taken over"):
        slept.require()
    slept.release()
    assert holder_of(path) == other
