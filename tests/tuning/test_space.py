"""The space of every method, and points in an order that is the same for all."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.running import config_of
from vpeft_bench.catalogue import facts
from vpeft_bench.errors import ConfigError
from vpeft_bench.methods.registry import build_method, list_methods
from vpeft_bench.tuning.space import (
    OWN,
    at_point,
    defaults_of,
    fixed_problems,
    searchable,
    sequence,
    space_of,
    value_at,
)


def test_a_budget_is_the_beginning_of_a_larger_one() -> None:
    assert sequence(3) == sequence(8)[:3] == sequence(100)[:3]
    assert len(set(sequence(64))) == 64
    # As it was when searches were first recorded: another sequence would be another search.
    assert [round(u, 6) for u in sequence(2)[1]] == [0.656363, 0.263797, 0.485971, 0.34778]


def test_the_kth_point_is_the_same_for_every_method() -> None:
    """Learning rate and weight decay are the same multiples of the default."""
    factors = []
    for method in ("linear", "lora", "convpass"):
        config = config_of(f"method={method}")
        space = space_of(config)
        point, defaults = space.point(5, defaults_of(config, space)), defaults_of(config, space)
        factors.append([point[k] / defaults[k] for k in ("train.lr", "train.weight_decay")])
    assert factors[1] == pytest.approx(factors[0], rel=0.01)
    assert factors[2] == pytest.approx(factors[0], rel=0.01)


def test_point_0_is_the_default_configuration() -> None:
    for method in ("ssf", "lora", "adaptformer"):
        config = config_of(f"method={method}")
        assert at_point(config, 0) == config
        assert at_point(config, 1) != config


def test_numbers_stay_within_a_decade_of_the_default() -> None:
    config = config_of("method=ssf")
    space = space_of(config)
    defaults = defaults_of(config, space)
    points = [space.point(number, defaults) for number in range(64)]
    rates = sorted(point["train.lr"] / defaults["train.lr"] for point in points)
    decays = sorted(p["train.weight_decay"] / defaults["train.weight_decay"] for p in points)
    assert 0.1 <= rates[0] < 0.15 < 7 < rates[-1] <= 10
    assert 0.1 <= decays[0] < 0.15 < 70 < decays[-1] <= 100
    distances = [space.distance(point, defaults) for point in points]
    assert distances[0] == 0
    assert all(0 < distance <= 1 for distance in distances[1:])
    without = config_of("method=ssf", "train.weight_decay=0")
    assert at_point(without, 1).train.weight_decay == at_point(config, 1).train.weight_decay


@pytest.mark.parametrize("method", list_methods())
def test_what_methods_declare_can_be_searched(method: str) -> None:
    """At most two options; each value is valid; the default is one of them, and two differ."""
    options = [option for option in facts.method(method).options if option.search]
    assert len(options) <= OWN
    for option in options:
        assert option.value in option.search
        assert len(set(option.search)) == len(option.search) >= 2
        for value in option.search:
            build_method(method, {option.name: value})
    assert searchable(method)[:2] == ["train.lr", "train.weight_decay"]
    if method in ("linear", "full", "bitfit", "ssf", "ln_tune"):
        assert not options


def test_what_is_fixed_is_not_searched_and_the_hash_says_so() -> None:
    whole = space_of(config_of("method=convpass"))
    config = config_of("method=convpass", "method.scale=0.1", "tune.fixed=[method.scale]")
    part = space_of(config)
    assert part.keys == ["train.lr", "train.weight_decay", "method.bottleneck"]
    assert part.hash != whole.hash
    assert space_of(config_of("method=linear")).hash == space_of(config_of("method=ssf")).hash
    for number in range(1, 8):
        assert at_point(config, number).method["scale"] == 0.1
        # The other settings are those of the whole space.
        same = at_point(config_of("method=convpass"), number)
        for key in part.keys:
            assert value_at(at_point(config, number), key) == value_at(same, key)
    odd = space_of(config_of("method=lora", "method.rank=5"))  # as a file of one's own may say
    assert odd.keys == ["train.lr", "train.weight_decay"]


def test_what_cannot_be_fixed() -> None:
    """A key that no method of the command searches; one that another method searches can."""
    (problem,) = fixed_problems(["train.lrr"], ["lora"])
    assert problem.where == "tune.fixed=[train.lrr]"
    assert "did you mean tune.fixed=[train.lr]" in problem.fix
    (problem,) = fixed_problems(["method.scale"], ["lora", "ssf"])
    assert "searched for lora, ssf: train.lr, train.weight_decay, method.rank" in problem.fix
    assert not list(fixed_problems(["method.scale"], ["lora", "convpass"]))
    everything = "tune.fixed=[train.lr,train.weight_decay,method.rank]"
    with pytest.raises(ConfigError, match="leaves nothing to search"):
        space_of(config_of("method=lora", everything))


def test_the_space_is_known_without_torch() -> None:
    code = (
        "import sys; from vpeft_bench.tuning.space import searchable; print(searchable('lora')); "
        "assert not {'torch', 'scipy'} & {*sys.modules}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "method.rank" in done.stdout
