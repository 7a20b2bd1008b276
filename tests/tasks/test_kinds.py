"""What every kind of task says of itself, and that it is asked nowhere else."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.running import config_of
from vpeft_bench.config.choices import config_dir
from vpeft_bench.config.identity import config_hash, scientific
from vpeft_bench.config.schema import RunConfig, from_plain, plain
from vpeft_bench.fields import setting
from vpeft_bench.metric_names import METRICS, Metric
from vpeft_bench.runs import validation
from vpeft_bench.tasks.names import TASKS, every_kind
from vpeft_bench.tasks.retrieval.kind import RetrievalKind

PACKAGE = Path(__file__).parents[2] / "vpeft_bench"
RETRIEVAL = "data=demo/glyphs_retrieval"


def hash_of(config: RunConfig) -> str:
    return config_hash(config, "data", "weights")


@pytest.mark.parametrize("name", TASKS.names())
def test_its_file_has_its_options_at_their_defaults(name: str) -> None:
    kind = TASKS.get(name)
    assert kind.name == name
    file = yaml.safe_load((config_dir() / "task" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert file["task"] == {"name": name, **dataclasses.asdict(kind.options())}


def test_a_metric_is_of_one_kind() -> None:
    names = Counter(name for kind in every_kind() for name in kind.metrics)
    assert set(names.values()) == {1}
    assert set(names) <= set(METRICS.names())


def test_no_other_place_asks_which_kind_it_is() -> None:
    """Nor whether the task is dense: whoever needs to know asks the kind for what it needs."""
    of_task = r"isinstance\(task, (?!Task|dict)"
    asks = re.compile(rf"task\[.name.\] *[!=]=|\.input is (not )?None|{of_task}")
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] != "tasks":
            assert not asks.search(path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("+task.widht=64", "did you mean task.width=..."),
        ("task.width=many", "task.width=many: must be of type int"),
        ("task.width=1", "task.width=1: must be at least 2"),
        ("task.loss=proxy_ancor", "did you mean proxy_anchor?"),
        ("task.margin=3", "task.margin=3.0: must be between 0 and 2"),
        ("task.name=retreival", "did you mean task=retrieval"),
    ],
)
def test_a_wrong_option_is_told_without_torch(typed: str, said: str) -> None:
    problems = list(validation.quick_problems(config_of(RETRIEVAL, typed)))
    assert said in "\n".join(map(str, problems))
    assert len(problems) == 1


def test_options_count_where_they_change_something() -> None:
    usual = config_of(RETRIEVAL)
    assert scientific(plain(usual))["task"] == {"name": "retrieval"}
    assert hash_of(config_of(RETRIEVAL, "task.alpha=32")) == hash_of(usual)
    assert hash_of(config_of(RETRIEVAL, "task.alpha=16")) != hash_of(usual)
    asked = plain(usual)
    del asked["task"]["margin"]  # as a record from before the option
    assert from_plain(asked).task == usual.task


def test_an_option_that_is_added_later_changes_no_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    before = hash_of(config_of(RETRIEVAL))

    @dataclass
    class More(RetrievalKind.options):  # type: ignore[name-defined,misc]
        later: float = setting(0.5)

    monkeypatch.setattr(RetrievalKind, "options", More)
    config = config_of(RETRIEVAL)
    assert config.task["later"] == 0.5
    assert hash_of(config) == before
    config.task["later"] = 0.6
    assert hash_of(config) != before


def test_metrics_know_their_range_and_what_is_better() -> None:
    error = Metric("mean error", unit="years", maximum=None, higher_is_better=False)
    assert error.problem(250.0) is None
    assert error.problem(-1.0) == "must be at least 0"
    assert Metric("top-1").problem(100.5) == "must be at least 0 and at most 100"
    assert max([3.0, 1.0, 2.0], key=error.gain) == 1.0
