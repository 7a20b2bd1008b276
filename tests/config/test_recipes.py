"""What is said of how the settings of a run were chosen."""

from __future__ import annotations

import pytest

from tests.running import config_of
from vpeft_bench.config.recipes import BY_HAND, UNTUNED, budget_of, how_chosen
from vpeft_bench.config.schema import plain

VIT = "data=vtab1k/cifar", "backbone=vit_b16"


def said(*overrides: str) -> str:
    return how_chosen(plain(config_of(*overrides)))


def test_a_recipe_speaks_for_the_methods_that_it_names() -> None:
    assert said("method=linear").startswith("tuned: 6 rates")
    assert said(*VIT, "method=vpt_deep").startswith("tuned: 4 points, OSU's grid")
    assert said(*VIT, "method=mona") == UNTUNED
    assert said(*VIT, "method=hf/lora") == UNTUNED
    assert said("data=vtab1k/cifar", "backbone=swin_b", "method=lora") == UNTUNED


@pytest.mark.parametrize(
    "change",
    ["train.lr=1e-4", "train.weight_decay=0.05", "train.optimizer=sgd", "train.lr_batch_size=256"],
)
def test_what_is_changed_on_the_command_line_is_by_hand(change: str) -> None:
    assert said(*VIT, "method=vpt_deep", change) == BY_HAND


def test_a_variant_speaks_for_itself() -> None:
    assert said(*VIT, "variant=lora/osu_fixed").startswith("tuned: 16 points")


def test_rate_and_decay_of_the_recipe_are_those_that_are_used() -> None:
    train = config_of(*VIT, "method=fact_tt").train
    assert (train.lr, train.weight_decay) == (1e-3, 1e-3)
    train = config_of(*VIT, "method=mona").train
    assert (train.lr, train.weight_decay) == (1e-3, 1e-4)


def test_an_older_record_says_nothing() -> None:
    older = plain(config_of("method=linear"))
    del older["train"]["recipe"]
    assert how_chosen(older) == ""


@pytest.mark.parametrize(
    ("chosen", "budget"),
    [
        ("tuned: 8 points, space 0a1b2c3d (sobol), best on val", "tuned: 8 points"),
        ("tuned: 8 points, space ffffffff (sobol), best on val", "tuned: 8 points"),
        ("tuned: 6 rates, best on val of demo/digits, seed 0", "tuned: 6 rates"),
        ("tuned: 36 points, OSU's grid, best on val, per data set", "tuned: 36 points"),
        ("published: V-PETL Bench@c188fad, run_vit_adapter.sh", "published"),
        ("by hand", "by hand"),
        ("untuned", "untuned"),
        ("", ""),
    ],
)
def test_a_budget_is_how_many_were_tried(chosen: str, budget: str) -> None:
    assert budget_of(chosen) == budget
