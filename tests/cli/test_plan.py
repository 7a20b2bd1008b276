"""``--plan``: what a sweep would do, and how long that takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Cli
from tests.cost.measuring import card_of
from tests.runs.test_sweep import TINY, jobs_of
from vpeft_bench.cli.estimate import CARDS, OTHER_DATA, SAME, Estimates
from vpeft_bench.cli.flags import Line, read_line
from vpeft_bench.cli.launch import RUN, _checked
from vpeft_bench.errors import ConfigError
from vpeft_bench.formats import duration
from vpeft_bench.records import run_record
from vpeft_bench.runs.claim import claimed
from vpeft_bench.terminal import Terminal


def test_a_plan_counts_and_runs_nothing(cli: Cli, tmp_path: Path, tiny_data: Path) -> None:
    place = f"results_dir={tmp_path / 'runs'}"
    options = ("data=imagelist", f"data.root={tiny_data}", *TINY, place)
    assert cli("method=linear", "seed=0", *options).returncode == 0
    held = jobs_of(tmp_path, tiny_data, "seed=1,2").standings[0].claim
    assert held is not None
    held.parent.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with claimed(held):
        plan = cli("-m", "method=linear,lora", "seed=0,1,2", *options, "--plan")
    assert plan.returncode == 0, plan.stderr
    assert "6 jobs: 1 done, 4 to do, 1 held by others; nothing was run" in plan.stdout
    assert "held: linear on imagelist, seed 1: process " in plan.stdout
    assert "times of 1 from finished runs on " in plan.stdout
    assert "no estimate for 3: lora on imagelist" in plan.stdout
    assert sorted(path for path in tmp_path.rglob("*") if path.exists()) == before

    one = cli("--plan", "method=linear", "seed=0", *options)
    assert "1 job: 1 done, 0 to do; nothing was run" in one.stdout


def test_how_long_a_run_takes_is_known_from_its_like(
    cli: Cli, tmp_path: Path, tiny_data: Path
) -> None:
    options = ("data=imagelist", f"data.root={tiny_data}", *TINY)
    assert cli("method=linear", *options, f"results_dir={tmp_path / 'runs'}").returncode == 0
    [(_, record)] = run_record.find([tmp_path]).records
    known, seconds = Estimates([record], []), record.happened.seconds
    assert seconds.train is not None
    same = jobs_of(tmp_path, tiny_data, "train.epochs=10", "seed=1,2").jobs[0].config
    found = known.of(same, 200)
    assert found is not None
    assert found.source == SAME
    spent = seconds.train + (seconds.eval or 0)
    once = sum(part or 0 for part in (seconds.data, seconds.setup, seconds.features))
    assert found.seconds == pytest.approx(once + 10 * spent)
    assert found.devices == {record.where.device}

    other = jobs_of(tmp_path, tiny_data, "data.name=mine", "seed=1,2").jobs[0].config
    found = known.of(other, 400)
    assert found is not None
    assert found.source == OTHER_DATA
    assert known.of(other, None) is None

    card = card_of("linear")
    assert card.measured is not None
    wanted = jobs_of(tmp_path, tiny_data, "train.batch_size=4", "hardware=cpu", "seed=1,2")
    config, by_card = wanted.jobs[0].config, Estimates([], [card])
    found = by_card.of(config, 10)
    assert found is not None
    assert (found.source, found.devices) == (CARDS, {"a CPU"})
    assert found.seconds == pytest.approx(3 * card.measured.training_step.median / 1000)
    config.train.batch_size = 5
    assert by_card.of(config, 10) is None


def test_a_plan_is_of_what_is_known_before() -> None:
    with pytest.raises(ConfigError, match="--cfg --plan: do not go together"):
        read_line(["--cfg", "job", "--plan"])
    assert read_line(["-m", "seed=0,1", "--plan"]).plan
    line = Line(["seed=0"], plan=True)
    _, jobs = _checked(line, RUN, Terminal(quiet=True))
    assert jobs is not None
    assert [job.overrides for job in jobs.jobs] == [["seed=0"]]


def test_times_are_told_in_the_unit_that_suits_them() -> None:
    assert [duration(s) for s in (3.4, 99, 600, 7200)] == ["3 s", "99 s", "10 min", "2.0 h"]
