"""``python -m vpeft_bench tune``, from the command line to the variant and its final runs."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Cli
from tests.running import ON_CPU
from vpeft_bench.cli.tune import main, read_flags
from vpeft_bench.errors import ConfigError

SHAKY = '''
from dataclasses import dataclass
from vpeft_bench.errors import Problem
from vpeft_bench.methods.adaptformer import AdaptFormer
from vpeft_bench.methods.base import option
from vpeft_bench.methods.registry import register

@register
@dataclass
class Shaky(AdaptFormer):
    """Diverges at one scale, and refuses one mode."""

    name = "shaky"
    bottleneck: int = option(4, "width", minimum=1)
    scale: float = option(0.1, "s", search=(0.1, 1e300))
    mode: str = option("a", "how", choices=("a", "b", "c"), search=("a", "b", "c"))

    def conflicts(self):
        if self.mode == "c":
            yield Problem("method.mode=c", "makes no sense", "method.mode=a")
'''


PICKY = '''
from dataclasses import dataclass
from vpeft_bench.errors import Problem
from vpeft_bench.methods.base import option
from vpeft_bench.methods.linear import Linear
from vpeft_bench.methods.registry import register

@register
@dataclass
class Picky(Linear):
    """A linear probe that refuses one of its modes."""

    name = "picky"
    mode: str = option("a", "how", choices=("a", "b"), search=("a", "b"))

    def conflicts(self):
        if self.mode == "b":
            yield Problem("method.mode=b", "makes no sense", "method.mode=a")
'''


@pytest.fixture
def tiny(tiny_data: Path) -> tuple[str, ...]:
    """A tiny data set, for one epoch."""
    return (
        "data=imagelist",
        f"data.root={tiny_data}",
        "train.epochs=1",
        "train.batch_size=80",
        *ON_CPU,
    )


def records(place: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(place.rglob("record.json"))]


def variant(place: Path, name: str) -> dict[str, Any]:
    path = place / "results/runs/tuned/demo_vit/variant" / f"{name}.yaml"
    found: dict[str, Any] = yaml.safe_load(path.read_text())["variant"]
    return found


def test_points_are_runs_and_the_best_becomes_a_variant(
    cli: Cli, tmp_path: Path, tiny: tuple[str, ...]
) -> None:
    """A plain run is point 0; a larger budget runs what is new; the final runs bear the name."""
    plain = cli("method=linear", "protocol=select", *tiny)
    assert plain.returncode == 0, plain.stderr
    first = cli("tune", "method=linear", "tune.budget=2", *tiny)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "2 of 2 points tried, 0 failed, 1 run before" in first.stdout
    assert len(records(tmp_path)) == 2
    stored = sorted(path.parent.name for path in tmp_path.rglob("logits.parquet"))
    assert stored == ["predictions"] * 2

    second = cli("tune", "method=linear", "tune.budget=3", "--final", "seed=0,1", *tiny)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "3 of 3 points tried, 0 failed, 2 run before" in second.stdout
    found = records(tmp_path)
    select = [r for r in found if r["asked"]["protocol"]["name"] == "select"]
    final = [r for r in found if r["asked"]["protocol"]["name"] == "final"]
    assert {r["happened"]["last_epoch"]["split"] for r in select} == {"val"}
    assert {r["happened"]["last_epoch"]["split"] for r in final} == {"test"}
    assert sorted(r["asked"]["seed"] for r in final) == [0, 1]
    assert {r["variant"] for r in final} == {"linear/tuned@3"}

    told = variant(tmp_path, "linear/tuned@3")
    facts = told["tuning"]["per_data"]["imagelist"]
    assert told["chosen"].startswith(f"tuned: 3 points, space {told['tuning']['space']} (sobol)")
    assert (facts["tried"], facts["failed"], facts["metric"]) == (3, 0, "top1")
    hashes = {record["config_hash"] for record in select}
    assert set(facts["runs"]) == hashes
    seconds = [v for r in select for v in r["happened"]["seconds"].values() if v is not None]
    assert facts["seconds"] == pytest.approx(sum(seconds), abs=0.06)
    assert told["settings"] == {"train.epochs": 1, "train.batch_size": 80}
    chosen = next(r for r in select if r["config_hash"] == facts["runs"][facts["point"]])
    for record in final:  # what the table of a leaderboard can show
        assert record["asked"]["variant"]["tuning"] == told["tuning"]
        assert record["asked"]["train"]["lr"] == chosen["asked"]["train"]["lr"]
        assert record["asked"]["train"]["epochs"] == 1

    place = "results/runs/tuned/demo_vit"
    again = cli("--config-dir", place, "variant=linear/tuned@3", "seed=1", *tiny)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "skipped" in again.stdout
    other = cli("--config-dir", place, "variant=linear/tuned@3", "train.lr=0.5", *tiny)
    assert other.returncode == 2
    assert "variant=linear/tuned@3 sets train.lr=" in other.stderr

    taken = cli("tune", "method=linear", "tune.budget=3", "train.clip_norm=1", *tiny)
    assert taken.returncode == 2
    assert "is the variant of another search" in taken.stderr
    assert "tune.name=NAME" in taken.stderr


@pytest.mark.slow
def test_diverged_and_refused_points_count_as_tried(
    cli: Cli, tmp_path: Path, tiny: tuple[str, ...]
) -> None:
    """Of a plug-in's method; what diverged is not run again."""
    (tmp_path / "shaky.py").write_text(SHAKY)
    command = ("tune", "plugins=[./shaky.py]", "method=shaky", "tune.budget=4", *tiny)
    for reused in ("", ", 3 run before"):
        done = cli(*command)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"4 of 4 points tried, 2 failed{reused};" in done.stdout
        assert re.search(r"^ +1 .* diverged +$", done.stdout, re.MULTILINE)
        assert "point 1 diverged: the loss is not finite" in done.stdout
        assert "point 3 refused: method.mode=c: makes no sense" in done.stdout
    facts = variant(tmp_path, "shaky/tuned@4")["tuning"]["per_data"]["imagelist"]
    assert (facts["tried"], facts["failed"]) == (4, 2)
    assert [run is None for run in facts["runs"]] == [False, False, False, True]
    assert facts["point"] in (0, 2)

    every = cli(*command, "method.scale=1e300", "tune.name=hopeless", "--final")
    assert every.returncode == 1
    assert "nothing to choose: no point has a score" in every.stdout
    assert "fixed: method.scale" in every.stdout
    assert not list(tmp_path.rglob("hopeless.yaml"))


@pytest.mark.slow
def test_what_is_hopeless_on_five_data_sets_is_not_run_on_the_sixth(
    cli: Cli, tmp_path: Path, tiny: tuple[str, ...]
) -> None:
    """Point 1 is refused everywhere; the saved runs are told, and stand in the variant.

    The data are the same: of the other two points, the one that is worse there is worse on all.
    """
    (tmp_path / "picky.py").write_text(PICKY)
    names = ",".join(f"set{number}" for number in range(6))
    command = ("tune", "-m", "plugins=[./picky.py]", "method=picky", f"data.name={names}", *tiny)
    done = cli(*command, "tune.budget=3", "tune.stop_hopeless=true")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("3 of 3 points tried, 1 failed;") == 5
    told = re.search(r"(\d) of 3 points tried, 0 failed, (\d) given up;", done.stdout)
    assert told is not None, done.stdout
    tried, saved = map(int, told.groups())
    assert tried + saved == 3
    assert "point 1 given up: worse on 5 data sets, p = 0.031" in done.stdout
    facts = variant(tmp_path, "picky/tuned@3")["tuning"]["per_data"]
    assert [facts[f"set{number}"]["given_up"] for number in range(6)] == [*[0] * 5, saved]
    assert len(records(tmp_path)) == 10 + tried


@pytest.mark.slow
def test_in_parallel_over_data(cli: Cli, tmp_path: Path, tiny: tuple[str, ...]) -> None:
    """Every launcher gets every point as a job; names with odd characters are found again."""
    done = cli(
        *("tune", "-m", "method=linear", "data.name='my data (1)',other", "tune.budget=2"),
        *("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "--final", "seed=0", *tiny),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("2 of 2 points tried, 0 failed") == 2
    assert [*variant(tmp_path, "linear/tuned@2")["per_data"]] == ["my data (1)", "other"]
    assert "2 done" in done.stdout


def test_an_interrupted_search_goes_on(cli: Cli, tmp_path: Path, tiny: tuple[str, ...]) -> None:
    """Nothing is chosen before all points are tried."""
    (tmp_path / "stop.py").write_text(
        "import os, signal\n"
        "from vpeft_bench.runs import run\n"
        "execute = run._Run.execute\n"
        "def stop(self):\n"
        "    if self.config.tune.point == 1: os.kill(os.getpid(), signal.SIGINT)\n"
        "    return execute(self)\n"
        "run._Run.execute = stop\n"
    )
    command = ("tune", "method=linear", "tune.budget=3", *tiny)
    stopped = cli(*command, "plugins=[./stop.py]")
    assert stopped.returncode == 128 + signal.SIGINT, stopped.stdout + stopped.stderr
    assert "not chosen yet: 1 interrupted, 1 not run" in stopped.stdout
    assert "the same command goes on from there" in stopped.stderr
    assert not list(tmp_path.rglob("tuned@3.yaml"))
    done = cli(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3 points tried, 0 failed, 1 run before" in done.stdout


def test_flags() -> None:
    asked = read_flags(["-m", "method=ssf", "--final", "seed=3,4", "--plan", "seed=1"])
    assert asked.rest == ["-m", "method=ssf", "seed=1"]
    assert (asked.final, asked.plan) == ("seed=3,4", True)
    assert read_flags(["--final"]).final == ""
    assert read_flags(["method=ssf"]).final is None


def test_a_plan_is_shown_and_nothing_is_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["-m", "method=lora,ssf", "tune.budget=4", "--plan"]) == 0
    said = capsys.readouterr().out
    assert "lora/tuned@4 on demo/digits, demo_vit: space" in said
    assert len(re.findall(r"^ +3 +0", said, re.MULTILINE)) == 2
    assert "8 jobs: 0 done, 8 to do; nothing was run" in said
    assert list(tmp_path.iterdir()) == []


def test_what_is_typed_is_fixed_for_the_methods_that_search_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["-m", "method=convpass,cp,patt", "method.scale=0.1", "tune.budget=2", "--plan"]
    assert main(line) == 0
    said = capsys.readouterr().out
    assert said.count("fixed: method.scale") == 3
    assert [line.split() for line in said.splitlines() if line.split()[:1] == ["point"]] == [
        ["point", "lr", "weight", "decay", "bottleneck"],
        ["point", "lr", "weight", "decay"],
        ["point", "lr", "weight", "decay"],
    ]


def test_an_experiments_seeds_are_those_of_final_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One seed searches on each data set."""
    monkeypatch.chdir(tmp_path)
    assert main(["experiment=demo", "method=ssf", "tune.budget=2", "--plan"]) == 0
    said = capsys.readouterr().out
    assert said.count("seed 0") == 4
    assert "8 jobs: 0 done, 8 to do; nothing was run" in said


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("tune.budget=0", "tune.budget must be between 1 and 1024"),
        ("tune.fixed=[train.lrr]", "did you mean tune.fixed=[train.lr]"),
        ("protocol=final", "protocol=final: no effect on a search"),
        ("variant=ssf/osu_fixed", "variant=ssf/osu_fixed: no effect on a search"),
        ("predictions=false", "predictions=false: no effect on a search"),
        ("tune.point=3", "is set for every run of a search"),
        ("method=ssf,lora", "add -m to run every value"),
        ("-m seed=0,1", "would be several searches on demo/digits"),
        ("-m method=lora method.rank=4,8", "would be several searches on demo/digits"),
        ("-m tune.budget=2,4", "is the same for all searches of a command"),
        ("tune.budgt=4", "did you mean tune.budget=..."),
        ("--fnal", "--fnal: no such flag"),
        ("--final seed=x", "--final seed=x: Value 'x' of type 'str'"),
        ("--final seed=-1", "--final seed=-1: out of range"),
        ("cost.steps=4", "python -m vpeft_bench cost ... reads it"),
        ("tune.name=a/b", "must be a letter or digit, then"),
        ("tune.name=_base", "must be a letter or digit, then"),
    ],
)
def test_wrong_input(arguments: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        main(arguments.split())
    assert expected in str(caught.value)


def test_a_run_does_not_read_it(cli: Cli) -> None:
    done = cli("tune.budget=4", "cost.steps=3")
    assert done.returncode == 2
    assert "python -m vpeft_bench tune ... reads it" in done.stderr


@pytest.mark.slow
def test_points_of_tpe_follow_from_the_scores_of_those_before(
    cli: Cli, tmp_path: Path, tiny: tuple[str, ...]
) -> None:
    """The first four are those of the sequence; the same command finds the others again."""
    pytest.importorskip("optuna")
    asked = ("tune", "method=linear", "tune.budget=6", "tune.sampler=tpe", *tiny)
    done = cli(*asked)
    assert done.returncode == 0, done.stdout + done.stderr
    facts = variant(tmp_path, "linear/tpe@6")["tuning"]["per_data"]["imagelist"]
    assert len(set(facts["runs"])) == 6
    rates = {r["config_hash"]: r["asked"]["train"]["lr"] for r in records(tmp_path)}
    assert [rates[run] for run in facts["runs"]][:4] == [0.1, 0.0661, 0.205, 0.467]
    again = cli(*asked)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "6 of 6 points tried, 0 failed, 6 run before" in again.stdout
    assert len(records(tmp_path)) == 6
    plan = cli(*asked, "--plan")
    assert "the other 2 follow from the scores of those before them" in plan.stdout
    refused = cli(*asked, "tune.stop_hopeless=true")
    assert refused.returncode == 2
    assert "with tpe no two data sets have the same points" in refused.stderr
