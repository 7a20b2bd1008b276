from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pandas as pd
import pytest

from tests.leaderboard.as_rows import gather_cards, joined, only
from tests.leaderboard.conftest import A100, CPU, H100
from vpeft_bench.leaderboard.cards import Joined, chosen
from vpeft_bench.records.cost_card import CardStatus, CostCard
from vpeft_bench.records.run_record import RunRecord, Weights, WeightsLabel

Run = Callable[..., RunRecord]
Card = Callable[..., CostCard]


def card_ids(both: Joined) -> list[str | None]:
    ids = both.cells["card_id"]
    return ids.astype(object).where(ids.notna(), None).tolist()


def test_a_card_joins_the_runs_of_its_method_on_every_data_set(run: Run, card: Card) -> None:
    names = ("demo/digits", "demo/sprites_count")
    records = [run(data=name, seed=seed) for name in names for seed in (0, 1)]
    (lora, ssf) = (card(), card(method="ssf"))
    both = joined([*records, run(method="linear")], [ssf, lora])
    of = zip(both.cells["method"], both.cells["data"], card_ids(both), strict=True)
    assert {(method, data): found for method, data, found in of} == {
        ("lora", names[0]): lora.card_id,
        ("lora", names[1]): lora.card_id,
        ("linear", names[0]): None,
    }
    assert {str(one): count for one, count in both.settings.items()} == {
        "NVIDIA H100 80GB HBM3, batch 64": 1
    }


@pytest.mark.parametrize(
    "difference",
    [
        {"method": "ssf"},
        {"options": {"rank": 4}},
        {"options": {"rank": 8.0}},
        {"backbone": "vit_b16"},
        {"network": {"model": "other"}},
        {"network": {"image_size": 64}},
        {"network": {"model_args": {"pos_embed": "none"}}},
        {"precision": "bf16"},
    ],
)
def test_a_card_of_something_else_does_not_join(
    run: Run, card: Card, difference: dict[str, object]
) -> None:
    for record, other in ((run(), card(**difference)), (run(**difference), card())):
        assert card_ids(joined([record], [other])) == [None]
    assert card_ids(joined([run(**difference)], [card(**difference)])) != [None]


def test_weights_do_not_matter_for_cost(run: Run, card: Card) -> None:
    weights = [Weights("hub", "sha256:1", WeightsLabel.PRETRAINED), None]
    both = joined([run(weights=weights[0]), run(weights=weights[1], seed=1)], [card()])
    assert None not in card_ids(both)


def test_a_card_says_nothing_of_a_dense_head_or_of_another_input_size(run: Run, card: Card) -> None:
    head = {"name": "upernet", "channels": 256}
    assert card_ids(joined([run(head=head)], [card()])) == [None]
    assert card_ids(joined([run()], [card(cost={"image_size": [800, 1344]})])) == [None]


def test_each_row_gets_the_card_of_its_precision(run: Run, card: Card) -> None:
    pair = [{"precision": precision} for precision in ("fp32", "bf16")]
    cards = {one["precision"]: card(**one).card_id for one in pair}
    both = joined([run(**one) for one in pair], [card(**one) for one in pair])
    assert card_ids(both) == [cards[precision] for precision in both.cells["precision"]]
    assert both.setting is not None


@pytest.mark.parametrize(
    "difference",
    [
        {"device": A100},
        {"device": CPU},
        {"batch_size": 32},
        {"hardware": {"compile": True}},
        {"hardware": {"threads": 4}},
        {"cost": {"steps": 100}},
        {"cost": {"inference_batch_size": 1}},
    ],
)
@pytest.mark.parametrize("same_method", [False, True])
def test_cards_of_several_settings_are_not_joined(
    run: Run, card: Card, difference: dict[str, object], same_method: bool
) -> None:
    other = card(method="lora" if same_method else "ssf", **difference)
    both = joined([run(), run(method="ssf")], [card(), other])
    assert card_ids(both) == [None, None]
    assert both.setting is None
    assert len(both.choices) == 2


def test_two_thread_counts_of_a_processor_are_two_settings(run: Run, card: Card) -> None:
    one_thread = dataclasses.replace(CPU, threads=1)
    both = joined([run()], [card(device=CPU), card(device=one_thread)])
    assert both.choices == [
        "--cards with only those of AMD EPYC 7B13, 1 thread, batch 64: 1 card",
        "--cards with only those of AMD EPYC 7B13, 2 threads, batch 64: 1 card",
    ]


def test_settings_of_cards_that_fit_no_run_do_not_matter(run: Run, card: Card) -> None:
    others = [card(method="ssf", device=A100), card(backbone="vit_b16", batch_size=8)]
    assert card_ids(joined([run()], [card(), *others])) == [card().card_id]


def test_what_to_type_is_said(run: Run, card: Card) -> None:
    cards = [
        card(),
        card(batch_size=256),
        card(device=CPU),
        card(device=CPU, hardware={"compile": True}),
    ]
    assert joined([run()], cards).choices == [
        "--cards with only those of AMD EPYC 7B13, 2 threads, batch 64 hardware.compile=false: "
        "1 card",
        "--cards with only those of AMD EPYC 7B13, 2 threads, batch 64 hardware.compile=true: "
        "1 card",
        "--device 'NVIDIA H100 80GB HBM3' --batch 64: 1 card",
        "--device 'NVIDIA H100 80GB HBM3' --batch 256: 1 card",
    ]


def test_a_device_is_chosen_by_a_part_of_its_name_or_by_all_of_it(card: Card) -> None:
    longer = dataclasses.replace(H100, name=f"{H100.name} MIG")
    found = gather_cards(card(), card(device=longer), card(device=A100), card(batch_size=8)).rows

    def devices(part: str | None, batch_size: int | None) -> list[str]:
        return sorted(chosen(found, part, batch_size)["device"])

    assert devices("h100", 64) == [H100.name, longer.name]
    assert devices(H100.name, 64) == [H100.name]
    assert devices("nvidia", None) == sorted([A100.name, H100.name, H100.name, longer.name])
    assert devices(None, 8) == [H100.name]
    assert devices("B200", None) == devices("A100", 8) == []


def test_of_two_cards_of_one_setting_none_is_picked(run: Run, card: Card) -> None:
    cell = only(joined([run()], [card(), card(network={"drop_path": 0.1})]).cells)
    assert pd.isna(cell.card_id)
    assert cell.label_list == ("2 cards fit, none is shown",)


def test_a_method_that_ran_out_of_memory_says_so(run: Run, card: Card) -> None:
    both = joined([run(), run(method="full")], [card(), card(method="full", status=CardStatus.OOM)])
    labels = dict(zip(both.cells["method"], both.cells["label_list"], strict=True))
    assert labels == {"full": ("card: oom",), "lora": ()}


def test_a_setting_in_which_nothing_could_be_measured_does_not_block(run: Run, card: Card) -> None:
    too_large = card(batch_size=1024, status=CardStatus.OOM)
    assert card_ids(joined([run()], [card(), too_large])) == [card().card_id]


def test_what_only_the_card_says_is_marked_as_its(run: Run, card: Card) -> None:
    labels = ("demo backbone", "device in use by others")
    cell = only(joined([run(labels=labels[:1])], [card(labels=labels)]).cells)
    assert cell.label_list == ("card: device in use by others", "demo backbone")


def test_copies_count_once_and_the_newest_card_of_a_request_is_kept(card: Card) -> None:
    older = card(card_id="a", step_ms=1.0, finished="2026-01-02T03:04:05+00:00")
    newer = card(card_id="a", step_ms=2.0, finished="2026-01-02T04:04:05+00:00")
    for order in ([older, newer, older], [newer, older, older]):
        found = gather_cards(*order)
        assert [*found.rows["train_step_ms_median"]] == [2.0]
        assert found.copies == 1
        (problem,) = found.left_out
        assert "is a newer card a" in problem.what


def test_cards_come_in_one_order(card: Card) -> None:
    cards = [
        card(method=method, device=device, batch_size=batch_size)
        for device in (CPU, H100, None)
        for batch_size in (64, 8)
        for method in ("ssf", "lora")
    ]
    found = gather_cards(*cards).rows
    same = gather_cards(*reversed(cards)).rows
    assert found.drop(columns="file").equals(same.drop(columns="file"))
    settings = [*found["measured_with"]]
    assert settings == sorted(settings)
    assert len(set(settings)) == 6


def test_a_card_that_cannot_be_placed_is_left_out_with_its_reason(card: Card) -> None:
    def without(group: str) -> CostCard:
        asked = {name: value for name, value in card().asked.items() if name != group}
        return dataclasses.replace(card(), asked=asked)

    found = gather_cards(
        without("method"),
        without("backbone"),
        without("hardware"),
        without("cost"),
        card(cost={"batch_size": "many"}),
    )
    assert found.rows.empty
    assert [problem.what for problem in found.left_out] == [
        "left out: asked.method.name is missing",
        "left out: asked.backbone.name is missing",
        "left out: asked.hardware.precision is missing",
        "left out: asked.cost.batch_size is missing",
        "left out: asked.cost.batch_size is no whole number",
    ]
