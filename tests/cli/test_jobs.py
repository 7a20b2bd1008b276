"""Every combination of a sweep is looked at before the first job."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rich.console import Console

from tests.conftest import Cli
from tests.runs.test_sweep import TINY, results_of
from vpeft_bench.cli.flags import Line
from vpeft_bench.cli.jobs import MOST_JOBS, Axis, gathered, once_each
from vpeft_bench.cli.launch import RUN, _checked
from vpeft_bench.cli.overrides import check_overrides
from vpeft_bench.errors import ConfigError, IncompatibleProblem, Problem
from vpeft_bench.runs.validation import Seen

QUIET = Console(quiet=True)


def problems_of(*overrides: str, multirun: bool = True) -> str:
    return "\n".join(map(str, check_overrides(overrides, multirun=multirun).problems))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("+foo=1", "foo: no such key"),
        ("++foo=1", "foo: no such key"),
        ("+train.foo=1", "train.foo: no such key"),
        ("+seed=1", "without the +: seed="),
        ("~train.lr", "train.lr: cannot be taken out"),
        ("~seed=0", "seed: cannot be taken out"),
        ("~foo", "foo: no such key"),
        ("~logger", "logger=NAME chooses another"),
        ("+experiment=demo", "is a group"),
        ("data@here=demo/digits", "every group has its own"),
        ("train.lr=interval(0.1,1)", "interval(..) has no values to list"),
        ("seed=range(0,0)", "names no value"),
        ("seed=choice()", "empty choice"),
        ("seed=glob(*)", "only the choices of a group"),
        ("method=glob(zzz*)", "method=glob(zzz*): matches nothing"),
        ("method=interval(0,1)", "interval(..) has no values to list"),
        (f"seed=range(0,{MOST_JOBS + 5})", "a sweep has at most"),
        ("hydra/sweeper=optuna", "hydra/sweeper=optuna: no such choice"),
        ("hydra/launcher=optuna", "hydra/launcher=optuna: no such choice"),
        ("hydra/nothing=basic", "hydra/nothing: no such group"),
        ("hydra.xyz=1", "hydra.xyz"),
        ("hydra.job.chdir=maybe", "hydra.job.chdir=maybe"),
        ("hydra/launcher=basic,joblib", "cannot be swept"),
        ("results_dir=choice(a,b)", "is the place of the whole sweep"),
        ("results_dir=${nothing}", "results_dir: Interpolation key 'nothing' not found"),
        ("train.épochs=2", "train.épochs: no such key"),
        ("method.targets=[q,v", "cannot be read"),
        ("seed=", "seed="),
        ("=3", "is not an override"),
        ("train.lr", "is not an override"),
    ],
)
def test_one_problem_that_names_what_was_typed(override: str, expected: str) -> None:
    (problem,) = check_overrides([override]).problems
    assert expected in str(problem)
    assert "HYDRA_FULL_ERROR" not in str(problem)


@pytest.mark.parametrize(
    "override",
    ["+backbone.model_args.depths=[1,1]", "++seed=1", "+train.learning_rates.mine=0.1"],
)
def test_mappings_take_keys_of_ones_own(override: str) -> None:
    assert problems_of(override) == ""


def test_a_mapping_says_how_a_key_is_added() -> None:
    assert "+backbone.model_args.depth=..." in problems_of("backbone.model_args.depth=3")


def test_globs_reach_into_folders() -> None:
    checked = check_overrides(["data=glob(demo/di*)", "method=glob(lo*)"])
    assert checked.problems == []
    values = {axis.key: axis.values for axis in checked.jobs.axes}
    assert "demo/digits" in values["data"]
    assert "lora" in values["method"]
    assert not any("/" in name for name in values["method"])  # * stays within a folder


def test_a_wrong_value_of_a_sweep_starts_nothing(cli: Cli, tmp_path: Path) -> None:
    done = cli("-m", "method=linear", "seed=range(0,3)", "train.epochs=0,1")
    assert done.returncode == 2
    assert "train.epochs=0: out of range" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_some_combinations_lack_is_told_with_them(tmp_path: Path) -> None:
    line = Line(
        [
            "method=linear,lora",
            "data=demo/digits,vtab1k/cifar",
            f"data.root={tmp_path}",
            "seed=0,1",
        ],
        multirun=True,
    )
    with pytest.raises(ConfigError) as caught:
        _checked(line, RUN, QUIET)
    (problem,) = caught.value.problems
    assert "no such folder" in problem.what
    assert str(tmp_path) in problem.what
    assert problem.where == "data=vtab1k/cifar"


def test_combinations_are_named_as_shortly_as_they_can_be() -> None:
    axes = [Axis("method", ("a", "b", "c")), Axis("data", ("x", "y")), Axis("seed", ("0", "1"))]

    def told(*hits: str) -> list[str]:
        found = [
            ({"method": m, "data": d, "seed": s}, [Problem("here", "wrong")] * (f"{m}{d}" in hits))
            for m in "abc"
            for d in "xy"
            for s in "01"
        ]
        return [problem.where for problem in gathered(found, axes)]

    assert told() == []
    assert told("ax", "ay", "bx", "by", "cx", "cy") == ["here"]
    assert told("ax", "ay") == ["here with method=a"]
    assert told("ax", "bx") == ["here with method=a,b data=x"]
    (where,) = told("ax", "by", "cx", "cy")
    assert where.endswith("; and 5 more combinations")


def test_equal_runs_are_asked_for_once() -> None:
    overrides = ["method=lora,lora", "method.alpha=8,8.0", "method.rank=4,8", "seed=0,0,1"]
    kept, told = once_each(check_overrides(overrides).jobs, RUN.identity)
    assert {axis.key: axis.values for axis in kept} == {
        "method": ("lora",),
        "method.alpha": ("8",),
        "method.rank": ("4", "8"),
        "seed": ("0", "1"),
    }
    (problem,) = told
    assert str(problem).startswith("method.alpha=8.0: asks for the same runs as method.alpha=8;")


def test_what_is_no_part_of_a_run_makes_no_second_one() -> None:
    kept, _ = once_each(check_overrides(["hardware.threads=1,2"]).jobs, RUN.identity)
    assert kept == [Axis("hardware.threads", ("1",))]
    again = check_overrides(["hardware.threads=1,2", "rerun=true"])
    assert len(once_each(again.jobs, RUN.identity)[0][0].values) == 2
    elsewhere = check_overrides(["data.root=/a,/b", "data=imagelist"])
    (root,) = (a for a in once_each(elsewhere.jobs, RUN.identity)[0] if a.key == "data.root")
    assert len(root.values) == 2


def test_equal_jobs_are_one_job(cli: Cli, tiny_data: Path) -> None:
    done = cli(
        *("-m", "method=linear", "seed=0,0", "train.batch_size=50"),
        *("data=imagelist", f"data.root={tiny_data}", "train.epochs=1", "hardware.threads=1"),
    )
    assert done.returncode == 0, done.stderr
    assert results_of(done.stdout) == ["done"]
    assert "1 done" in done.stdout
    assert "skipped" not in done.stdout


def test_a_sweep_of_nothing_but_incompatible_choices_is_refused() -> None:
    line = Line(["method=hst,noah", "backbone=swin_b", "backbone.weights=none"], multirun=True)
    with pytest.raises(ConfigError) as caught:
        _checked(line, RUN, QUIET)
    assert all(isinstance(problem, IncompatibleProblem) for problem in caught.value.problems)
    assert len(caught.value.problems) == 2


def test_jobs_elsewhere_are_not_held_to_this_machine(tmp_path: Path) -> None:
    checked = check_overrides(["data=vtab1k/cifar", f"data.root={tmp_path}", "hardware=gpu"])
    config = checked.jobs.valid[0].config
    assert list(RUN.problems(config, Seen(), True)) == []
    assert list(RUN.problems(config, Seen(), False)) != []


def test_odd_places_of_a_sweep(cli: Cli, tmp_path: Path, tiny_data: Path) -> None:
    place = tmp_path / "it's (b),=[ü]"
    done = cli(
        *("-m", "method=linear", "seed=0,1", "data=imagelist", f"data.root={tiny_data}"),
        *(f"results_dir={place}", *TINY),
    )
    assert results_of(done.stdout) == ["done", "done"], done.stdout + done.stderr
    assert {path.name for path in place.iterdir()} == {"final", "sweeps"}
    # Rows say what varies, the line above them what does not.
    assert re.search(r"│ seed=0 +│ done", done.stdout)
    assert "\nsweep: method=linear data=imagelist " in done.stdout


@pytest.mark.parametrize("multirun", [[], ["-m", "seed=0,1"]])
def test_a_file_in_place_of_a_folder(cli: Cli, tmp_path: Path, multirun: list[str]) -> None:
    (tmp_path / "file").write_text("")
    done = cli(*multirun, "method=linear", "results_dir=file/below")
    assert done.returncode == 2
    assert f"{tmp_path / 'file'} is a file, not a folder" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("plus", ["", "+"])
def test_keys_of_a_timm_model_are_added_one_by_one(plus: str) -> None:
    (problem,) = check_overrides([f"{plus}backbone.model_args={{depth:2,num_heads:3}}"]).problems
    assert problem.fix == "+backbone.model_args.depth=2 +backbone.model_args.num_heads=3"
    assert check_overrides(problem.fix.split()).problems == []


def test_a_value_that_is_not_set_is_told_as_it_is_typed() -> None:
    (problem,) = check_overrides(["data.per_class=all"], multirun=False).problems
    assert "now: data.per_class=null" in problem.fix
