"""Variants: one row of a table with settings for each data set."""

from __future__ import annotations

import csv
import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf
from rich.console import Console

from tests.conftest import shared_path
from tests.leaderboard.as_rows import cells, summaries
from vpeft_bench.cli.overrides import check_overrides
from vpeft_bench.config.choices import choices_on_disk, config_dir
from vpeft_bench.config.schema import RunConfig, plain, typed
from vpeft_bench.config.sections import VariantConfig
from vpeft_bench.config.variants import settings_on
from vpeft_bench.data.composed import compose_data_configs
from vpeft_bench.fields import settings
from vpeft_bench.methods.base import default_options
from vpeft_bench.methods.registry import build_method, method_class
from vpeft_bench.records.run_record import find
from vpeft_bench.runs.run import run
from vpeft_bench.runs.validation import quick_problems

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
    quick += ["backbone=timm", "backbone.name=vit_tiny_patch16_224", "backbone.weights=none"]
    quick += ["backbone.image_size=32", "+backbone.model_args.depth=1"]
    console = Console(quiet=True)
    for data, rank in (("digits", 4), ("sprites_count", 16)):
        run(config_of(own, "variant=mine", f"data=demo/{data}", *quick), console)
        same = ("method=lora", "method.alpha=8", f"method.rank={rank}")
        run(config_of(own, *same, f"data=demo/{data}", *quick), console)
    found = find([tmp_path / "runs"]).records
    names = sorted(record.variant for _, record in found)
    assert names == ["lora alpha=8.0 rank=16", "lora alpha=8.0 rank=4", "mine", "mine"]
    made = cells(*(record for _, record in found))
    (summary,) = summaries(made)
    assert dict(zip(summary.rows["name"], summary.rows["complete"], strict=True)) == {
        "mine": "2/4",
        "lora alpha=8.0 rank=4": "1/4",
        "lora alpha=8.0 rank=16": "1/4",
    }
    mine = made[made["name"] == "mine"]
    assert set(mine["chosen"]) == {"by hand"}
    assert sorted("rank=16" in options for options in mine["own_options"]) == [False, True]


def file_of(name: str) -> dict[str, Any]:
    text = (config_dir() / "variant" / f"{name}.yaml").read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    assert isinstance(content, dict)
    return content | {"comment": text.partition("defaults:")[0]}


@functools.cache
def untold() -> dict[str, Any]:
    return plain(config_of([]))


@pytest.mark.parametrize("name", choices_on_disk()["variant"])
def test_published_variants_say_where_they_come_from_and_can_be_run(name: str) -> None:
    """On each of their data sets; that they compose is tested with all other configs."""
    content = file_of(name)
    variant = VariantConfig(**content["variant"])
    assert variant.name == name
    assert name.startswith(f"{variant.method}/")
    assert variant.chosen.startswith(("published: ", "tuned: "))
    assert "https://" in content["comment"]
    sections = {k: v for k, v in content.items() if k not in ("comment", "defaults", "variant")}
    taken = {f"{k}.{key}": value for k, keys in sections.items() for key, value in keys.items()}
    method = {"name": variant.method, **default_options(method_class(variant.method))}
    asked = OmegaConf.create(untold() | {"method": method, "variant": content["variant"]})
    for data in reversed([*variant.per_data] or ["demo/digits"]):
        found = settings_on(variant, data)
        assert taken == {key: f"${{of_variant:{key}}}" for key in found}
        for key, value in {"data.name": data, **found}.items():
            OmegaConf.update(asked, key, value)
            in_range(key, value)
        options = OmegaConf.to_container(asked.method)
        assert isinstance(options, dict)
        assert build_method(str(options.pop("name")), options)
    [named] = compose_data_configs(config_dir(), [data])
    OmegaConf.update(asked, "data", {"reader": named.reader, "benchmark": named.benchmark})
    assert list(quick_problems(typed(asked))) == []  # of the first alone: it takes its time


def in_range(key: str, value: Any) -> None:
    if not key.startswith("method.") and isinstance(value, int | float):
        said = settings(RunConfig)[key]
        assert (said.minimum or 0) <= value <= (said.maximum or math.inf)


# As others call the data sets.
ALIASES = {
    "cifar_100": "vtab1k/cifar",
    "cifar100": "vtab1k/cifar",
    "flowers102": "vtab1k/oxford_flowers102",
    "pet": "vtab1k/oxford_iiit_pet",
    "pets": "vtab1k/oxford_iiit_pet",
    "camelyon": "vtab1k/patch_camelyon",
    "retinopathy": "vtab1k/diabetic_retinopathy",
    "clevr_distance": "vtab1k/clevr_dist",
    "dsprites_position": "vtab1k/dsprites_loc",
    "dsprites_orientation": "vtab1k/dsprites_ori",
    "smallnorb_azimuth": "vtab1k/smallnorb_azi",
    "smallnorb_elevation": "vtab1k/smallnorb_ele",
    "cub_2011": "fgvc/cub",
    "CUB_200_2011": "fgvc/cub",
    "nabirds": "fgvc/nabirds",
    "oxford_flowers": "fgvc/oxford_flowers",
    "OxfordFlower": "fgvc/oxford_flowers",
    "stanford_dogs": "fgvc/stanford_dogs",
    "StanfordDogs": "fgvc/stanford_dogs",
    "stanford_cars": "fgvc/stanford_cars",
    "StanfordCars": "fgvc/stanford_cars",
}
OPTIMISATION = {"lr": "train.lr", "weight_decay": "train.weight_decay"}
SCRIPTS = {**OPTIMISATION, "drop_path": "backbone.drop_path", "epochs": "train.epochs"}
LISTED = {**SCRIPTS, "label_smoothing": "train.label_smoothing"}
SCALED = {"rank": "method.rank", "scale": "method.scale", **SCRIPTS}
GRID = {"lr": "train.lr", "wd": "train.weight_decay"}


@pytest.mark.parametrize(
    ("name", "source", "method", "columns"),
    [
        ("fact_tk/authors", "original_author_hparams", "FacT-TK", SCALED),
        ("fact_tt/authors", "original_author_hparams", "FacT-TT", SCALED),
        ("convpass/authors", "original_author_hparams", "Convpass", {"scale": "method.scale"}),
        ("convpass/authors_attn", "published_hparams", "convpass_attn", {"scale": "method.scale"}),
        ("repadapter/authors", "original_author_hparams", "RepAdapter", {"scale": "method.scale"}),
        ("dtl/authors", "original_author_hparams", "DTL", SCRIPTS),
        ("dtl/authors_plus", "original_author_hparams", "DTL+", SCRIPTS),
        ("ssf/authors", "original_author_hparams", "SSF", SCRIPTS),
        ("gps/authors", "original_author_hparams", "GPS", SCRIPTS),
        ("synqt/authors", "published_hparams", "synqt", {"token_nums": "method.prompt_length"}),
        (
            "vpt_deep/adapter_plus_paper",
            "published_hparams",
            "vpt_deep_tokens",
            {"dataset_tokens": "method.prompt_length"},
        ),
        ("lora/vpetl", "vpetl_hparams", "LoRA", {"topN": "method.rank", **LISTED}),
        ("sct/vpetl", "vpetl_hparams", "SCT", {"topN": "method.channels", **LISTED}),
        ("vpt_shallow/vpetl", "vpetl_hparams", "VPT-Shallow", LISTED),
        (
            "adaptformer/osu",
            "osu/osu_vtab_tuned",
            "adaptformer",
            {"adapter_scaler": "method.scale"},
        ),
        ("ln_tune/osu", "osu/osu_vtab_tuned", "ln", GRID),
        ("vpt_deep/osu", "osu/osu_vtab_tuned", "vpt_deep", {"vpt_num": "method.prompt_length"}),
    ],
)
def test_settings_are_the_published_ones(
    name: str, source: str, method: str, columns: dict[str, str]
) -> None:
    variant = VariantConfig(**file_of(name)["variant"])
    seen = set()
    with shared_path(f"reference/{source}.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == method]
    for row in rows:
        said = row | json.loads(row.get("params_json") or row.get("best_tune_json") or "{}")
        data = ALIASES.get(row["dataset"], f"vtab1k/{row['dataset']}")
        if row["dataset"] == "cifar_aug_norm" or said.get("lr") == "":  # augmented; not given
            continue
        found = settings_on(variant, data)
        assert {key: found[key] for key in columns.values()} == {
            key: float(said[column]) for column, key in columns.items()
        }
        seen.add(data)
    assert {data for data in variant.per_data if data.startswith("vtab1k/")} <= seen
    assert len(seen) >= 19
