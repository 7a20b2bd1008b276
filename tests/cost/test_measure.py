"""Cards of every method, and what in them must hold whatever the machine."""

from __future__ import annotations

import functools
from statistics import median

import pytest
import torch

from tests.cost.measuring import DEMO, TINY_SWIN, card_of
from vpeft_bench.config.sections import BackboneConfig, Precision
from vpeft_bench.cost.steps import timed
from vpeft_bench.methods.registry import list_methods
from vpeft_bench.records.cost_card import CardStatus, CostCard, Measured

CPU = torch.device("cpu")
SOME = ("hf/adalora", "lst")
"""With step hooks and a penalty, with a side network; merged and not; more are measured below."""
ALL = [*list_methods(), *list_methods("hf/")]
WIDER_THAN_THE_DEMO = ("hf/c3a", "hf/vblora")


@functools.cache
def measured(method: str) -> Measured:
    card = card_of(method, batch_size=8)
    assert card.status is CardStatus.OK, card.error
    assert card.labels == ["demo backbone"]
    assert card.measured is not None
    return card.measured


def check(card: CostCard) -> None:
    """What holds for every method."""
    assert card.status is CardStatus.OK, card.error
    assert card.measured is not None
    found = card.measured
    assert found.parameters.total > 0
    assert found.flops.plain == found.flops.closed_form
    assert found.flops.training_step >= found.flops.forward
    assert len(found.training_step.blocks) == card.asked["cost"]["blocks"]
    assert found.memory.peak is not None
    assert found.memory.peak > 0
    assert found.memory.gradients == 4 * found.parameters.total or "adalora" in card.card_id
    assert (found.inference_merged is None) == (found.merge_refusal is not None)
    assert found.training_joules_per_image is None
    assert found.energy_note == "no meter"


@pytest.mark.parametrize("method", SOME)
def test_some_methods(method: str) -> None:
    check(card_of(method))


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in ALL if name not in SOME])
def test_every_method(method: str) -> None:
    card = card_of(method)
    if method in WIDER_THAN_THE_DEMO:
        assert card.status is CardStatus.UNSUPPORTED
        assert card.error is not None
        assert "does not fit" in card.error
    else:
        check(card)


def test_linear_probing_lora_and_full_fine_tuning_compare_as_they_should() -> None:
    linear, lora, full = map(measured, ("linear", "lora", "full"))
    head = 2 * 128 * 10
    assert linear.flops.forward == linear.flops.plain
    assert linear.flops.training_step == linear.flops.forward + head
    assert full.flops.forward == full.flops.plain
    assert 2.98 < full.flops.training_step / full.flops.forward < 3
    assert 2 < lora.flops.training_step / lora.flops.forward < 2.1

    assert linear.parameters.method == linear.stored_bytes == 0
    assert lora.stored_bytes == 4 * lora.parameters.method
    for found in (linear, lora, full):
        assert found.memory.weights == 4 * found.parameters.model
        # AdamW keeps two tensors for each of its own, and counts the steps of each.
        states = found.memory.optimizer_state - 8 * found.parameters.total
        assert 0 < states < 4 * 200
        assert found.inference_merged is not None
    saved = [found.memory.saved_for_backward for found in (linear, lora, full)]
    assert saved == sorted(saved)
    assert saved[0] < 10_000 < saved[1]


def test_checkpointing_saves_less_and_computes_more() -> None:
    plain = measured("lora")
    card = card_of("lora", batch_size=8, hardware={"gradient_checkpointing": True})
    assert card.measured is not None
    assert card.measured.memory.saved_for_backward < plain.memory.saved_for_backward / 4
    assert card.measured.flops.training_step > plain.flops.training_step
    assert card.measured.flops.forward == plain.flops.forward


@pytest.mark.parametrize(
    "hardware",
    [
        {"fused_attention": False, "fused_optimizer": False, "channels_last": True},
        pytest.param({"precision": Precision.bf16}, marks=pytest.mark.slow),
        pytest.param({"precision": Precision.fp16}, marks=pytest.mark.slow),
    ],
)
def test_what_is_counted_does_not_depend_on_how_it_is_computed(hardware: dict) -> None:
    card = card_of("lora", batch_size=8, hardware=hardware)
    assert card.measured is not None, card.error
    assert card.measured.flops == measured("lora").flops


@pytest.mark.slow
def test_compiled() -> None:
    card = card_of("lora", batch_size=8, hardware={"compile": True})
    check(card)
    assert card.measured is not None
    assert card.measured.flops == measured("lora").flops
    same = measured("lora").memory.saved_for_backward
    assert card.measured.memory.saved_for_backward == same


def test_a_swin_of_any_size_and_a_vit_of_another_one() -> None:
    """A Swin keeps its windows of 7: its maps of 25 x 33 and 13 x 17 are padded."""
    swin = card_of("lora", backbone=TINY_SWIN, image_size=[100, 132])
    check(swin)
    vit = BackboneConfig("vit", "vit_tiny_patch16_224", "none", model_args={"depth": 1})
    check(card_of("lora", backbone=vit, image_size=[32, 48]))


def test_a_method_that_is_not_defined_on_the_backbone_gets_a_card() -> None:
    card = card_of("hst", backbone=TINY_SWIN)
    assert card.status is CardStatus.UNSUPPORTED
    assert card.measured is None
    assert card.error is not None
    assert "does not support swin" in card.error


def test_a_backbone_without_a_block_map_gets_a_card() -> None:
    card = card_of("lora", backbone=BackboneConfig("resnet", "resnet18", "none"))
    assert card.status is CardStatus.UNSUPPORTED
    assert card.error is not None
    assert "has no block map" in card.error


def test_memory_that_is_not_there_gets_a_card() -> None:
    """Twelve tebibytes of pictures."""
    card = card_of("linear", batch_size=10**9)
    assert card.status is CardStatus.OOM, card.error
    assert card.error is not None
    assert card.error.startswith("training step, cost.batch_size=1000000000: RuntimeError")


def test_an_error_is_told_with_what_was_being_done() -> None:
    wrong = BackboneConfig("wrong", DEMO.model, "none", model_args={"num_heads": 7})
    card = card_of("linear", backbone=wrong)
    assert card.status is CardStatus.FAILED
    assert card.error is not None
    assert card.error.startswith("building the model: ")


def test_blocks_of_steps_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that jumps: 3 blocks of 2 steps, of which the second takes ten times as long."""
    ticks = iter([0.0, 0.002, 1.0, 1.02, 2.0, 2.004])
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    steps = []
    timing = timed(lambda: steps.append(1), steps=6, blocks=3, batch_size=8, device=CPU)
    assert len(steps) == 6
    assert timing.blocks == pytest.approx([1.0, 10.0, 2.0])
    assert timing.median == pytest.approx(median([1.0, 10.0, 2.0]))
    assert (timing.low, timing.high) == pytest.approx((1.5, 6.0))
    assert timing.images_per_second == pytest.approx(8 / 0.002)
