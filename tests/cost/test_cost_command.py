"""``python -m vpeft_bench cost`` as a user types it."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.conftest import Cli
from tests.cost.measuring import request
from vpeft_bench.cli.cost import Result, _kept, ask, find
from vpeft_bench.cli.overrides import check_overrides
from vpeft_bench.cli.purpose import Purpose
from vpeft_bench.config.schema import RunConfig
from vpeft_bench.config.sections import CostConfig
from vpeft_bench.cost.device import device_name
from vpeft_bench.cost.request import from_plain, request_of
from vpeft_bench.errors import ConfigError
from vpeft_bench.records import cost_card as cards
from vpeft_bench.records.cost_card import Memory
from vpeft_bench.records.run_record import CLAIM
from vpeft_bench.runs import validation
from vpeft_bench.runs.claim import claimed
from vpeft_bench.runs.rounds import Standing
from vpeft_bench.runs.validation import Seen

MIB = 2**20
TINY = (
    "hardware=cpu",
    "hardware.threads=1",
    "cost.batch_size=8",
    "cost.inference_batch_size=4",
    "cost.warmup_steps=1",
    "cost.steps=4",
    "cost.blocks=2",
    "cost.allow_busy=true",
)


def results_of(output: str) -> list[str]:
    """The second column of the closing table, top to bottom."""
    results = "measured|kept|unsupported|oom|failed|busy|died"
    return re.findall(rf"^ .*? ({results}) +[\d–]", output, re.MULTILINE)


@pytest.mark.slow
def test_a_sweep_and_the_same_again(cli: Cli, tmp_path: Path) -> None:
    """One method, and one whose blocks are wider than the demo backbone; then single ones."""
    first = cli("cost", "-m", "method=lora,hf/c3a", *TINY)
    assert first.returncode == 0, first.stdout + first.stderr
    assert results_of(first.stdout) == ["measured", "unsupported"]
    header = next(line for line in first.stdout.splitlines() if "GFLOPs" in line)
    assert len(header) <= 80
    assert "method=lora: demo backbone" in first.stdout
    assert "method=hf/c3a: " in first.stdout
    assert "cards: results/cost" in first.stdout
    single = cli("cost", "method=linear", *TINY)
    assert "measuring linear on demo_vit in a process of its own" in single.stdout
    assert "peak memory, training" in single.stdout
    found = cards.find([tmp_path / "results" / "cost"])
    assert found.problems == []
    by_method = {card.asked["method"]["name"]: (path, card) for path, card in found.cards}
    assert sorted(card.status for _, card in found.cards) == ["ok", "ok", "unsupported"]
    assert by_method["hf/c3a"][0].parts[-4:-2] == ("demo_vit", "hf+c3a")

    memories = {}
    for method in ("linear", "lora"):
        path, card = by_method[method]
        assert path == tmp_path.resolve() / "results" / "cost" / card.card_id / "card.json"
        assert not path.with_name("stderr.txt").exists()
        assert card.where.device is not None
        assert (card.where.device.kind, card.where.device.threads) == ("cpu", 1)
        assert card.measured is not None
        memories[method] = memory = card.measured.memory
        check_growth(memory)
    assert memories["lora"].activations > memories["linear"].activations + 8 * MIB

    kept = cli("cost", "method=lora", *TINY)
    assert kept.returncode == 0
    assert "kept: a card of this request exists; rerun=true measures again" in kept.stdout
    assert f"card: results/cost/{by_method['lora'][1].card_id}/card.json" in kept.stdout
    assert cards.read(by_method["lora"][0]) == by_method["lora"][1]
    rerun = cli("cost", "method=linear", "rerun=true", *TINY)
    assert rerun.returncode == 0
    assert cards.read(by_method["linear"][0]) != by_method["linear"][1]


def check_growth(memory: Memory) -> None:
    """The growth of a fresh process is what lives: little more than what is known to be needed."""
    assert memory.resident_growth is not None
    assert memory.activations is not None
    beside = memory.activations - memory.saved_for_backward
    assert 0 < beside < 16 * MIB, beside / MIB


def test_everything_wrong_is_told_at_once(cli: Cli) -> None:
    wrong = ("method=lroa", "data=demo/digits", "train.lr=1", "cost.step=3", "cost.blocks=3")
    done = cli("cost", *wrong)
    assert done.returncode == 2
    assert "4 problems; nothing was run" in done.stderr
    assert "data=demo/digits, train.lr=1: no effect on a cost card" in done.stderr
    for fix in ("did you mean method=lora", "did you mean cost.steps", "cost.steps=48"):
        assert fix in done.stderr


def test_help_lists_the_keys(cli: Cli) -> None:
    shown = cli("cost", "--help")
    assert shown.returncode == 0
    for name in vars(CostConfig()):
        assert f"cost.{name}" in shown.stdout
    assert "python -m vpeft_bench cost" in cli("--help").stdout


@pytest.mark.parametrize(
    "override",
    [
        "data=demo/digits",
        "data.root=DIR",
        "task=detection",
        "head=fpn",
        "protocol=select",
        "train.epochs=1",
        "logger=wandb",
        "experiment=demo",
        "recipe=classification/demo_vit",
        "seed=1",
        "render=true",
        "results_dir=elsewhere",
        "backbone.weights=hub",
        "hardware.workers=1",
        "hardware.eval_batch_size=1",
        "hardware.feature_cache=off",
        "hardware.feature_cache_gib=1",
    ],
)
def test_what_has_no_effect_is_refused(override: str) -> None:
    (problem,) = check_overrides([override], purpose=Purpose.COST).problems
    assert str(problem).startswith(f"{override}: no effect on a cost card")


def test_what_has_an_effect_is_not() -> None:
    right = [
        "method=lora",
        "method.rank=4",
        "backbone=vit_b16",
        "backbone.weights=none",
        "backbone.drop_path=0.1",
        "hardware=cpu",
        "hardware.precision=bf16",
        "hardware.compile=true",
        "cost.image_size=[800,1344]",
        "cost.steps=10,20",
        "rerun=true",
        "hydra/launcher=joblib",
    ]
    assert check_overrides(right, purpose=Purpose.COST).problems == []


def test_a_run_has_no_use_for_keys_of_cost() -> None:
    (problem,) = check_overrides(["method=lora", "cost.steps=1", "cost.blocks=1"]).problems
    assert str(problem).startswith("cost.steps=1, cost.blocks=1: no effect on a run")


def config_of(**cost: object) -> RunConfig:
    asked = request("lora")
    return RunConfig(
        method=asked.method,
        backbone=asked.backbone,
        hardware=asked.hardware,
        cost=replace(asked.cost, **cost),
    )


def test_problems_of_a_measurement() -> None:
    wrong = config_of(steps=7, image_size=[3], batch_size=0)
    wrong = replace(
        wrong,
        method={"name": "lora", "rank": 0},
        backbone=replace(wrong.backbone, image_size=32, model="vit_tiny_patch16_225"),
    )
    text = "\n".join(map(str, validation.measurement_problems(wrong)))
    for expected in (
        "cost.batch_size=0: out of range",
        "cost.steps=6",
        "must be height and width",
        "backbone.image_size=32",
        "method.rank=0",
        "timm has no such model",
    ):
        assert expected in text
    assert list(validation.measurement_problems(config_of())) == []
    unsupported = replace(config_of(), backbone=replace(config_of().backbone, model="resnet18"))
    assert list(validation.measurement_problems(unsupported)) == []


def test_a_directory_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cost\.results_dir=.*is a file, not a folder"):
        ask(config_of(results_dir=str(tmp_path / "file")), Console(quiet=True))


def test_identity() -> None:
    """The same for what changes nothing, another one for everything else, and readable."""
    base = request("lora")
    card_id = base.card_id("a CPU")
    assert re.fullmatch(r"demo_vit/lora/[0-9a-f]{10}", card_id)
    same = request("lora", allow_busy=False, results_dir="elsewhere")
    same.hardware = replace(same.hardware, name="auto", accelerator="auto", workers=7)
    same.backbone = replace(same.backbone, weights="hub")
    assert same.card_id("a CPU") == card_id
    others = [
        base.card_id("another CPU"),
        request("lora", steps=4).card_id("a CPU"),
        request("lora", hardware={"compile": True}).card_id("a CPU"),
        request("lora", hardware={"threads": 2}).card_id("a CPU"),
        request("ssf").card_id("a CPU"),
        replace(base, method=base.method | {"rank": 4}).card_id("a CPU"),
        replace(base, backbone=replace(base.backbone, image_size=64)).card_id("a CPU"),
    ]
    assert len({card_id, *others}) == len(others) + 1
    assert from_plain(json.loads(json.dumps(base.asked()))) == base


def test_a_request_states_every_option_and_random_weights() -> None:
    """alpha=8 and alpha=8.0 are one request, as is an option at its default."""
    spelled = replace(config_of(), method={"name": "lora", "alpha": 8})
    other = replace(config_of(), method={"name": "lora", "alpha": 8.0, "rank": 8})
    assert request_of(spelled) == request_of(other)
    assert request_of(spelled).method["rank"] == 8
    assert request_of(spelled).backbone.weights == "none"


def test_which_cards_are_kept(tmp_path: Path) -> None:
    from tests.cost.measuring import METERED, card_of

    path = tmp_path / "card.json"
    assert _kept(path, busy_will_do=True) is None
    card = card_of("linear")
    cards.write(card, path)
    assert _kept(path, busy_will_do=False) == card
    busy = replace(METERED.described, busy="in use by others")
    cards.write(replace(card, where=replace(card.where, device=busy)), path)
    assert _kept(path, busy_will_do=False) is None
    assert _kept(path, busy_will_do=True) is not None
    unsupported = card_of("hf/c3a")
    cards.write(unsupported, path)
    assert _kept(path, busy_will_do=True) is None
    path.write_text("{")
    assert _kept(path, busy_will_do=True) is None


def test_two_processes_do_not_measure_one_card(tmp_path: Path) -> None:
    config = config_of(results_dir=str(tmp_path))
    path = request_of(config).card_path(device_name(config.hardware.accelerator))
    path.parent.mkdir(parents=True)
    with claimed(path.with_name(CLAIM)):
        found = ask(config, Console(quiet=True))
    assert (found.result, found.card) == (Result.BUSY, None)
    assert found.reason.startswith(f"another process is measuring this: process {os.getpid()} on ")
    assert find(config, Seen()) == Standing(path)
    assert not path.exists()
