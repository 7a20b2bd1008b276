"""Options of methods: what is wrong is said at once, with what to type instead."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

import vpeft_bench
from vpeft_bench.errors import MethodOptionError
from vpeft_bench.methods.base import default_options
from vpeft_bench.methods.registry import build_method, method_class, option_problems


def problem(method: str, **options: Any) -> str:
    with pytest.raises(MethodOptionError) as error:
        build_method(method, options)
    (only,) = error.value.problems
    return str(only)


@pytest.mark.parametrize("name", vpeft_bench.list_methods())
def test_defaults_are_valid(name: str) -> None:
    defaults = default_options(method_class(name))
    assert option_problems(name, defaults) == []
    assert build_method(name, {}).options() == defaults
    assert build_method(name, defaults).options() == defaults


def test_every_problem_is_reported_at_once() -> None:
    with pytest.raises(MethodOptionError) as error:
        build_method("lora", {"rank": 0, "targets": ["w"], "initial": "vpb", "dropout": 2})
    text = str(error.value)
    assert text.startswith("4 problems")
    for part in ("method.rank=0", "method.targets=['w']", "method.initial", "method.dropout=2"):
        assert part in text


def test_nothing_is_attached_then() -> None:
    from tiny_models import build  # only this test needs a model

    model = build("vit")
    with pytest.raises(MethodOptionError):
        vpeft_bench.attach(model, "lora", rank=-1)
    with pytest.raises(MethodOptionError):
        vpeft_bench.attach(model, "lore")
    vpeft_bench.attach(model, "lora", rank=1)


def test_unknown_method_names_the_nearest() -> None:
    with pytest.raises(MethodOptionError) as error:
        build_method("adapt_former", {})
    text = str(error.value)
    assert "method=adapt_former" in text
    assert "did you mean method=adaptformer" in text
    assert all(name in text for name in vpeft_bench.list_methods())


def test_unknown_option_names_the_nearest_and_all() -> None:
    text = problem("adapter", botleneck=4)
    assert "did you mean method.bottleneck=" in text
    assert "options: bottleneck, placement, last_blocks, init" in text
    far = problem("adapter", zzz=4)
    assert "did you mean" not in far
    assert "\n\n" not in far
    assert "      \n" not in far
    assert "options: none" in problem("linear", rank=4)


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        ("lora", {"rank": 0}, "must be at least 1"),
        ("lora", {"rank": 2.5}, "must be of type int"),
        ("lora", {"rank": "8"}, "must be of type int"),
        ("lora", {"rank": True}, "must be of type int"),
        ("lora", {"rank": None}, "must not be null"),
        ("lora", {"alpha": "8"}, "must be a number"),
        ("lora", {"alpha": True}, "must be a number"),
        ("lora", {"alpha": -1}, "must be at least 0"),
        ("lora", {"alpha": float("nan")}, "must be finite"),
        ("adaptformer", {"scale": float("inf")}, "must be finite"),
        ("lora", {"dropout": 1.5}, "must be between 0 and 1"),
        ("lora", {"init": "vbp"}, "must be one of standard, vpb (did you mean vpb?)"),
        ("lora", {"init": 3}, "must be of type str"),
        ("lora", {"targets": []}, "must be a non-empty list"),
        ("lora", {"targets": "q"}, "must be a non-empty list"),
        ("lora", {"targets": ["q", "w"]}, "['w'] not in ['q', 'k', 'v', 'qkv'"),
        ("lora", {"targets": ["q", "q"]}, "names something twice"),
        ("lora", {"targets": [["q"]]}, "must hold items of type str"),
        ("lora", {"targets": [1, 1]}, "must hold items of type str"),
        ("bitfit", {"relative_position_bias": 1}, "must be of type bool"),
        ("vpt_deep", {"projection_width": 0}, "must be at least 1"),
    ],
)
def test_wrong_value(method: str, options: dict[str, Any], says: str) -> None:
    text = problem(method, **options)
    ((key, value),) = options.items()
    assert text.startswith(f"method.{key}={value}: ")
    assert says in text
    assert f"default: method.{key}={default_options(method_class(method))[key]}" in text


def test_null_where_it_means_something() -> None:
    assert build_method("lora", {"alpha": None}).options()["alpha"] is None
    assert build_method("adapter", {"last_blocks": None}).options()["last_blocks"] is None


def test_a_whole_number_for_a_real_one_is_the_same_method() -> None:
    whole, real = (build_method("lora", {"alpha": alpha}) for alpha in (8, 8.0))
    assert repr(whole.options()) == repr(real.options())


def test_lists_are_not_shared_between_instances() -> None:
    first, second = build_method("lora", {}), build_method("lora", {})
    first.options()["targets"].append("k")
    assert second.options()["targets"] == ["q", "v"]


def test_errors_survive_being_sent_between_processes() -> None:
    with pytest.raises(MethodOptionError) as error:
        build_method("lora", {"rank": 0, "alpha": -1})
    twin = pickle.loads(pickle.dumps(error.value))
    assert str(twin) == str(error.value)
    assert twin.problems == error.value.problems
