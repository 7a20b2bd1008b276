"""Runs and deltas from before an option existed stay what they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_models import build

import vpeft_bench
from vpeft_bench.added_options import ADDED, completed, family_of
from vpeft_bench.attachment import HEADER_KEY
from vpeft_bench.config import BackboneConfig, RunConfig, config_hash, from_plain, plain
from vpeft_bench.errors import DeltaMismatchError
from vpeft_bench.leaderboard.cells import method_in
from vpeft_bench.methods.base import default_options
from vpeft_bench.methods.registry import method_class, option_problems

MODELS = {"vit": "vit_base_patch16_224", "swin": "swin_base_patch4_window7_224"}


@pytest.mark.parametrize("name", ADDED)
def test_what_was_added_is_an_option_with_a_valid_value(name: str) -> None:
    assert set(ADDED[name]) <= set(default_options(method_class(name)))
    assert option_problems(name, {o: added.before for o, added in ADDED[name].items()}) == []
    others = {o for added in ADDED[name].values() for o in added.where}
    assert others <= set(default_options(method_class(name)))


def test_families_are_known_by_name() -> None:
    assert all(family_of(name) == "swin" for name in timm.list_models(module="swin_transformer"))
    assert all(family_of(name) == "vit" for name in timm.list_models(module="vision_transformer"))


def identity(method: dict[str, Any], family: str) -> str:
    backbone = BackboneConfig(name=family, model=MODELS[family])
    return config_hash(RunConfig(backbone=backbone, method=method), "data", "weights")


def recorded(name: str, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A method as recorded before the options came, and the same request today."""
    today = {"name": name, **default_options(method_class(name)), **changes}
    return {key: value for key, value in today.items() if key not in ADDED[name]}, today


@pytest.mark.parametrize(
    ("name", "changes", "family", "same"),
    [
        ("compacter", {}, "vit", True),
        ("compacter", {"activation": "gelu_tanh"}, "vit", False),
        ("compacter", {"phm_init_range": 1e-4}, "swin", False),
        ("compacter", {"unfreeze_layer_norms": True}, "vit", False),
        ("ssf", {}, "vit", True),
        ("ssf", {}, "swin", False),
        ("ssf", {"merge_norms": True}, "swin", True),
        ("spt", {}, "vit", True),
        ("spt", {"form": "adapter"}, "vit", False),
        ("spt", {"form": "adapter", "proj_reads": "output"}, "vit", True),
        ("synqt", {}, "vit", False),
        ("synqt", {"head_norm_eps": None}, "vit", True),
    ],
)
def test_identity(name: str, changes: dict[str, Any], family: str, same: bool) -> None:
    """Kept where the function is what it was, and changed where the default is another one."""
    then, today = recorded(name, **changes)
    assert (identity(then, family) == identity(today, family)) is same
    shown = [
        method_in({"method": method, "backbone": {"model": MODELS[family]}})
        for method in (then, today)
    ]
    assert (shown[0] == shown[1]) is same


def test_a_record_asks_for_what_was_done_then() -> None:
    then, _ = recorded("ssf")
    asked = plain(RunConfig(backbone=BackboneConfig("b", MODELS["swin"]), method=then))
    assert from_plain(asked).method == {**then, "merge_norms": True}
    assert completed({"name": "lora", "rank": 8}) == {"name": "lora", "rank": 8}


def test_a_table_says_what_was_done_then() -> None:
    then, _ = recorded("ssf")
    for family, options in (("swin", "init_std=0.02 merge_norms=true"), ("vit", "init_std=0.02")):
        asked = {"method": then, "backbone": {"model": MODELS[family]}}
        assert method_in(asked) == ("ssf", options)


def as_then(path: Path, name: str) -> None:
    """Take what came later out of a delta's header."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()[HEADER_KEY])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    options = json.loads(header["options"])
    kept = {key: value for key, value in options.items() if key not in ADDED[name]}
    header["options"] = json.dumps(kept, sort_keys=True)
    save_file(tensors, path, metadata={HEADER_KEY: json.dumps(header)})


@pytest.mark.parametrize(
    ("name", "family", "then"),
    [
        ("compacter", "vit", {}),
        ("ssf", "vit", {}),
        ("ssf", "swin", {"merge_norms": True}),
        ("synqt", "vit", {"head_norm_eps": None}),
    ],
)
def test_a_delta_of_that_time_is_loaded(
    name: str, family: str, then: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "delta.safetensors"
    source = vpeft_bench.attach(build(family), name, **then)
    source.save(path)
    as_then(path, name)
    attached = vpeft_bench.attach(build(family), name, **then)
    attached.load(path)
    for own, stored in zip(
        attached.trainable_parameters(), source.trainable_parameters(), strict=True
    ):
        assert torch.equal(own, stored)
    if then:  # the function of today is another one
        with pytest.raises(DeltaMismatchError, match="options: file"):
            vpeft_bench.attach(build(family), name).load(path)
