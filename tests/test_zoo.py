"""Every method trains on the demo digits by the demo recipe and beats linear probing.

Marked ``zoo``: it takes about half an hour on two cores. ``.ci/run`` runs it behind the others.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import vpeft_bench
from tests.running import run_here
from vpeft_bench.records.run_record import Status

pytestmark = pytest.mark.zoo

# NOAH's published search takes days; this one shows that all of its stages work together.
OPTIONS = {
    "noah": [
        "method.supernet_epochs=2",
        "method.supernet_warmup=0",
        "method.generations=2",
        "method.population=4",
        "method.parents=2",
        "method.mutations=1",
        "method.crossovers=1",
        "method.budget=40000",
    ]
}


def top1(method: str, directory: Path) -> float:
    """Train ``method`` and score it on the 797 test digits."""
    outcome = run_here(directory, f"method={method}", *OPTIONS.get(method, []))
    assert outcome.record is not None
    assert outcome.record.status is Status.OK
    assert (outcome.directory / "delta.safetensors").stat().st_size > 0
    assert outcome.record.happened.last_epoch is not None
    return outcome.record.happened.last_epoch.values["top1"]


@pytest.fixture(scope="session")
def linear(tmp_path_factory: pytest.TempPathFactory) -> float:
    return top1("linear", tmp_path_factory.mktemp("linear"))


@pytest.mark.parametrize("method", [m for m in vpeft_bench.list_methods() if m != "linear"])
def test_beats_linear_probing(method: str, linear: float, tmp_path: Path) -> None:
    accuracy = top1(method, tmp_path)
    print(f"{method}: {accuracy:.2f} %; linear {linear:.2f} %")
    assert accuracy > linear
