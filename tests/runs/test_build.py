"""How the parts of a run fit: heads, their counts and files, learning rates by depth, merging."""

from __future__ import annotations

import itertools
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests import running
from vpeft_bench.cli.overrides import check_overrides
from vpeft_bench.config.schema import RunConfig, typed
from vpeft_bench.config.sections import Optimizer, Schedule, TrainConfig
from vpeft_bench.data.dataset import Dataset, open_dataset
from vpeft_bench.errors import VpeftBenchError
from vpeft_bench.methods.registry import build_method, list_methods
from vpeft_bench.runs.build import (
    build_model,
    build_task,
    head_parameters,
    head_state,
    layer_factors,
    load_head,
    trained_parameters,
)
from vpeft_bench.tasks.base import Model, Task
from vpeft_bench.tasks.names import kind_of
from vpeft_bench.tasks.optim import Trained, build_optimizer, schedule

SMALL = ("head.channels=16", "head.hidden=32", "train.batch_size=2", "hardware.workers=0")


def config_of(*overrides: str) -> RunConfig:
    checked = check_overrides([*overrides, *SMALL], multirun=False)
    assert checked.problems == []
    assert checked.config is not None
    return typed(checked.config)


def built(*overrides: str) -> tuple[RunConfig, Dataset, Model, Task]:
    config = config_of(*overrides)
    dataset = open_dataset(config.data)
    torch.manual_seed(0)
    model = build_model(config, dataset)
    return config, dataset, model, build_task(config, dataset, model, steps_per_epoch=5)


@pytest.mark.parametrize("data", ["scenes_detection", "scenes_segmentation"])
def test_everything_but_the_backbone_is_head(data: str) -> None:
    _, _, model, task = built(f"data=demo/{data}", "method=lora", "head.norm=group")
    attached = model.attached
    head = head_parameters(attached, task.model)
    backbone = list(attached.model.parameters())
    assert len(head) + len(backbone) == len(list(task.model.parameters()))
    assert all(parameter.requires_grad for parameter in head)
    trained = {entry.parameter for entry in trained_parameters(attached, task.model, TRAIN)}
    assert trained == {p for p in task.model.parameters() if p.requires_grad}


TRAIN = config_of("data=demo/scenes_detection").train


def test_a_head_is_stored_and_another_one_is_refused(tmp_path: Path) -> None:
    *_, model, task = built("data=demo/scenes_detection", "method=linear")
    path = tmp_path / "head.safetensors"
    state = head_state(model.attached, task.model)
    save_file({name: tensor.detach().clone() for name, tensor in state.items()}, path)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(VpeftBenchError, match=r"cut\.safetensors cannot be read"):
        load_head(model.attached, task.model, cut)
    spoilt = {name: torch.full_like(tensor, torch.nan) for name, tensor in state.items()}
    save_file(spoilt, tmp_path / "spoilt.safetensors")
    with pytest.raises(VpeftBenchError, match=r"spoilt\.safetensors is not used: .* holds NaN"):
        load_head(model.attached, task.model, tmp_path / "spoilt.safetensors")
    *_, other_model, other = built("data=demo/scenes_detection", "method=linear", "seed=1")
    with torch.no_grad():
        for parameter in head_parameters(other_model.attached, other.model):
            parameter.add_(1.0)
    load_head(other_model.attached, other.model, path)
    loaded = head_state(other_model.attached, other.model)
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    wide = ("data=demo/scenes_detection", "method=linear", "head=retinanet")
    *_, wrong_model, wrong = built(*wide)
    before = [p.clone() for p in head_parameters(wrong_model.attached, wrong.model)]
    with pytest.raises(VpeftBenchError, match="belongs to another head"):
        load_head(wrong_model.attached, wrong.model, path)
    after = head_parameters(wrong_model.attached, wrong.model)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_merging_inside_a_detector_changes_no_detection() -> None:
    config, dataset, model, task = built(
        "data=demo/scenes_detection", "method=lora", "head.score_threshold=0.0"
    )
    with torch.no_grad():
        for parameter in model.attached.trainable_parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    batches = kind_of(config).batches(config, dataset, model.preprocessing, "val", train=False)
    images, _ = next(iter(batches))
    task.eval()
    with torch.no_grad():
        before = task.model.detect(images[:2])  # type: ignore[operator]
        model.attached.merge()
        after = task.model.detect(images[:2])  # type: ignore[operator]
    for found, again in zip(before, after, strict=True):
        assert len(found["boxes"]) > 0
        torch.testing.assert_close(again["scores"], found["scores"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(again["boxes"], found["boxes"], rtol=1e-3, atol=1e-2)


def test_gradient_checkpointing_gives_the_same_loss_and_gradients() -> None:
    losses, gradients = [], []
    for checkpointed in ("false", "true"):
        config, dataset, model, task = built(
            "data=demo/scenes_segmentation",
            "method=adapter",
            f"hardware.gradient_checkpointing={checkpointed}",
        )
        batches = kind_of(config).batches(config, dataset, model.preprocessing, "train", train=True)
        task.train()
        loss = task.loss(next(iter(batches)))
        loss.backward()
        losses.append(loss.item())
        gradients.append([p.grad for p in model.attached.trainable_parameters()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for plain, checked in zip(*gradients, strict=True):
        assert plain is not None
        torch.testing.assert_close(plain, checked)


@pytest.mark.parametrize("backbone", ["demo_vit", "swin_t"])
def test_learning_rates_fall_with_the_depth(backbone: str) -> None:
    *_, model, _ = built(
        "data=demo/scenes_detection", "method=full", f"backbone={backbone}", "backbone.weights=none"
    )
    outlined = model.attached.backbone
    factors = layer_factors(outlined, 0.5)
    depth = len(outlined.blocks)
    for block in outlined.blocks:
        assert {factors[p] for p in block.module.parameters()} == {0.5 ** (depth - block.index)}
    assert {factors[p] for p in outlined.final_norm.parameters()} == {1.0}
    assert {factors[p] for p in outlined.patch_leaves[0].parameters()} == {0.5 ** (depth + 1)}
    first_of_stage = {b.stage: b.index for b in reversed(outlined.blocks)}
    for stage, norm in enumerate(outlined.merge_norms, start=1):
        expected = 0.5 ** (depth - first_of_stage[stage])
        assert {factors[p] for p in norm.parameters()} == {expected}
    assert set(layer_factors(outlined, 1.0).values()) == {1.0}


def test_labels_are_smoothed_in_training(tiny_data: Path) -> None:
    config = running.config_of(
        "data=imagelist", f"data.root={tiny_data}", "method=linear", "train.label_smoothing=0.3"
    )
    dataset = open_dataset(config.data)
    task = build_task(config, dataset, build_model(config, dataset), steps_per_epoch=5)
    images, labels = torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.arange(4)
    logits = task(images)
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.3)
    torch.testing.assert_close(task.loss((images, labels)), expected)


def rates(chosen: Schedule, epochs: int = 10, **changes: object) -> list[float]:
    """The learning rate of every step, four to an epoch."""
    train = config_of("data=demo/scenes_detection", f"train.epochs={epochs}").train
    train.schedule, train.warmup_epochs, train.lr, train.min_lr = chosen, 1.0, 1.0, 0.0
    for name, value in changes.items():
        setattr(train, name, value)
    parameter = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = build_optimizer(
        [Trained(parameter), Trained(torch.nn.Parameter(torch.zeros(1)), 0.1)], train
    )
    scheduler = schedule(optimizer, train, steps_per_epoch=4)
    found = []
    for _ in range(4 * epochs):
        found.append(optimizer.param_groups[0]["lr"])
        assert optimizer.param_groups[1]["lr"] == pytest.approx(0.1 * found[-1])
        optimizer.step()
        scheduler.step()
    return found


def test_the_rate_grows_with_the_batch_where_it_is_for_another_one() -> None:
    found = rates(Schedule.cosine, batch_size=64, lr_batch_size=256, warmup_epochs=0.0)
    assert max(found) == pytest.approx(64 / 256)
    assert found[-1] == pytest.approx(0.0, abs=1e-12)


def test_sgd_is_what_it_is_said_to_be() -> None:
    """One step with momentum and decay that is not decoupled, in numbers."""
    train = TrainConfig(optimizer=Optimizer.sgd, lr=0.5, weight_decay=0.1)
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = build_optimizer([Trained(parameter)], train)
    parameter.grad = torch.full((2, 2), 0.3)
    optimizer.step()  # buffer: 0.3 + 0.1 * 1
    torch.testing.assert_close(parameter.detach(), torch.full((2, 2), 1 - 0.5 * 0.4))
    optimizer.step()  # buffer: 0.9 * 0.4 + 0.3 + 0.1 * 0.8
    torch.testing.assert_close(parameter.detach(), torch.full((2, 2), 0.8 - 0.5 * 0.74))


def test_schedules() -> None:
    steps = rates(Schedule.step, milestones=[5, 8])
    assert steps[:4] == pytest.approx([1e-6, 0.25, 0.5, 0.75], abs=1e-6)
    assert steps[4:20] == [1.0] * 16
    assert steps[20:32] == pytest.approx([0.1] * 12)
    assert steps[32:] == pytest.approx([0.01] * 8)
    poly = rates(Schedule.poly)
    assert poly[4] == 1.0
    assert poly[-1] == pytest.approx(0.0, abs=1e-12)
    differences = {round(a - b, 9) for a, b in pairwise(poly[4:])}
    assert differences == {round(1 / 35, 9)}
    cosine = rates(Schedule.cosine)
    assert cosine[4 + 35 // 2] == pytest.approx(0.5, abs=0.05)


PUBLISHED = [
    "full",
    "linear",
    "bitfit",
    "ln_tune",
    "partial",
    "adapter",
    "lora",
    "adaptformer",
    "lorand",
    "e3va",
    "mona",
]
SWIN = ("backbone=swin_t", "backbone.weights=none", "input.crop=64", "input.inference=whole")


# Every method under a segmenter, and one of each kind under a detector: what a method has to do
# with is the trunk, which is the same under both. Those that are under both are run at once, and
# one with a network beside the trunk; the others by .ci/run.
DETECTED = ("full", "linear", "lora", "mona", "prefix", "vpt_deep")
AT_ONCE = (*DETECTED, "dtl")
CASES = [
    *(
        pytest.param(
            name,
            (),
            "scenes_segmentation",
            id=f"{name}-vit-segmentation",
            marks=() if name in AT_ONCE else pytest.mark.slow,
        )
        for name in list_methods()
        if build_method(name, {}).dense_refusal is None
    ),
    *(pytest.param(name, (), "scenes_detection", id=f"{name}-vit-detection") for name in DETECTED),
    *(
        pytest.param(name, SWIN, f"scenes_{task}", id=f"{name}-swin-{task}", marks=pytest.mark.slow)
        for name, task in [
            ("vpt_shallow", "segmentation"),
            *itertools.product((*PUBLISHED, "vpt_deep"), ("detection", "segmentation")),
        ]
    ),
]


@pytest.mark.parametrize(("method", "backbone", "data"), CASES)
def test_every_method_trains_under_a_dense_head(
    method: str, backbone: tuple[str, ...], data: str
) -> None:
    """Two steps of the real optimizer: what is said to be trained moves, and nothing else does."""
    config, dataset, model, task = built(f"data=demo/{data}", f"method={method}", *backbone)
    batch = next(
        iter(kind_of(config).batches(config, dataset, model.preprocessing, "train", train=True))
    )
    trained = {entry.parameter for entry in task.training_plan.parameters}  # type: ignore[union-attr]
    before = {p: p.detach().clone() for p in task.model.parameters()}
    optimizer = build_optimizer(task.training_plan.parameters, config.train)  # type: ignore[union-attr]
    task.train()
    for _ in range(2):
        optimizer.zero_grad()
        loss = task.loss(batch)
        assert loss.isfinite()
        loss.backward()
        optimizer.step()
    names = {p: name for name, p in task.model.named_parameters()}
    moved = {p for p in before if not torch.equal(before[p], p)}
    assert not {names[p] for p in moved - trained}
    assert not {names[p] for p in trained & set(model.attached.trainable_parameters()) - moved}
