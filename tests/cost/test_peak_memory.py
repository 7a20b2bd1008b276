"""The peak of memory, and what it consists of."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
import torch
from torch import nn

from tests.cost.measuring import PYTHON
from vpeft_bench.cost import memory
from vpeft_bench.cost.memory import (
    AllocatedMemory,
    Peak,
    ResidentMemory,
    saved_for_backward,
    split,
    storage_bytes,
)
from vpeft_bench.records.cost_card import Memory

# Measured in one fresh process: what a process has freed before lies about in its heap.
GROWTHS = """
import json
import torch
from tests.cost.measuring import PYTHON
from vpeft_bench.cost import memory
from vpeft_bench.cost.memory import ResidentMemory, saved_for_backward

MIB = 2**20
meter = ResidentMemory()
meter.start()
found = {}

def allocate():
    tensor = torch.ones(50 * MIB)
    for _ in range(10):
        tensor.add_(1.0)  # long enough for a thread that samples

def one_after_another():
    for size in range(1, 40):
        torch.ones(size * MIB // 8)

found["nothing"] = meter.peak(lambda: None)
found["200 MiB"] = meter.peak(allocate)
found["39 tensors, the largest of 19.5 MiB"] = meter.peak(one_after_another)
found["nothing again"] = meter.peak(lambda: None)
held = torch.ones(10 * MIB)
found["40 MiB held and 20 more"] = meter.peak(lambda: torch.ones(5 * MIB))
del held

layer = torch.nn.Linear(MIB, 1, bias=False)
forward = lambda: (layer.weight.expand(8, MIB) * 2.0).exp().sum()
assert saved_for_backward(forward, layer.parameters()) >= 32 * MIB
found["4 MiB of weights, all that was saved is freed"] = meter.peak(lambda: None)
del layer

memory._reset_high_water_mark = lambda: False
found["200 MiB, sampled"] = meter.peak(allocate)
print(json.dumps({name: peak.resident_growth / MIB for name, peak in found.items()}))
"""


@pytest.mark.slow
def test_growth_of_resident_memory() -> None:
    done = subprocess.run([*PYTHON, GROWTHS], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    expected = {
        "nothing": 0,
        "200 MiB": 200,
        "39 tensors, the largest of 19.5 MiB": 19.5,
        "nothing again": 0,
        "40 MiB held and 20 more": 60,
        "4 MiB of weights, all that was saved is freed": 4,
        "200 MiB, sampled": 200,
    }
    assert found == pytest.approx(expected, abs=5)


def test_unknown_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_status", dict)
    ran = []
    meter = ResidentMemory()
    meter.start()
    assert meter.peak(lambda: ran.append(1)) == Peak()
    assert ran == [1]


def test_the_peak_of_a_gpu_is_of_the_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was freed is handed back and the mark reset before the steps; it is read behind them."""
    calls: list[str] = []
    for name, answer in (
        ("synchronize", None),
        ("empty_cache", None),
        ("reset_peak_memory_stats", None),
        ("max_memory_allocated", 700),
        ("max_memory_reserved", 900),
    ):

        def call(*arguments: Any, name: str = name, answer: Any = answer) -> Any:
            calls.append(name)
            return answer

        monkeypatch.setattr(torch.cuda, name, call)
    peak = AllocatedMemory(torch.device("cuda")).peak(lambda: calls.append("steps"))
    assert peak == Peak(allocated=700, reserved=900)
    assert calls == [
        "synchronize",
        "empty_cache",
        "reset_peak_memory_stats",
        "steps",
        "synchronize",
        "max_memory_allocated",
        "max_memory_reserved",
    ]


def test_split_of_the_peak() -> None:
    model = nn.Sequential(nn.Linear(10, 20), nn.BatchNorm1d(20))
    model[0].weight.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    model(torch.randn(4, 10)).sum().backward()
    optimizer.step()
    found = split(Peak(resident_growth=10_000), model, optimizer, saved_for_backward=77)
    weights = 4 * (200 + 20 + 40) + 4 * 40 + 8  # running mean and variance, a count in int64
    gradients, states = 4 * 60, 4 * (2 * 60 + 3)
    assert (found.weights, found.gradients, found.optimizer_state) == (weights, gradients, states)
    assert found.activations == 10_000 - weights - gradients - states
    assert (found.peak, found.saved_for_backward) == (10_000, 77)
    unknown = split(Peak(), model, optimizer, 0)
    assert (unknown.peak, unknown.activations) == (None, None)
    gpu = split(Peak(allocated=9_000, reserved=20_000), model, optimizer, 0)
    assert gpu.peak == 9_000


def test_a_split_that_does_not_add_up_is_refused() -> None:
    with pytest.raises(ValueError, match="sum up"):
        Memory(100, None, None, 50, 20, 20, 11, 0)


def test_shared_storages_count_once() -> None:
    tensor = torch.zeros(100)
    assert storage_bytes([tensor, tensor[:10], tensor.view(10, 10)]) == 400
    sparse = torch.eye(8).to_sparse()
    assert storage_bytes([sparse]) == 8 * 4 + 2 * 8 * 8


def test_saved_for_backward() -> None:
    """A linear saves its input, a ReLU its output; the batch and the weights are there anyway."""
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    images = torch.randn(4, 16)
    given = (*model.parameters(), images)
    assert saved_for_backward(lambda: model(images).sum(), given) == 4 * 4 * 32
    assert saved_for_backward(lambda: model(images).sum(), ()) > 4 * 4 * 32
    model[0].requires_grad_(False)
    assert saved_for_backward(lambda: model(images).sum(), given) == 4 * 4 * 32
    model.requires_grad_(False)
    model[2].bias.requires_grad_(True)
    assert saved_for_backward(lambda: model(images).sum(), given) == 0
