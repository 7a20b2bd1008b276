from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.leaderboard.as_rows import Row, cells, datasets, gather_cards, in_file, in_print
from tests.leaderboard.conftest import CPU
from vpeft_bench.leaderboard.tables import Table, cost_table
from vpeft_bench.records.cost_card import CardStatus, CostCard
from vpeft_bench.records.run_record import RunRecord

Card = Callable[..., CostCard]
Run = Callable[..., RunRecord]


def costs(*cards: CostCard) -> Table:
    found = gather_cards(*cards)
    assert not found.left_out
    return cost_table(found.rows)


def test_a_file_has_every_number_as_the_card_has_it(card: Card) -> None:
    (line,) = in_file(costs(card(step_ms=128.0625)))
    wanted = {
        "status": "ok",
        "method": "lora",
        "options": "rank=8",
        "backbone": "demo_vit",
        "precision": "fp32",
        "batch_size": "64",
        "device": "NVIDIA H100 80GB HBM3",
        "device_kind": "cuda",
        "device_driver": "550.54",
        "device_power_limit_watts": "700",
        "parameters_method": "294912",
        "parameters_head": "76900",
        "parameters_total": "371812",
        "parameters_model": "86170468",
        "stored_delta_bytes": "1179648",
        "forward_flops_per_image": "35201000000",
        "train_step_flops_per_image": "70500000001",
        "plain_forward_flops_per_image": "35128000000",
        "closed_form_forward_flops_per_image": "35127656448",
        "train_step_ms_median": "128.0625",
        "train_step_ms_q1": repr(128.0625 * 0.995),
        "train_step_ms_q3": repr(128.0625 * 1.005),
        "train_step_ms_iqr": "1.280625",
        "train_step_images_per_second": repr(64 / 128.0625 * 1000),
        "inference_ms_median": "60",
        "merged_inference_ms_median": "50",
        "merged_inference_images_per_second": "2560",
        "peak_allocated_bytes": "7865036296",
        "peak_reserved_bytes": "8133471752",
        "peak_resident_growth_bytes": "",
        "weights_bytes": "344409432",
        "gradients_bytes": "1478032",
        "optimizer_state_bytes": "2956064",
        "activations_bytes": "7516192768",
        "saved_for_backward_bytes": "6442450944",
        "train_joules_per_image": "0.123456789",
    }
    assert {name: line[name] for name in wanted} == wanted


def test_a_reader_gets_units_and_three_digits(card: Card) -> None:
    (row,) = in_print(costs(card(labels=("demo backbone",))))
    wanted = {
        "method": "lora",
        "params": "294,912",
        "head params": "76,900",
        "all params": "371,812",
        "stored KiB": "1,152",
        "GFLOPs fwd": "35.2",
        "GFLOPs step": "70.5",
        "step ms": "128",
        "IQR ms": "1.28",
        "images/s": "500",
        "infer images/s": "2,133",
        "merged images/s": "2,560",
        "allocated MiB": "7,501",
        "reserved MiB": "7,757",
        "resident MiB": "",
        "weights MiB": "328",
        "gradients MiB": "1.41",
        "optimizer MiB": "2.82",
        "activations MiB": "7,168",
        "saved MiB": "6,144",
        "J/image": "0.123",
        "notes": "demo backbone",
        "error": "",
    }
    assert {name: row[name] for name in wanted} == wanted


def test_two_ways_to_measure_a_peak_never_share_a_column(run: Run, card: Card) -> None:
    both = costs(card(device=CPU), card())
    names = ("peak_allocated_bytes", "peak_reserved_bytes", "peak_resident_growth_bytes")
    assert [[bool(line[name]) for name in names] for line in in_file(both)] == [
        [False, False, True],
        [True, True, False],
    ]
    names = ("allocated MiB", "reserved MiB", "resident MiB")
    assert [[bool(row[name]) for name in names] for row in in_print(both)] == [
        [False, False, True],
        [True, True, False],
    ]
    # Beside a metric they do in print, where all cards are of one device.
    found = datasets(cells(run(), cards=[card(device=CPU)]))
    (line,), (row,) = in_file(found), in_print(found)
    assert line["card_peak_allocated_bytes"] == ""
    assert line["card_peak_resident_growth_bytes"] == "7865036296"
    assert row["card peak MiB"] == "7,501"


@pytest.mark.parametrize(
    "status", [CardStatus.OOM, CardStatus.UNSUPPORTED, CardStatus.FAILED], ids=str
)
def test_what_could_not_be_measured_stays_a_row_without_a_number(
    card: Card, status: CardStatus
) -> None:
    found = costs(card(status=status, error="too\n large"))
    (line,), (row,) = in_file(found), in_print(found)
    assert (line["status"], line["error"]) == (status, "too large")
    assert (row["status"], row["error"]) == (status, "too large")
    words = ("_bytes", "_flops", "_ms_", "_per_", "parameters_")
    measured = [name for name in line if any(word in name for word in words)]
    assert len(measured) > 25
    assert {line[name] for name in measured} == {""}
    assert "0" not in {row[name] for name in row}


def test_what_a_device_cannot_tell_is_empty_and_never_zero(card: Card) -> None:
    found = costs(card(method="ssf", device=CPU))
    (line,), (row,) = in_file(found), in_print(found)
    for name in ("train_joules_per_image", "merged_inference_images_per_second"):
        assert line[name] == ""
    assert (row["J/image"], row["merged images/s"]) == ("–", "–")
    assert line["merge_refusal"] == "ssf cannot be merged"
    assert line["energy_note"] == "a CPU reports none"


def test_settings_that_print_alike_are_told_apart(card: Card) -> None:
    compiled = card(hardware={"compile": True}, cost={"warmup_steps": None})
    rows = in_print(costs(card(), compiled))
    assert {row["hardware"]: row["setting"] for row in rows} == {
        "compile=false": "hardware.compile=false",
        "compile=true": "cost.warmup_steps=null hardware.compile=true",
    }


def test_the_resolution_is_the_one_asked_for(card: Card) -> None:
    def resolution(one: CostCard) -> str:
        (row,) = in_print(costs(one))
        return row["resolution"]

    assert resolution(card()) == "224 x 224 px"
    assert resolution(card(network={"image_size": 224})) == "224 x 224 px"
    assert resolution(card(cost={"image_size": [800, 1344]})) == "800 x 1344 px"
    both = {"network": {"image_size": 224}, "cost": {"image_size": [384, 384]}}
    assert resolution(card(**both)) == "384 x 384 px"


def test_card_columns_without_a_card_or_a_measurement(run: Run, card: Card) -> None:
    def beside(*cards: CostCard) -> Row:
        (line,) = in_file(datasets(cells(run(), cards=cards)))
        return {name: text for name, text in line.items() if name.startswith("card_")}

    assert set(beside().values()) == {""}
    assert set(beside(card(status=CardStatus.OOM)).values()) == {""}
    line = beside(card(), card(method="ssf", status=CardStatus.OOM))
    assert line["card_train_step_ms_median"] == "128"
    assert line["card_device"] == "NVIDIA H100 80GB HBM3"
    assert line["card_id"] != ""
