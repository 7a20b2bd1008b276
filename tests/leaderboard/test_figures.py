"""What methods reach against what they cost, as pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from tests.leaderboard.as_rows import SCORES, cells
from tests.leaderboard.conftest import make_run
from vpeft_bench.leaderboard.figures import FORMATS, front, write_figures
from vpeft_bench.leaderboard.summaries import Summary, summaries
from vpeft_bench.records.run_record import Parameters, RunRecord

SETS = ("digits", "sprites_count", "sprites_location", "sprites_orientation")
METHODS = {
    "linear": (0, 60.0),
    "bitfit": (5_000, 80.0),
    "lora": (24_576, 85.0),
    "ssf": (9_000, 70.0),
}


def record(method: str, data: str) -> RunRecord:
    count, value = METHODS[method]
    made = make_run(method=method, data=f"demo/{data}", benchmark="demo", top1=value)
    own = replace(made.happened, parameters=Parameters(count, 200, count + 200, 50_000))
    return replace(made, happened=own)


def summary(*left_out: tuple[str, str]) -> Summary:
    made = [record(m, d) for m in METHODS for d in SETS if (m, d) not in left_out]
    return next(of for of in summaries(cells(*made), SCORES) if of.benchmark.name == "demo")


def test_the_front_is_what_nothing_beats() -> None:
    points = pd.DataFrame(
        {"cost": [1.0, 2.0, 2.0, 3.0, 4.0], "gain": [1.0, 3.0, 2.0, 3.0, 4.0]}, index=list("abcde")
    )
    assert list(front(points).index) == ["a", "b", "e"]


def test_every_known_cost_is_drawn_in_every_form(tmp_path: Path) -> None:
    written = write_figures([summary()], ["ssf"], tmp_path)
    names = {f"demo_final_{cost}.{kind}" for cost in ("parameters", "stored") for kind in FORMATS}
    assert {path.name for path in written} == names
    svg = (tmp_path / "figures" / "demo_final_parameters.svg").read_text()
    for text in ("linear", "bitfit", "lora", "ssf", "trained parameters", "Pareto front"):
        assert text in svg
    with Image.open(tmp_path / "figures" / "demo_final_parameters.png") as picture:
        assert picture.width > 600


def test_what_is_on_no_front_is_named_only_if_asked_for(tmp_path: Path) -> None:
    write_figures([summary()], [], tmp_path)
    assert ">ssf<" not in (tmp_path / "figures" / "demo_final_parameters.svg").read_text()


def test_a_row_without_a_mean_is_not_drawn(tmp_path: Path) -> None:
    write_figures([summary(("lora", "digits"))], ["lora"], tmp_path)
    assert ">lora<" not in (tmp_path / "figures" / "demo_final_parameters.svg").read_text()


def test_one_row_alone_is_no_picture(tmp_path: Path) -> None:
    gone = tuple((method, "digits") for method in list(METHODS)[1:])
    assert write_figures([summary(*gone)], [], tmp_path) == []


@pytest.mark.parametrize("kind", ["svg", "pdf"])
def test_the_same_rows_give_the_same_bytes(tmp_path: Path, kind: str) -> None:
    found = []
    for place in ("one", "two"):
        write_figures([summary()], [], tmp_path / place)
        path = tmp_path / place / "figures" / f"demo_final_parameters.{kind}"
        found.append(path.read_bytes())
    assert found[0] == found[1]
