"""The peak of memory, and what it consists of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from vpeft_bench.cost import memory
from vpeft_bench.cost.card import Memory
from vpeft_bench.cost.memory import (
    AllocatedMemory,
    Peak,
    ResidentMemory,
    saved_for_backward,
    split,
    storage_bytes,
)

MIB = 2**20


def meter() -> ResidentMemory:
    made = ResidentMemory()
    made.start()
    return made


@pytest.mark.parametrize("high_water_mark", [True, False])
def test_growth_sees_a_known_allocation(
    high_water_mark: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 MiB that are freed again; by the kernel's mark, or sampled where it cannot be reset."""
    if not high_water_mark:
        monkeypatch.setattr(memory, "_reset_high_water_mark", lambda: False)
    measure = meter()

    def allocate() -> None:
        tensor = torch.ones(50 * MIB)
        for _ in range(10):
            tensor.add_(1.0)  # long enough for a thread that samples

    growth = measure.peak(allocate).resident_growth
    assert growth is not None
    assert abs(growth - 200 * MIB) < 12 * MIB
    again = measure.peak(lambda: None).resident_growth
    assert again is not None
    assert abs(again) < 12 * MIB


def test_what_was_freed_before_does_not_count() -> None:
    measure = meter()
    held = torch.ones(10 * MIB)
    for _ in range(3):
        torch.ones(25 * MIB)
    growth = measure.peak(lambda: torch.ones(5 * MIB)).resident_growth
    assert growth is not None
    assert abs(growth - 60 * MIB) < 12 * MIB
    assert held.numel() == 10 * MIB


def test_many_tensors_of_one_step_do_not_add_up() -> None:
    """As in a step: each of them is freed before the next one; ``malloc`` must not keep them."""
    measure = meter()

    def step() -> None:
        for size in range(1, 40):
            torch.ones(size * MIB // 8)

    growth = measure.peak(step).resident_growth
    assert growth is not None
    assert growth < 40 * MIB // 2 + 12 * MIB


def test_unknown_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_status", dict)
    ran = []
    assert meter().peak(lambda: ran.append(1)) == Peak()
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


def test_what_was_saved_is_freed_again() -> None:
    """An output that is saved by its own node holds itself if it is given back as it is."""
    layer = nn.Linear(MIB, 1, bias=False)
    measure = meter()

    def forward() -> torch.Tensor:
        return (layer.weight.expand(8, MIB) * 2.0).exp().sum()

    assert saved_for_backward(forward, layer.parameters()) >= 32 * MIB
    growth = measure.peak(lambda: None).resident_growth
    assert growth is not None
    assert growth < 12 * MIB
