"""What anybody may add by name: metrics, heads, loggers, sub-commands and more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from tests.running import config_of, run_here
from vpeft_bench.__main__ import _dispatch
from vpeft_bench.cli.commands import COMMANDS, OWN
from vpeft_bench.config.sections import LoggerConfig
from vpeft_bench.data.readers import READERS
from vpeft_bench.errors import ConfigError
from vpeft_bench.heads.names import HEADS, Head, of_task
from vpeft_bench.methods.base import Method
from vpeft_bench.methods.registry import build_method, method_class, own_methods
from vpeft_bench.metric_names import METRICS, Metric, beside
from vpeft_bench.records.run_record import Metrics, Split
from vpeft_bench.registry import Registry
from vpeft_bench.runs import validation
from vpeft_bench.runs.loggers import LOGGERS, open_sinks

EVERY: tuple[Registry[Any], ...] = (COMMANDS, HEADS, LOGGERS, METRICS, READERS)


@pytest.fixture(autouse=True)
def nothing_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in EVERY:
        monkeypatch.setattr(registry, "_things", dict(registry._things))


@pytest.mark.parametrize("registry", EVERY, ids=lambda registry: registry.where)
def test_all_of_ours_are_where_they_are_said_to_be(registry: Registry[Any]) -> None:
    assert registry.names()
    for name in registry.names():
        assert registry.get(name)


def test_a_name_is_that_of_one_thing() -> None:
    things: Registry[object] = Registry("thing", {"a": "json:loads"})
    things.add("a", "json:loads")
    with pytest.raises(ValueError, match="two have the name thing=a"):
        things.add("a", "json:dumps")
    first = things.register("b")(object())
    assert things.get("b") is first
    with pytest.raises(ValueError, match="two have the name thing=b"):
        things.register("b")(object())
    assert things.names() == ["a", "b"]
    assert "c" not in things


def test_what_is_not_there_says_where_others_come_from() -> None:
    with pytest.raises(ConfigError) as error:
        READERS.get("cocoo")
    said = str(error.value)
    assert "did you mean data.reader=coco" in said
    assert "of other packages: plugins=[PACKAGE] (imported: " in said


def test_names_in_a_config_are_told_with_everything_else() -> None:
    config = config_of("data.reader=cvs", "logger.also=[tensorbord]", "train.epochs=0")
    said = "\n".join(map(str, validation.problems(config)))
    assert "did you mean data.reader=csv" in said
    assert "did you mean logger.also=tensorboard" in said
    assert "train.epochs=0" in said


def share_of_class_0(pairs: Tensor) -> float:
    return 100.0 * float(pairs[0].sum() / pairs.sum())


def test_a_metric_is_computed_recorded_and_shown(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"share is no known metric; .*plugins=\[PACKAGE\]"):
        Metrics(Split.TEST, 1, 1, "top1", {"top1": 50.0, "share": 10.0})
    METRICS.add("share", Metric("share of class 0", ("top1",), share_of_class_0))
    assert beside("top1") == ["mean_per_class_accuracy", "share"]
    outcome = run_here(tmp_path, "method=linear", "train.epochs=1", "train.warmup_epochs=0")
    assert outcome.record is not None
    assert outcome.record.happened.last_epoch is not None
    values = outcome.record.happened.last_epoch.values
    assert list(values)[-1] == "share"
    assert 5 < (values["share"] or 0) < 15


def test_what_stands_beside_headlines() -> None:
    assert beside("box_ap") == ["box_ap50", "box_ap_all_detections", "mask_ap"]
    assert beside("voc07_ap50") == ["box_ap"]
    assert beside("miou") == ["mean_accuracy", "pixel_accuracy"]


logged: list[Any] = []


def open_mine(config: LoggerConfig, directory: Path, run_id: str, asked: dict[str, Any]) -> Any:
    def log(values: Mapping[str, float], step: int) -> None:
        logged.append((dict(values), step))

    return log, lambda: logged.append("closed")


def test_a_logger(tmp_path: Path) -> None:
    LOGGERS.add("mine", f"{__name__}:open_mine")
    (sink,) = open_sinks(LoggerConfig(also=["mine", "mine"]), tmp_path, "run", {})
    sink.log({"loss": 1.0}, 2)
    sink.close()
    assert logged == [({"loss": 1.0}, 2), "closed"]


def hello(arguments: Sequence[str], own: Path | None) -> int:
    print("hello", *arguments, own)
    return 3


def test_a_sub_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    COMMANDS.add("hello", f"{__name__}:hello")
    assert _dispatch(["--config-dir", str(tmp_path), "hello", "you"]) == 3
    assert capsys.readouterr().out == f"hello you {tmp_path}\n"
    assert _dispatch(["--help"]) == 0
    assert "sub-commands of plug-ins: hello" in capsys.readouterr().out
    assert list(OWN) == [name for name in COMMANDS.names() if name != "hello"]


class Doubled(nn.Linear):
    """Twice the logits."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def double(model: Any, head: Any) -> None:
    model.head.__class__ = Doubled


def test_a_head(tmp_path: Path) -> None:
    HEADS.add("doubled", Head("classification", f"{__name__}:double"))
    assert of_task("classification") == ["batch_norm", "doubled"]
    config = config_of("head=batch_norm", "head.name=doubled")
    assert list(validation._task(config)) == []
    from vpeft_bench.data.dataset import open_dataset
    from vpeft_bench.runs.build import build_model

    model = build_model(config, open_dataset(config.data)).attached.model
    assert isinstance(model.head, Doubled)


def test_a_search_has_a_short_form_that_is_the_method_s_own() -> None:
    short = build_method("noah", {}).shortened()
    assert (short.supernet_epochs, short.generations) == (1, 1)  # type: ignore[attr-defined]
    assert replace(short, budget=1) == build_method("noah", {"budget": 1}).shortened()
    others = [name for name in own_methods() if name != "noah"]
    for name in others:
        assert method_class(name).shortened is Method.shortened, name
