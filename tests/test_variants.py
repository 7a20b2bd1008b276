"""Variants: one row of a table with settings for each data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from vpeft_bench.choices import choices_on_disk, config_dir
from vpeft_bench.config import RunConfig, typed
from vpeft_bench.leaderboard.cells import collect
from vpeft_bench.leaderboard.tables import summaries
from vpeft_bench.methods.registry import build_method
from vpeft_bench.overrides import check_overrides
from vpeft_bench.record import find
from vpeft_bench.run import run
from vpeft_bench.validation import quick_problems
from vpeft_bench.variants import settings_on

MINE = """
# @package _global_
defaults:
  - override /method: lora
variant:
  name: mine
  method: lora
  chosen: by hand
  settings: {method.alpha: 8.0}
  per_data:
    demo/digits: {method.rank: 4}
    demo/sprites_count: {method.rank: 16}
method:
  rank: ${of_variant:method.rank}
  alpha: ${of_variant:method.alpha}
"""


@pytest.fixture
def own(tmp_path: Path) -> list[str]:
    """A folder of configs with a variant of the user's own."""
    (tmp_path / "conf" / "variant").mkdir(parents=True)
    (tmp_path / "conf" / "variant" / "mine.yaml").write_text(MINE, encoding="utf-8")
    return [str(tmp_path / "conf")]


def config_of(own: list[str], *overrides: str) -> RunConfig:
    checked = check_overrides(overrides, own)
    assert checked.config is not None, checked.problems
    return typed(checked.config)


def test_options_follow_the_data_set(own: list[str]) -> None:
    checked = check_overrides(["variant=mine", "data=demo/digits,demo/sprites_count"], own)
    assert checked.problems == []
    ranks = [job.config.method["rank"] for job in checked.jobs.valid]
    assert ranks == [4, 16]
    assert {job.config.method["alpha"] for job in checked.jobs.valid} == {8.0}
    assert [list(quick_problems(job.config)) for job in checked.jobs.valid] == [[], []]


@pytest.mark.parametrize(
    ("overrides", "where", "said"),
    [
        (["data=demo/sprites_location"], "variant=mine", "is not for data=demo/sprites_location"),
        (["method=adapter"], "variant=mine", "is a variant of lora, not of method=adapter"),
        (["method.rank=8"], "method.rank=8", "variant=mine sets method.rank=4 on demo/digits"),
        (["method.alpha=1"], "method.alpha=1", "variant=mine sets method.alpha=8.0"),
    ],
)
def test_a_run_that_is_not_the_variant_is_refused(
    own: list[str], overrides: list[str], where: str, said: str
) -> None:
    checked = check_overrides(["variant=mine", *overrides], own)
    problems = list(checked.problems)
    for job in checked.jobs.valid:
        problems += quick_problems(job.config)
    told = [problem for problem in problems if problem.where.startswith(where)]
    assert said in told[0].what
    assert told[0].fix


def test_one_variant_is_one_row_and_two_ranks_are_two(own: list[str], tmp_path: Path) -> None:
    """Also where a variant has the same options as an unnamed run: they are told apart."""
    quick = ["train.epochs=1", "hardware=cpu", f"results_dir={tmp_path / 'runs'}"]
    console = Console(quiet=True)
    for data, rank in (("digits", 4), ("sprites_count", 16)):
        run(config_of(own, "variant=mine", f"data=demo/{data}", *quick), console)
        same = ("method=lora", "method.alpha=8", f"method.rank={rank}")
        run(config_of(own, *same, f"data=demo/{data}", *quick), console)
    found = find([tmp_path / "runs"]).records
    names = sorted(record.variant for _, record in found)
    assert names == ["lora alpha=8.0 rank=16", "lora alpha=8.0 rank=4", "mine", "mine"]
    cells = collect(found).cells
    (summary,) = summaries(cells)
    rows = {row.name: row.complete for row in summary.rows}
    assert rows == {
        "mine": "2/4",
        "lora alpha=8.0 rank=4": "1/4",
        "lora alpha=8.0 rank=16": "1/4",
    }
    mine = [cell for cell in cells if cell.name == "mine"]
    assert {cell.chosen for cell in mine} == {"by hand"}
    assert sorted("rank=16" in cell.options for cell in mine) == [False, True]


@pytest.mark.parametrize("name", choices_on_disk()["variant"])
def test_published_variants_say_where_they_come_from_and_can_be_run(name: str) -> None:
    first = config_of([], f"variant={name}", *data_of(name)[:1])
    assert first.variant.name == name
    assert first.variant.chosen.startswith(("published: ", "tuned: "))
    for data in first.variant.per_data:
        found = settings_on(first.variant, data)
        options = {
            k.removeprefix("method."): v for k, v in found.items() if k.startswith("method.")
        }
        assert build_method(first.variant.method, options)
    text = (config_dir() / "variant" / f"{name}.yaml").read_text(encoding="utf-8")
    assert "https://" in text.partition("defaults:")[0]


def data_of(name: str) -> list[str]:
    text = (config_dir() / "variant" / f"{name}.yaml").read_text(encoding="utf-8")
    variant: dict[str, Any] = yaml.safe_load(text)["variant"]
    return [f"data={data}" for data in variant.get("per_data", ())]
