"""The measurement of the speed bars: that it compares equal things, and what it writes."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import benchmark_speed
import pytest
import timm
import torch
from safetensors.torch import load_file
from speed import harness, plain_methods, run_bars, tables
from speed.measure import Row, Settings, interleaved, ratios, spread, timed
from torch import nn

from vpeft_bench.attaching.attachment import attach

SCRIPT = Path(benchmark_speed.__file__)
CPU = torch.device("cpu")
QUICK = Settings(CPU, quick=True, repeats=2, slow_repeats=1)


# ---------------------------------------------------------------------------- the plain methods


def tiny_vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=3, num_classes=5, pretrained=False
    )


@pytest.mark.parametrize("method", plain_methods.METHODS)
def test_plain_method_is_the_harness_method(method: str) -> None:
    """Same logits, and same gradient of every trained parameter, from the same weights."""
    attached = attach(tiny_vit(), method)
    with torch.no_grad():  # away from the start, where updates and many gradients are zero
        for parameter in [*attached.trainable_parameters(), *attached.head_parameters()]:
            parameter.add_(0.1 * torch.randn_like(parameter))
    plain = plain_methods.plain_like(method, attached.model)
    assert len(plain.state_dict()) == len(attached.model.state_dict())
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])

    ours, theirs = attached.model(images), plain(images)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert ours.std() > 0.05

    nn.functional.cross_entropy(ours, labels).backward()
    nn.functional.cross_entropy(theirs, labels).backward()
    trained = {n: p for n, p in plain.named_parameters() if p.requires_grad}
    wanted = {n for n, _ in attached.named_trainable_parameters()} | {"head.weight", "head.bias"}
    assert {plain.name_in_harness(name) for name in trained} == wanted
    for name, parameter in trained.items():
        gradient = attached.model.get_parameter(plain.name_in_harness(name)).grad
        assert gradient is not None
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", plain_methods.METHODS)
def test_plain_method_uses_no_fused_attention(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = plain_methods.plain_like(method, attach(tiny_vit(), method).model)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("fused attention")

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", refuse)
    before = {name: p.detach().clone() for name, p in plain.named_parameters()}
    plain_methods.PlainStep(plain, torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))()
    moved = {n for n, p in plain.named_parameters() if not torch.equal(p, before[n])}
    assert moved <= {n for n, p in plain.named_parameters() if p.requires_grad}
    assert moved > {"head.weight", "head.bias"}


# ------------------------------------------------------------------------------- the bare loop


def test_bare_loop_trains_what_the_harness_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same batches, same steps: the same weights in the end."""
    config = harness.config_of(
        QUICK,
        "method=lora",
        *run_bars.embedded(QUICK, tmp_path),
        "hardware.feature_cache=off",
        "train.epochs=3",
        "train.batch_size=3",
        "train.lr=0.01",
    )
    seconds = harness.harness_epochs(config)
    (delta,) = (tmp_path / "runs").rglob("delta.safetensors")

    tasks = []

    def keep(task: harness.Task) -> object:
        tasks.append(task)
        return original(task)

    original = harness.optimizer_and_schedule
    monkeypatch.setattr(harness, "optimizer_and_schedule", keep)
    bare = harness.bare_epochs(config, CPU)

    assert 0 < bare < 100
    assert 0 < seconds < 100
    state = tasks[0].model.state_dict()
    for name, tensor in load_file(delta).items():
        torch.testing.assert_close(state[name], tensor)
    assert any(tensor.abs().max() > 0 for name, tensor in state.items() if ".B." in name)


# ----------------------------------------------------------------------------------- measuring


def test_sides_are_measured_in_turn() -> None:
    calls: list[str] = []

    def side(name: str, seconds: float) -> float:
        calls.append(name)
        return seconds

    found = interleaved({"a": lambda: side("a", 2.0), "b": lambda: side("b", 4.0)}, 3)
    assert calls == ["a", "b"] * 3
    assert found == {"a": [2.0] * 3, "b": [4.0] * 3}
    assert ratios([2.0, 9.0, 1.0], [4.0, 3.0]) == [0.5, 3.0]


def test_spread() -> None:
    found = spread([5.0, 1.0, 2.0, 3.0, 4.0])
    assert (found["median"], found["low"], found["high"], found["n"]) == (3.0, 2.0, 4.0, 5)
    assert spread([7.0])["low"] == spread([7.0])["high"] == 7.0


def test_a_short_step_is_repeated_within_a_block() -> None:
    calls: list[int] = []
    measure = timed(lambda: calls.append(1), Settings(CPU))
    calls.clear()
    seconds = measure()
    assert len(calls) > 1000
    assert seconds * len(calls) < 5


def test_a_process_is_timed_until_its_line_or_its_end(tmp_path: Path) -> None:
    line = run_bars.seconds_until("usage:", ["--help"], str(tmp_path))
    assert 0 < line < 10
    assert 0 < run_bars.seconds_until(None, ["--help"], str(tmp_path)) < 10
    with pytest.raises(RuntimeError, match="usage:"):
        run_bars.seconds_until("steps per epoch", ["--help"], str(tmp_path))


@pytest.mark.parametrize(
    ("bar", "met"),
    [
        ({"at_least": 2.0}, True),
        ({"at_least": 2.1}, False),
        ({"at_most": 2.0}, True),
        ({"at_most": 1.9}, False),
        ({}, None),
    ],
)
def test_bar_is_met_by_the_median(bar: dict[str, float], met: bool | None) -> None:
    assert Row("r", "q", [1.0, 2.0, 9.0], **bar).met is met


def test_bars_belong_to_devices() -> None:
    gpu = Settings(torch.device("cuda"))
    assert (Settings(CPU).bar(1.6, on_gpu=4.0), gpu.bar(1.6, on_gpu=4.0)) == (1.6, 4.0)
    assert gpu.bar(1.6) is None
    assert QUICK.bar(1.6, on_gpu=4.0) is None


# ------------------------------------------------------------------------------ what is written


def test_tables_are_made_of_every_file(tmp_path: Path) -> None:
    """Also of those from earlier calls; an item measured again replaces its own rows."""
    settings = Settings(CPU)
    where = tables.circumstances(settings)

    def write(item: str, values: list[float]) -> None:
        row = Row("step", "a / b", values, at_most=1.5, sides={"a [s]": [3.0], "b [s]": [1.5]})
        tables.write_item(tmp_path, item, "title of it", [row], settings, where)

    order = ["second", "first"]
    write("first", [1.0, 2.0, 3.0])
    write("second", [1.25])
    write("first", [1.0, 1.5, 3.5])
    text = tables.write_tables(tmp_path, order)

    assert text == (tmp_path / "bars.md").read_text()
    assert "| **1.5 x** | 1.25 to 2.5 | 3 | ≤ 1.5 x | yes | a [s]: 3 (n=1); b [s]: 1.5" in text
    with (tmp_path / "bars.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["item"], row["median"], row["met"]) for row in rows] == [
        ("second", "1.25", "yes"),
        ("first", "1.5", "yes"),
    ]
    content = json.loads((tmp_path / "first.json").read_text())
    assert content["rows"][0]["values"] == [1.0, 1.5, 3.5]
    assert content["where"]["threads"] == torch.get_num_threads()
    assert content["where"]["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_unknown_item_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark_speed.parse(["lora_vs_ful"])
    assert "no item lora_vs_ful; items: linear_cached," in capsys.readouterr().err


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_one_item(tmp_path: Path) -> None:
    done = call("merged_vs_plain", "--quick", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (written,) = tmp_path.rglob("*.json")
    content = json.loads(written.read_text())
    assert content["quick"] is True
    (row,) = content["rows"]
    assert row["n"] == 2
    assert row["met"] is None
    assert set(row["sides"]) == {"plain [s]", "merged [s]"}
    assert "quick" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)  # all of them, one after another
def test_every_item(tmp_path: Path) -> None:
    done = call("--quick", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    items = {path.stem for path in tmp_path.rglob("*.json")}
    assert items == set(benchmark_speed.ITEMS)
    assert (next(tmp_path.iterdir()) / "bars.csv").read_text().count("quick") > len(items)
