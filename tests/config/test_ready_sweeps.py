"""The sweeps that are ready: every method, a whole benchmark."""

from __future__ import annotations

import re
from math import prod

import pytest
from hydra import compose, initialize_config_dir

from vpeft_bench.cli.flags import Line
from vpeft_bench.cli.launch import RUN, _checked
from vpeft_bench.cli.overrides import check_overrides
from vpeft_bench.cli.plan import print_plan
from vpeft_bench.config.choices import config_dir
from vpeft_bench.config.schema import register_schema
from vpeft_bench.config.sources import methods_for
from vpeft_bench.errors import ConfigError
from vpeft_bench.methods.registry import method_class, own_methods
from vpeft_bench.runs import validation
from vpeft_bench.terminal import Terminal

SMALL = {
    "vtab1k": ("data=demo/digits", "backbone=demo_vit", "seed=0,1"),
    "fgvc": ("data=demo/digits", "backbone=demo_vit", "seed=0,1"),
    "demo": ("data=demo/digits", "seed=0,1"),
    "demo_dense": ("data=demo/scenes_detection", "seed=0,1"),
    "coco": (
        *("data=demo/scenes_instances", "backbone=demo_vit", "seed=0,1"),
        "input.longer_side=1333",
    ),
    "voc0712": ("data=demo/scenes_detection", "backbone=demo_vit", "seed=0,1"),
    "ade20k": ("data=demo/scenes_segmentation", "backbone=demo_vit", "seed=0,1"),
}
"""What of each is here: data and weights that come with the package."""


def test_each_has_an_example() -> None:
    files = (config_dir() / "experiment" / "all_methods").glob("*.yaml")
    assert {path.stem for path in files} == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_it_says_what_to_type_and_how_many_runs_there_are(name: str) -> None:
    register_schema()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose("config", [f"experiment=all_methods/{name}"], return_hydra_config=True)
    assert config.hydra.mode.name == "MULTIRUN"
    runs = prod(len(str(values).split(",")) for values in config.hydra.sweeper.params.values())
    text = (config_dir() / "experiment" / "all_methods" / f"{name}.yaml").read_text()
    [command] = re.findall(r"#   python -m vpeft_bench (\S+)", text)
    assert command == f"experiment=all_methods/{name}"
    assert f" {runs:,} runs" in text
    for part in ("# Without --plan it runs. Cost: ", "# Expect: "):
        assert part in text
    checked = check_overrides([command, "method=linear,lora"], multirun=False)
    assert checked.problems == []
    config = checked.jobs.valid[0].config
    assert [*validation._values(config), *validation._task(config)] == []


@pytest.mark.parametrize("name", SMALL)
def test_it_can_be_planned(
    name: str, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    place = f"results_dir={tmp_path_factory.mktemp('results')}"
    typed = [f"experiment=all_methods/{name}", "method=linear,lora", *SMALL[name], place]
    _, jobs = _checked(Line(typed, plan=True), RUN, Terminal(quiet=True))
    assert jobs is not None
    print_plan(jobs, Terminal(width=100))
    assert "4 jobs: 0 done, 4 to do; nothing was run" in capsys.readouterr().out


def test_the_methods_are_those_that_fit() -> None:
    assert methods_for("vit").split(",") == own_methods()
    swin = set(methods_for("swin").split(","))
    dense = set(methods_for("swin", "dense").split(","))
    assert {"mona", "lora", "full"} < dense < swin < {*own_methods()}
    assert all(method_class(name)().dense_refusal for name in swin - dense)
    for wrong in (("wit",), ("vit", "densely")):
        with pytest.raises(ConfigError):
            methods_for(*wrong)
