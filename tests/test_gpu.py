"""What only a GPU can show: runs, their precisions, compilation, kept features, and a cost card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.cost.measuring import request
from tests.running import ON_CPU, run_here
from vpeft_bench.config.sections import HardwareConfig
from vpeft_bench.cost.device import find_device
from vpeft_bench.cost.measure import measured_card
from vpeft_bench.records.cost_card import CardStatus
from vpeft_bench.records.run_record import RunRecord, Status

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU"),
]

ON_GPU = ("hardware=gpu", "hardware.precision=fp32", "hardware.workers=0")


@pytest.fixture
def tiny(tiny_data: Path) -> tuple[str, ...]:
    """Options of a run of a few seconds."""
    return ("data=imagelist", f"data.root={tiny_data}", "train.epochs=2", "train.batch_size=32")


def record_of(results: Path, *overrides: str, place: tuple[str, ...] = ON_GPU) -> RunRecord:
    record = run_here(results, *overrides, place=place).record
    assert record is not None
    assert record.status is Status.OK
    return record


def losses(record: RunRecord) -> list[float]:
    return record.happened.curves["train_loss"]


def test_a_run_is_that_of_the_cpu(tiny: tuple[str, ...], tmp_path: Path) -> None:
    """The same pictures in the same order, from the same start; only the rounding differs."""
    here = record_of(tmp_path / "gpu", *tiny, "method=lora")
    there = record_of(tmp_path / "cpu", *tiny, "method=lora", place=ON_CPU)
    assert losses(here) == pytest.approx(losses(there), rel=0.05)
    assert here.where.device == torch.cuda.get_device_name()
    assert here.happened.parameters == there.happened.parameters
    assert (here.happened.peak_memory_bytes or 0) > 4 * here.happened.parameters.model
    assert there.happened.peak_memory_bytes is None


@pytest.mark.parametrize("change", ["hardware.precision=bf16", "hardware.compile=true"])
def test_how_it_is_computed_changes_little(
    tiny: tuple[str, ...], tmp_path: Path, change: str
) -> None:
    plain = record_of(tmp_path / "plain", *tiny, "method=lora")
    changed = record_of(tmp_path / "changed", *tiny, "method=lora", change)
    assert losses(changed) == pytest.approx(losses(plain), rel=0.1)


def test_training_from_kept_features_is_the_same(tiny: tuple[str, ...], tmp_path: Path) -> None:
    plain = record_of(tmp_path / "off", *tiny, "method=lst", "hardware.feature_cache=off")
    cached = record_of(tmp_path / "kept", *tiny, "method=lst", "hardware.feature_cache=memory")
    assert plain.happened.frozen_features is None
    assert cached.happened.frozen_features is not None
    assert losses(cached) == pytest.approx(losses(plain), rel=0.02)


def test_a_cost_card(tmp_path: Path) -> None:
    device = find_device(HardwareConfig("gpu", "cuda"))
    asked = replace(request("lora"), hardware=HardwareConfig("gpu", "cuda"))
    card = measured_card(asked, device)
    assert card.status is CardStatus.OK, card.error
    assert card.where.device is not None
    assert (card.where.device.kind, card.where.device.name) == (
        "cuda",
        torch.cuda.get_device_name(),
    )
    assert card.measured is not None
    memory = card.measured.memory
    assert memory.resident_growth is None
    assert memory.allocated is not None
    assert memory.allocated > memory.weights + memory.gradients + memory.optimizer_state
    assert memory.reserved is not None
    assert memory.reserved >= memory.allocated
