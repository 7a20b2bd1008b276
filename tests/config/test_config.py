"""Every config composes, validates, and has an identity that means something."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from vpeft_bench.cli.overrides import check_overrides
from vpeft_bench.config.choices import config_dir, every_choice
from vpeft_bench.config.identity import config_hash, not_scientific
from vpeft_bench.config.schema import RunConfig, plain, register_schema, typed
from vpeft_bench.config.sections import Schedule
from vpeft_bench.data.composed import compose_with_tasks
from vpeft_bench.heads.names import HEADS
from vpeft_bench.methods.base import default_options
from vpeft_bench.methods.registry import list_methods, method_class
from vpeft_bench.runs import validation

CHOICES = every_choice()
WITH_TASKS = compose_with_tasks(config_dir(), CHOICES["data"])
DATASETS = [config for config, _ in WITH_TASKS]
ALONE = ("experiment", "method")  # have tests of their own
ALL = [(group, name) for group, names in CHOICES.items() for name in names if group not in ALONE]


def composed(*overrides: str) -> RunConfig:
    register_schema()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return typed(compose("config", overrides=list(overrides)))


def test_number_of_configs() -> None:
    """A loop over an empty or partial listing would test nothing."""
    seen = {group: len(names) for group, names in CHOICES.items()}
    assert seen == {
        "method": 42 + 34,  # ours, and the types of the peft library
        "data": 44,
        "backbone": 14,
        "head": 8,
        "task": 4,
        "protocol": 2,
        "hardware": 6,
        "logger": 3,
        "variant": 47,
        "experiment": 14,
    }
    assert CHOICES["method"] == sorted([*list_methods(), *list_methods("hf/")])


def variant_file(name: str) -> dict[str, Any]:
    text = (config_dir() / "variant" / f"{name}.yaml").read_text(encoding="utf-8")
    variant = yaml.safe_load(text)["variant"]
    assert isinstance(variant, dict)
    return variant


def _one_of_a_folder_at_once() -> Iterator[Any]:
    """Of a method's variants and a benchmark's data sets, written alike, the others by .ci/run."""
    seen = set()
    for group, name in ALL:
        folder = f"{group}/{name}".rpartition("/")[0]
        alike = folder.startswith("variant/") or folder in ("data/vtab1k", "data/fgvc")
        yield pytest.param(group, name, marks=pytest.mark.slow if alike and folder in seen else ())
        seen.add(folder)


@pytest.mark.parametrize(("group", "name"), list(_one_of_a_folder_at_once()))
def test_every_config_composes_into_the_schema(group: str, name: str) -> None:
    extra = ["backbone.name=vit_tiny_patch16_224"] if name == "timm" else []
    task = name if group == "task" else HEADS.get(name).task if group == "head" else None
    if group == "variant":  # which may be for some data sets alone
        extra = [f"data={data}" for data in [*variant_file(name).get("per_data", ())][-1:]]
    if task is not None:  # a head makes sense with data for its task only
        demos = (data.name for data, of in WITH_TASKS if of == task and "demo/" in data.name)
        extra = [f"data={next(demos)}"]
    config = composed(f"{group}={name}", *extra)
    chosen = getattr(config, group)
    assert plain(config)[group]
    if group in ("data", "backbone") and name != "timm":
        assert chosen.name == name
    # What depends on the machine (data on disk, weights, CUDA) is not this test's concern.
    problems = list(validation._values(config))
    assert [p for p in problems if "CUDA" not in p.what] == []


@pytest.mark.parametrize(
    ("name", "datasets"), [("demo", 4), ("vtab1k", 19), ("fgvc", 5), ("demo_dense", 3)]
)
def test_experiments_sweep_whole_benchmarks(name: str, datasets: int) -> None:
    register_schema()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose("config", [f"experiment={name}"], return_hydra_config=True)
    assert config.hydra.mode.name == "MULTIRUN"
    swept = config.hydra.sweeper.params.data.split(",")
    benchmark = {c.name for c in DATASETS if c.benchmark == name}
    assert set(swept) == benchmark
    assert len(swept) == datasets


@pytest.mark.parametrize(
    ("name", "head", "backbone"),
    [
        ("coco", "cascade_mask_rcnn", "swin_b"),
        ("voc0712", "retinanet", "swin_l"),
        ("ade20k", "upernet", "swin_l"),
    ],
)
def test_published_dense_recipes(name: str, head: str, backbone: str) -> None:
    config = composed(f"experiment={name}", "method=mona")
    assert config.head is not None
    assert config.input is not None
    assert (config.data.name, config.head.name, config.backbone.name) == (name, head, backbone)
    segmentation = config.task["name"] == "segmentation"
    assert config.input.size_divisor == (32 if segmentation else 224)
    assert config.train.lr == (3e-4 if segmentation else 1e-4)
    assert config.train.schedule is (Schedule.poly if segmentation else Schedule.step)
    assert list(validation._values(config)) == []
    assert list(validation._task(config)) == []
    warm_up = {"coco": 500 * 16 / 118_287, "voc0712": 0.0, "ade20k": 1500 * 16 / 20_210}
    assert config.train.warmup_epochs == pytest.approx(warm_up[name], rel=0.01)
    full = composed(f"experiment={name}", "method=full")
    assert full.train.lr == (6e-5 if segmentation else 1e-4)


def test_the_published_coco_rows_have_their_own_heads_and_cuts() -> None:
    config = composed("experiment=coco", "method=mona")
    assert config.head is not None
    assert config.input is not None
    head, sizes = config.head, config.input
    assert (head.box, head.box_loss.value, head.class_boxes) == ("4conv1fc", "giou", True)
    assert sizes.shorter_sides == list(range(480, 801, 32))
    assert (sizes.crop_shorter_sides, sizes.crop_sides) == ([400, 500, 600], [384, 600])


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["data=demo/scenes_detection", "head.box=4conv"], "did you mean head.box=4conv1fc"),
        (["data=demo/scenes_detection", "head=retinanet", "head.box=4conv1fc"], "no heads on"),
        (["data=demo/scenes_detection", "head.box_loss=giou"], "head=cascade_mask_rcnn alone"),
        (["data=demo/scenes_detection", "head.class_boxes=true"], "head.class_boxes=true"),
        (["data=demo/scenes_detection", "input.crop_shorter_sides=[99]"], "longer_side=64"),
        (
            [
                "data=demo/scenes_detection",
                "input.crop_shorter_sides=[9]",
                "input.crop_sides=[600,384]",
            ],
            "input.crop_sides=[384,600]",
        ),
    ],
)
def test_parts_of_detectors_that_do_not_fit(overrides: list[str], problem: str) -> None:
    config = composed(*overrides)
    text = "\n".join(map(str, [*validation._values(config), *validation._task(config)]))
    assert problem in text
    assert "Traceback" not in text


@pytest.mark.parametrize("name", [n for n in CHOICES["backbone"] if n != "timm"])
def test_every_backbone_is_known_to_timm_and_has_a_block_map(name: str) -> None:
    from vpeft_bench.backbones.load import check_model, outline

    backbone = composed(f"backbone={name}").backbone
    assert check_model(backbone.model) == []
    assert outline(backbone.model, backbone.image_size, **backbone.model_args).blocks


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=pytest.mark.slow if name.startswith("hf/") and name != "hf/lora" else (),
        )
        for name in CHOICES["method"]
    ],
)
def test_a_method_is_chosen_with_every_option_at_its_default(name: str) -> None:
    """No file says so: the options are those of its class."""
    config = composed(f"method={name}")
    assert config.method == {"name": name, **default_options(method_class(name))}
    assert list(validation._values(config)) == []


def test_identity_changes_with_every_scientific_key() -> None:
    base = composed()
    reference = config_hash(base, "data", "weights")
    changes = {
        "method.rank": "4",
        "train.epochs": "11",
        "train.lr": "0.02",
        "train.batch_size": "16",
        "train.weight_decay": "0.5",
        "train.label_smoothing": "0.1",
        "train.schedule": "poly",
        "train.milestones": "[3]",
        "train.layer_decay": "0.8",
        "train.head_lr_factor": "2.0",
        "data.normalization": "imagenet",
        "data.augmentation": "crop_flip",
        "backbone.drop_path": "0.1",
        "backbone.image_size": "48",
        "hardware.precision": "bf16",
    }
    hashes = {config_hash(composed(f"{k}={v}"), "data", "weights") for k, v in changes.items()}
    assert len(hashes | {reference}) == len(changes) + 1
    assert config_hash(base, "other data", "weights") != reference
    assert config_hash(base, "data", "other weights") != reference


def test_identity_ignores_where_and_how_conveniently() -> None:
    reference = config_hash(composed(), "data", "weights")
    same = composed(
        "seed=5",
        "results_dir=elsewhere",
        "rerun=true",
        "logger=wandb",
        "cost.steps=10",
        "hardware=cpu",
        "hardware.threads=1",
        "hardware.workers=0",
        "hardware.eval_batch_size=7",
        "hardware.compile=true",
        "backbone.weights=elsewhere.safetensors",
        "data.root=elsewhere",
        "data.cache_gib=0",
        "hardware.gradient_checkpointing=true",
        "render=true",
        "train.learning_rates.full=1.0",
    )
    assert config_hash(same, "data", "weights") == reference
    assert {"seed", "cost", "train.learning_rates", "data.root"} < set(not_scientific())
    assert not [key for key in not_scientific() if key.startswith("cost.")]  # it goes as a whole


def test_every_problem_is_reported_at_once() -> None:
    checked = check_overrides(
        ["method=lroa", "train.epochz=3", "train.lr=abc", "foo", "data=demo/digit", "seed=1"]
    )
    text = "\n".join(map(str, checked.problems))
    assert len(checked.problems) == 5
    for expected in (
        "method=lora",
        "did you mean train.epochs=",
        "train.lr=abc",
        "foo: is not an override",
        "did you mean data=demo/digits",
    ):
        assert expected in text


def test_semantic_problems_are_reported_at_once(tmp_path: Path) -> None:
    config = composed(
        "method=vpt_deep",
        "method.prompt_length=0",
        "backbone=swin_b",
        f"backbone.weights={tmp_path / 'none.safetensors'}",
        "data=vtab1k/cifar",
        f"data.root={tmp_path}",
        "train.epochs=0",
        "seed=-1",
    )
    text = "\n".join(map(str, validation.problems(config)))
    for expected in (
        "train.epochs=0",
        "seed=-1",
        "method.prompt_length=0",
        "there is no file",
        str(tmp_path / "cifar"),
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.background=wite"], "did you mean data.background=white"),
        (["data.background=white"], "has no effect: demo/digits is rendered"),
        (["data.background='#ffffff80'"], "is no opaque colour"),
        (["data.original_format=pngg"], "did you mean data.original_format=png"),
    ],
)
def test_how_pictures_are_read_is_checked(overrides: list[str], expected: str) -> None:
    config = composed("method=linear", "data=demo/digits", *overrides)
    assert expected in "\n".join(map(str, validation.problems(config)))


def test_unsupported_pair_is_told_before_weights() -> None:
    config = composed("method=lst", "backbone=swin_b", "backbone.weights=none")
    (problem,) = validation.problems(config)
    assert "lst does not support swin" in problem.what


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["method=lora,vpt_deep", "method.rank=4"], "method.rank with method=vpt_deep"),
        (["method=lora,sff"], "did you mean method=ssf"),
        (["train.lr=1e-3,abc"], "train.lr=abc"),
    ],
)
def test_sweeps_are_checked_value_by_value(overrides: list[str], expected: str) -> None:
    assert expected in "\n".join(map(str, check_overrides(overrides).problems))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["method=lora,ssf"], "add -m"),
        (["seed=range(0,3)"], "add -m"),
        (["backbone=timm"], "type backbone.name="),
        (["hydra/launcher=jobllib"], "did you mean hydra/launcher=joblib"),
        (["hardware=slurm"], "no sbatch"),
        (["hardware=slurm"], "add -m"),
    ],
)
def test_launch_problems(
    overrides: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    checked = check_overrides(overrides, multirun=False)
    assert expected in "\n".join(map(str, checked.problems))


def test_keys_of_an_experiments_own_data_can_be_overridden() -> None:
    typed_keys = ["experiment=demo_dense", "input.flip=0", "head.channels=32"]
    assert check_overrides(typed_keys, multirun=False).problems == []
    (problem,) = check_overrides(["experiment=demo_dense", "input.flips=0"]).problems
    assert "input.flip" in problem.fix


def test_experiments_are_sweeps_of_their_own() -> None:
    """As globs are, of which test_jobs.py has tests."""
    assert check_overrides(["experiment=demo", "method=lora,ssf"], multirun=False).problems == []


def test_right_overrides_have_no_problem() -> None:
    right = ["method=lora", "method.targets=[q,k,v]", "train.lr=0.1,0.2", "seed=range(0,3)"]
    checked = check_overrides([*right, "data.num_classes=null", "hydra/launcher=joblib"])
    assert checked.problems == []
    assert OmegaConf.select(checked.config, "method.targets") == ["q", "k", "v"]


def test_broken_user_config_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("name: a: b\n")
    (problem,) = check_overrides(["data=mine"], [str(tmp_path)]).problems
    assert "mine.yaml" in problem.what


def test_user_config_directory(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("name: mine\nreader: image_list\n")
    assert check_overrides(["data=mine"]).problems
    assert check_overrides(["data=mine"], [str(tmp_path)]).problems == []


@pytest.mark.parametrize(
    ("own", "name"),
    [("coco_json", "coco"), ("csv", "vtab1k/cifar"), ("imagelist", "fgvc/cub")],
)
def test_the_name_of_another_data_set_is_refused(own: str, name: str) -> None:
    """In a benchmark's summary its results would stand as those of the data set so named."""
    config = composed(f"data={own}", f"data.name={name}")
    (problem,) = validation._borrowed_name(config)
    assert f"data.name={name}: is the name of data={name}" in str(problem)
    assert not list(validation._borrowed_name(composed(f"data={own}", "data.name=mine")))
    assert not list(validation._borrowed_name(composed(f"data={name}")))


def test_names_are_looked_up_within_a_job_of_hydra() -> None:
    """Which has Hydra initialised for its own config, and goes on with it."""
    config = composed("data=coco_json", "data.name=coco")
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        assert len(list(validation._borrowed_name(config))) == 1
        assert compose("config", overrides=["data=demo/digits"]).data.name == "demo/digits"
