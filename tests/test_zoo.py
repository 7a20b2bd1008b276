"""Every method trains on the demo digits by the demo recipe and beats linear probing.

Marked ``zoo``: it takes about half an hour on two cores. ``.ci/run`` runs it behind the others.
"""

from __future__ import annotations

import json
import subprocess
import sys
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


def top1(method: str, directory: Path) -> float:
    """Train ``method`` and score it on the 797 test digits."""
    command = [sys.executable, "-m", "vpeft_bench", f"method={method}"]
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
    accuracy: float = record["happened"]["last_epoch"]["values"]["top1"]
    return accuracy


@pytest.fixture(scope="session")
def linear(tmp_path_factory: pytest.TempPathFactory) -> float:
    return top1("linear", tmp_path_factory.mktemp("linear"))


@pytest.mark.parametrize("method", [m for m in vpeft_bench.list_methods() if m != "linear"])
def test_beats_linear_probing(method: str, linear: float, tmp_path: Path) -> None:
    accuracy = top1(method, tmp_path)
    print(f"{method}: {accuracy:.2f} %; linear {linear:.2f} %")
    assert accuracy > linear
