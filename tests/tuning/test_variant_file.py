"""The file of a variant that a search has found."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.running import config_of
from tests.tuning.test_choice import point
from vpeft_bench.cli.overrides import check_overrides
from vpeft_bench.tuning.choice import REFUSED, Point
from vpeft_bench.tuning.search import Outcome, Search
from vpeft_bench.tuning.variant_file import Told, file_of, place_of, problems, write

TYPED = ("method.rank", "train.epochs", "data.name", "hardware.threads", "train.lr")


def outcome(results: Path, *overrides: str) -> Outcome:
    """A search of two points: the second was refused."""
    fixed = "tune.fixed=[method.rank]"
    options = ("method=lora", "method.rank=4", "train.epochs=3", "tune.budget=2", fixed)
    config = config_of(*options, f"results_dir={results}", "protocol=select", *overrides)
    search = Search(config)
    first = replace(point(0, 90.0, 0.0), settings=search.defaults)
    assert first.record is not None
    first = replace(first, record=replace(first.record, config_hash="12345e6789"))
    return Outcome(
        search, (first, Point(1, search.settings(1, search.coordinates(1)), 0.5, REFUSED, "no"))
    )


def test_it_is_read_as_it_was_meant(tmp_path: Path) -> None:
    """A hash stays text although it looks like a number; data sets are added; all is chosen."""
    for data in ("demo/sprites_count", "demo/digits"):
        found = outcome(tmp_path, f"data={data}")
        path = write([found], Told.of(found.search, TYPED), "tune ...")
    assert path == file_of(found.search)
    assert path == tmp_path / "tuned/demo_vit/variant/lora/tuned@2.yaml"
    variant = OmegaConf.load(path).variant
    assert [*variant.per_data] == ["demo/digits", "demo/sprites_count"]
    assert variant.settings == {"method.rank": 4, "train.epochs": 3}
    facts = variant.tuning.per_data["demo/digits"]
    assert facts.runs == ["12345e6789", None]
    assert (facts.tried, facts.failed, facts.given_up, facts.point) == (2, 1, 0, 0)
    place = [str(place_of(found.search))]
    checked = check_overrides(["variant=lora/tuned@2", "data=demo/sprites_count"], place)
    assert checked.problems == []
    (job,) = checked.jobs.valid
    assert (job.config.method["rank"], job.config.train.epochs) == (4, 3)
    assert job.config.variant.tuning["space"] == found.search.space.hash


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epochs=5", "train.epochs=3 there, .*train.epochs=5 here"),
        ("tune.fixed=[method.rank,train.lr]", "space [0-9a-f]{8} there, space [0-9a-f]{8} here"),
        ("train.batch_size=16", "another search on demo/digits"),
    ],
)
def test_another_search_is_refused(tmp_path: Path, override: str, expected: str) -> None:
    found = outcome(tmp_path)
    told = Told.of(found.search, TYPED)
    assert problems(found.search, told) == []
    write([found], told, "tune ...")
    assert problems(found.search, told) == []
    other = outcome(tmp_path, override).search
    (problem,) = problems(other, Told.of(other, TYPED))
    assert problem.fix.startswith("tune.name=NAME")
    assert re.search(expected, problem.what)
    file_of(found.search).write_text("variant: 3")
    (problem,) = problems(found.search, told)
    assert "is no variant that a search has written" in problem.what
