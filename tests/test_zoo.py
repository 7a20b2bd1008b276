"""Every method trains on the demo digits, as a user runs it, and beats linear probing.

Marked ``zoo``: it takes about twenty minutes on two cores. ``.ci/run`` runs it behind the others.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import vpeft_bench

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

# A ladder of fresh blocks starts from nothing: after five epochs it is level with linear probing.
EPOCHS = {"lst": 10}


def top1(method: str, epochs: int, directory: Path) -> float:
    """Train ``method`` and score it on the 797 test digits."""
    command = [sys.executable, "-m", "vpeft_bench", f"method={method}", f"train.epochs={epochs}"]
    done = subprocess.run(
        [*command, "hardware.threads=1", *OPTIONS.get(method, [])],
        cwd=directory,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = directory.rglob("record.json")
    record = json.loads(path.read_text())
    assert record["status"] == "ok"
    assert path.with_name("delta.safetensors").stat().st_size > 0
    accuracy: float = record["happened"]["last_epoch"]["top1"]
    return accuracy


@pytest.fixture(scope="session")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], float]:
    """Accuracy of linear probing by number of epochs."""

    @functools.cache
    def accuracy(epochs: int) -> float:
        return top1("linear", epochs, tmp_path_factory.mktemp("linear"))

    return accuracy


@pytest.mark.parametrize("method", [m for m in vpeft_bench.list_methods() if m != "linear"])
def test_beats_linear_probing(method: str, linear: Callable[[int], float], tmp_path: Path) -> None:
    epochs = EPOCHS.get(method, 5)
    accuracy = top1(method, epochs, tmp_path)
    print(f"{method}: {accuracy:.2f} % after {epochs} epochs; linear {linear(epochs):.2f} %")
    assert accuracy > linear(epochs)
