"""Runs, deltas and cost cards from before an option existed stay what they were."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, make_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_models import build

import vpeft_bench
from tests.leaderboard.as_rows import cells
from vpeft_bench import always_counted
from vpeft_bench.attaching.delta import HEADER_KEY
from vpeft_bench.backbones.load import traits_of
from vpeft_bench.cli.overrides import check_overrides
from vpeft_bench.config.identity import config_hash
from vpeft_bench.config.schema import RunConfig, from_plain, plain, typed
from vpeft_bench.config.sections import BackboneConfig, HeadConfig, InputConfig
from vpeft_bench.cost.request import request_of
from vpeft_bench.errors import DeltaMismatchError
from vpeft_bench.fields import neutral
from vpeft_bench.methods.base import Method, option
from vpeft_bench.methods.names import METHODS
from vpeft_bench.methods.registry import build_method, list_methods, method_class, option_problems
from vpeft_bench.records.run_record import find
from vpeft_bench.records.upgrades import _ADDED_BY_THEN, uncounted
from vpeft_bench.runs.run import Result, run
from vpeft_bench.runs.shown import reopen, show

MODELS = {"vit": "vit_base_patch16_224", "swin": "swin_base_patch4_window7_224"}
OF_VERSION_5 = json.loads(
    Path(__file__).with_name("identities_of_version_5.json").read_text(encoding="utf-8")
)


def config_of(name: str, family: str, **changes: Any) -> RunConfig:
    method = {"name": name, **build_method(name, changes).options()}
    return RunConfig(backbone=BackboneConfig("b", MODELS[family]), method=method)


def identity(config: RunConfig, family: str) -> str:
    options = dict(config.method)
    method = build_method(options.pop("name"), options)
    return config_hash(
        config, "d", "w", method.uncounted(traits_of(MODELS[family])), method.version
    )


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("name", sorted({key.split()[0] for key in OF_VERSION_5}))
def test_what_was_named_once_keeps_its_name(name: str, family: str) -> None:
    """Hashes as version 5 of the record had them; whatever changes one orphans what was made."""
    config = config_of(name, family)
    dense = replace(config, head=HeadConfig("x"), input=InputConfig(), seed=3)
    assert identity(config, family) == OF_VERSION_5[f"{name} {family}"]
    assert identity(dense, family) == OF_VERSION_5[f"{name} {family} dense"]
    card = request_of(config).card_id("dev")
    assert card.split("/")[-1] == OF_VERSION_5[f"{name} {family} card"]


def test_all_options_are_counted_or_have_a_valid_neutral_value() -> None:
    for name in list_methods():
        always = always_counted.options(name)
        assert always <= {one.name for one in fields(method_class(name))}, name
        later = {f.name: neutral(f) for f in fields(method_class(name)) if f.name not in always}
        assert option_problems(name, later) == []


@pytest.mark.parametrize("name", _ADDED_BY_THEN)
@pytest.mark.parametrize("family", MODELS)
def test_records_of_that_time_leave_out_what_methods_say(name: str, family: str) -> None:
    options: list[dict[str, Any]] = [{}]
    options += [{o: added["neutral"]} for o, added in _ADDED_BY_THEN[name].items()]
    options += [added["where"] for added in _ADDED_BY_THEN[name].values() if "where" in added]
    for changes in options:
        config = config_of(name, family, **changes)
        assert uncounted(plain(config)) == build_method(name, changes).uncounted(
            traits_of(MODELS[family])
        )


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
    today = config_of(name, family, **changes)
    always = {"name", *always_counted.options(name)}
    then = replace(today, method={k: v for k, v in today.method.items() if k in always})
    assert (config_hash(then, "d", "w") == identity(today, family)) is same


def test_a_record_asks_for_what_was_done_then() -> None:
    today = config_of("ssf", "swin")
    then = {key: value for key, value in today.method.items() if key != "merge_norms"}
    assert from_plain(plain(replace(today, method=then))).method == {**then, "merge_norms": True}


def test_another_version_of_a_method_is_another_experiment() -> None:
    config = config_of("lora", "vit")
    assert config_hash(config, "d", "w", (), 2) != config_hash(config, "d", "w", (), 1)
    request = request_of(config)
    assert replace(request, method_version=2).card_id("dev") != request.card_id("dev")


# ---- deltas -------------------------------------------------------------------------------------


def without(path: Path, options: set[str]) -> None:
    """Take what came later out of a delta's header."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()[HEADER_KEY])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    kept = {k: v for k, v in json.loads(header["options"]).items() if k not in options}
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
    without(path, set(_ADDED_BY_THEN[name]))
    attached = vpeft_bench.attach(build(family), name, **then)
    attached.load(path)
    for own, stored in zip(
        attached.trainable_parameters(), source.trainable_parameters(), strict=True
    ):
        assert torch.equal(own, stored)
    if then:  # the function of today is another one
        with pytest.raises(DeltaMismatchError, match="options: file"):
            vpeft_bench.attach(build(family), name).load(path)


# ---- an option that is added today --------------------------------------------------------------


@pytest.fixture
def with_halve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Lora as it would be with one more line in its file."""
    lora = method_class("lora")

    def add() -> type[Method]:
        added = option(False, "halve the update")
        longer = make_dataclass("Lora", [("halve", bool, added)], bases=(lora,))
        longer.__doc__ = lora.__doc__
        monkeypatch.setitem(METHODS._things, "lora", longer)
        return longer

    return add


def test_an_option_added_later_orphans_nothing(
    with_halve: Any, tiny_data: Path, tmp_path: Path
) -> None:
    """The run is skipped, its delta loaded, its row and its card kept; another value is new."""
    asked = [
        *("data=imagelist", f"data.root={tiny_data}", "method=lora", "train.epochs=1"),
        *("hardware=cpu", f"results_dir={tmp_path}"),
    ]
    checked = check_overrides(asked)
    assert checked.config is not None, checked.problems
    config = typed(checked.config)
    console = Console(quiet=True)
    first = run(config, console)
    card = request_of(config).card_id("dev")

    with_halve()
    again = run(config, console)
    assert again.result is Result.SKIPPED
    assert again.directory == first.directory
    assert show(reopen(first.directory), pictures=1, out=tmp_path / "shown.png").picture.is_file()
    assert request_of(config).card_id("dev") == card

    halved = replace(config, method={**config.method, "halve": True})
    other = run(halved, console)
    assert other.result is Result.DONE
    plainly = run(replace(config, seed=1), console)
    assert plainly.directory.parent == first.directory.parent
    assert plainly.record is not None
    assert plainly.record.asked["method"]["halve"] is False
    made = cells(*(record for _, record in find([tmp_path]).records))
    assert sorted(made["n"] + made["failed"]) == [1, 2]
    assert ["halve=true" in options for options in made["options"]].count(True) == 1
