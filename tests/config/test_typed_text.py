"""Paths and names need no quotes, and Hydra's grammar stays what it is for everything else."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString

from vpeft_bench.cli.overrides import check_overrides
from vpeft_bench.config.schema import PATHS, from_plain, plain
from vpeft_bench.config.typed_text import holds_text, in_a_shell, in_hydras_grammar
from vpeft_bench.records.run_record import leaderboard_command

ODD = [
    "/x/lr=1",
    "/x/Bäume",
    "/x/pictures (1)",
    "pictures[1]",
    "[a]",
    "{a: b}",
    "it's",
    "a\"b'c",
    "'",
    "~/x",
    "a#b;c&d!e%f*?",
    "$x",
    "007",
    "1e3",
    "1_000",
    "null",
    "true",
    "nan",
    " lead",
    "trail ",
    "a:b",
    "x(1)",
    "-dash",
    "C:\\x",
    "new\nline",
    "図 (1)",
]


def read(override: str) -> object:
    """The values that Hydra reads; one value is given by itself."""
    parsed = OverridesParser.create().parse_override(override)
    if not parsed.is_sweep_override():
        return parsed.value()
    values = parsed.sweep_iterator()
    return [value.text if isinstance(value, QuotedString) else value for value in values]


@pytest.mark.parametrize("sweep", [False, True])
@pytest.mark.parametrize("text", ODD)
def test_text_reaches_hydra_as_it_is(text: str, sweep: bool) -> None:
    for key in ("data.root", "results_dir", "hydra.sweep.dir", "data.lists.train"):
        assert read(in_hydras_grammar(f"{key}={text}", sweep)) == text


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(text, marks=() if index % 4 == 0 else pytest.mark.slow)
        for index, text in enumerate(ODD)
    ],
)
def test_text_arrives_in_the_config(text: str) -> None:
    checked = check_overrides([f"data.root={text}", f"data.name={text}"], multirun=False)
    assert checked.problems == []
    (job,) = checked.jobs.valid
    assert job.config.data.name == text
    assert job.config.data.root == os.path.expanduser(text)


def test_a_comma_separates_in_a_sweep_only() -> None:
    assert read(in_hydras_grammar("data.root=/a,/b (1)", sweep=False)) == "/a,/b (1)"
    assert read(in_hydras_grammar("data.root=/a,/b (1)", sweep=True)) == ["/a", "/b (1)"]
    assert read(in_hydras_grammar("data.root='/a,b',/c=d", sweep=True)) == ["/a,b", "/c=d"]
    assert read(in_hydras_grammar(r"data.root=/a\,b", sweep=True)) == "/a,b"
    for place in ("results_dir", "cost.results_dir", "hydra.sweep.dir"):  # shared by all jobs
        assert read(in_hydras_grammar(f"{place}=/a,b", sweep=True)) == "/a,b"


@pytest.mark.parametrize(
    "override",
    [
        "method.targets=[q,v]",
        "seed=range(0,3)",
        "train.lr=1e-3,abc",
        "method=lora,ssf",
        "method=glob(l*)",
        "data.root='/a b'",
        'data.root="/a b"',
        r"data.root=/a\ b",
        "data.root=choice(/a,/b)",
        "data.root=${oc.env:HOME}/x",
        "data.num_classes=null",
        "method.alpha=null",
        "data.background=null",
        "experiment=null",
        "no override",
    ],
)
def test_what_hydra_reads_itself_stays(override: str) -> None:
    for sweep in (False, True):
        assert in_hydras_grammar(override, sweep) == override


def test_every_path_holds_text() -> None:
    for key in PATHS:
        assert holds_text(key)
    assert not holds_text("train.lr")
    assert not holds_text("method.rank")
    assert holds_text("data.background")


def test_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    typed = [f"{key}=~/x (1)" for key in PATHS if key != "cost.results_dir"]
    checked = check_overrides(typed, multirun=False)
    config = checked.jobs.valid[0].config
    assert config.data.root == config.results_dir == config.backbone.weights == "/home/me/x (1)"
    assert from_plain({**plain(config), "results_dir": "~/y"}).results_dir == "/home/me/y"


def test_a_comma_that_hydra_splits_is_told_with_what_to_type(tmp_path: Path) -> None:
    whole = tmp_path / "a,b"
    whole.mkdir()
    (problem,) = check_overrides([f"data.root={whole}", "seed=0,1"]).problems
    assert f"{whole} is there" in problem.what
    (typed,) = shlex.split(problem.fix.removeprefix("to mean that one: "))
    checked = check_overrides([typed, "seed=0,1"])
    assert checked.problems == []
    assert {job.config.data.root for job in checked.jobs.valid} == {str(whole)}


@pytest.mark.parametrize("text", ["plain", "a b", "it's", "it's $x", 'a"b', "a\\'b", "!'"])
def test_words_of_a_shell(text: str) -> None:
    assert shlex.split(in_a_shell(text)) == [text]


@pytest.mark.parametrize("folder", ["r (1)", "it's", "-dash", "r"])
def test_the_printed_command_can_be_pasted(folder: str) -> None:
    words = shlex.split(leaderboard_command(folder))
    assert words[-2] == "--records"
    assert Path(words[-1]) == Path(folder)
    assert not words[-1].startswith("-")
