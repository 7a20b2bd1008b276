"""What a benchmark is stands in one file, ours and anybody's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import config_of
from vpeft_bench.cli.data import main as data
from vpeft_bench.cli.overrides import check_overrides
from vpeft_bench.config import benchmarks
from vpeft_bench.config.benchmarks import Benchmark, known
from vpeft_bench.config.choices import use_folders
from vpeft_bench.errors import ConfigError


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Path]:
    """A folder of configs of the user's own."""
    (tmp_path / "benchmark").mkdir()
    use_folders([tmp_path])
    yield tmp_path
    use_folders([])


def write(own: Path, text: str, name: str = "mine") -> None:
    (own / "benchmark" / f"{name}.yaml").write_text(text)


def mine(own: Path, text: str) -> Benchmark:
    write(own, text)
    return known()["mine"]


def test_ours() -> None:
    assert list(known()) == ["demo", "demo_dense", "demo_retrieval", "dense", "fgvc", "vtab1k"]
    vtab = known()["vtab1k"]
    for name in ("vtab1k/cifar", "cifar", "cifar100", "vtab1k/cifar100"):
        assert vtab.member(name) == "cifar100"
    assert vtab.member("cifar10") is None
    assert vtab.group_of("vtab1k/eurosat") == "specialized"
    assert known()["fgvc"].group_of("fgvc/cub") == ""
    assert [name for name, one in known().items() if one.demo] == [
        "demo",
        "demo_dense",
        "demo_retrieval",
    ]
    assert [name for name, one in known().items() if not one.averaged] == [
        "demo_dense",
        "demo_retrieval",
        "dense",
    ]


def test_the_group_of_a_data_set_comes_from_there() -> None:
    assert config_of("data=vtab1k/kitti").data.group == "structured"
    assert config_of("data=vtab1k/kitti", "data.name=other").data.group == ""


def test_one_of_ones_own(own: Path) -> None:
    one = mine(own, "datasets: [demo/digits, mine/cats, yours/cats]\ncolumns: {mine/cats: tabby}\n")
    assert one.members == {
        "demo/digits": "digits",
        "mine/cats": "tabby",
        "yours/cats": "yours/cats",  # the short name is that of two
    }
    assert (one.title, one.averaged, one.demo) == ("mine", True, False)
    assert one.member("cats") is None
    one = mine(own, "groups: {easy: [a, b], hard: [c]}\n")
    assert one.groups == {"easy": ("a", "b"), "hard": ("c",)}
    assert one.group_of("c") == "hard"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n", "is no benchmark"),
        ("datasets: a\n", "datasets: must be of type list"),
        ("datasets: []\n", "must be a list of data sets"),
        ("datasets: [1]\n", "1 is no name of a data set"),
        ("title: nothing\n", "names its data sets once"),
        ("datasets: [a]\ngroups: {x: [a]}\n", "names its data sets once"),
        ("groups: {x: [a], y: [a]}\n", "names a more than once"),
        ("datasets: [a]\naverage: false\n", "did you mean averaged:"),
        ("datasets: [a]\ncolumns: {b: c}\n", "b is none of its data sets"),
        ("datasets: [a, b]\ncolumns: {a: c, b: c}\n", "names two data sets alike"),
        ("datasets: [a\n", "cannot be read"),
    ],
)
def test_a_file_that_is_wrong_says_why(own: Path, text: str, said: str) -> None:
    write(own, text)
    with pytest.raises(ConfigError, match=r"mine\.yaml") as error:
        known()
    assert said in str(error.value)


def test_two_of_one_name_are_refused(own: Path) -> None:
    write(own, "datasets: [a]\n", "demo")
    with pytest.raises(ConfigError, match="has this name"):
        known()


def test_an_experiment_sweeps_one_of_ones_own(own: Path) -> None:
    write(own, "datasets: [demo/digits, demo/sprites_count]\n")
    (own / "experiment").mkdir()
    text = (
        "# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {data: '${members:%s}'}}}"
    )
    (own / "experiment" / "mine.yaml").write_text(text % "mine")
    checked = check_overrides(["experiment=mine"], [str(own)], multirun=False)
    assert checked.problems == []
    assert [job.config.data.name for job in checked.jobs.valid] == [
        "demo/digits",
        "demo/sprites_count",
    ]
    assert benchmarks.swept("mine") == "demo/digits,demo/sprites_count"
    with pytest.raises(ConfigError, match="did you mean benchmark=mine"):
        benchmarks.swept("mein")


def test_the_listing_tells_what_is_not_there(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(own, "datasets: [demo/digitz, demo/sprites_count]\n")
    (own / "data").mkdir()
    (own / "data" / "cats.yaml").write_text("name: cats\nbenchmark: nobodys\n")
    assert data([], own) == 0
    said = capsys.readouterr().out
    assert "benchmark mine: there is no data set demo/digitz" in said
    assert "did you mean demo/digits" in said
    assert "data=cats: there is no benchmark nobodys" in said
    assert "write benchmark/nobodys.yaml" in said
