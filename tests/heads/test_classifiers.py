"""``head=batch_norm``: BatchNorm without affine parameters, then the backbone's own classifier."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hydra import compose, initialize_config_dir
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

import vpeft_bench
from vpeft_bench.config.choices import config_dir
from vpeft_bench.config.identity import config_hash
from vpeft_bench.config.schema import RunConfig, register_schema, typed
from vpeft_bench.data.dataset import open_dataset
from vpeft_bench.heads.classifiers import BatchNormLinear, norm_before_classifier
from vpeft_bench.records.run_record import RunRecord
from vpeft_bench.runs import feature_store, validation
from vpeft_bench.runs.build import build_model, build_task, load_head
from vpeft_bench.runs.run import run
from vpeft_bench.runs.shown import reopen, show
from vpeft_bench.tasks.classification.module import Classification


def config(*overrides: str) -> RunConfig:
    register_schema()
    quick = ("train.epochs=3", "train.batch_size=32", "hardware=cpu", "hardware.threads=1")
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return typed(compose("config", overrides=[*quick, *overrides]))


def imagelist(data: Path, *overrides: str) -> RunConfig:
    return config("data=imagelist", f"data.root={data}", "head=batch_norm", *overrides)


def record_of(data: Path, results: Path, *overrides: str) -> tuple[RunRecord, Path]:
    outcome = run(imagelist(data, f"results_dir={results}", *overrides), Console(quiet=True))
    assert outcome.record is not None
    return outcome.record, outcome.directory


@pytest.mark.parametrize("eps", [1e-6, 1e-5])
@pytest.mark.parametrize("training", [True, False])
def test_it_is_batch_norm_and_the_linear(training: bool, eps: float) -> None:
    """Values, gradients and running statistics of the two modules one after the other."""
    torch.manual_seed(0)
    linear = nn.Linear(6, 3)
    batch_norm = nn.BatchNorm1d(6, affine=False, eps=eps)
    written_out = nn.Sequential(batch_norm, copy.deepcopy(linear)).train(training)
    head = BatchNormLinear(linear, eps).train(training)
    assert head.weight is linear.weight
    for scale in (1e-3, 2.0):  # small features, where eps shows
        x = scale * torch.randn(8, 6)
        inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
        outputs = [head(inputs[0]), written_out(inputs[1])]
        assert torch.equal(*outputs)
        for output in outputs:
            output.square().sum().backward()
        assert torch.equal(inputs[0].grad, inputs[1].grad)  # type: ignore[arg-type]
    assert torch.equal(head.norm.running_mean, batch_norm.running_mean)  # type: ignore[arg-type]
    assert torch.equal(head.norm.running_var, batch_norm.running_var)  # type: ignore[arg-type]
    assert [tuple(p.shape) for p in head.parameters()] == [(3, 6), (3,)]


@pytest.mark.parametrize("method", ["linear", "lora", "hst", "synqt", "kadaptation"])
@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_it_stands_before_the_classifier_of_a_model(kind: str, method: str) -> None:
    """Also where the method brought a narrower classifier; the counts stay."""
    if kind == "swin" and method in ("hst", "synqt"):
        pytest.skip("not defined there")
    torch.manual_seed(0)
    model: Any = (
        timm.create_model("vit_tiny_patch16_224", img_size=64, depth=4, num_classes=7)
        if kind == "vit"
        else timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=56, depths=(1, 1, 1, 1), num_classes=7
        )
    )
    attached = vpeft_bench.attach(model, method)
    counts = attached.parameter_counts()
    pictures = torch.randn(4, 3, *[64 if kind == "vit" else 56] * 2)
    model.eval()
    features: list[torch.Tensor] = []
    hook = model.get_classifier().register_forward_pre_hook(lambda _, x: features.append(x[0]))
    model(pictures)
    hook.remove()
    linear = copy.deepcopy(model.get_classifier())
    norm_before_classifier(model, 1e-6)
    head = model.get_classifier()
    assert isinstance(head, BatchNormLinear)
    assert attached.parameter_counts() == counts
    head.norm.running_mean.normal_()
    head.norm.running_var.uniform_(0.5, 2)
    expected = linear(head.norm(features[0]))
    torch.testing.assert_close(model(pictures), expected)


def test_a_run_keeps_its_statistics(tiny_data: Path, tmp_path: Path) -> None:
    """In the head's file, the same from pictures as from features, shown and loaded again."""
    feature_store.forget()
    records, heads = [], []
    for cache in ("off", "memory"):
        record, directory = record_of(
            tiny_data, tmp_path / cache, "method=linear", f"hardware.feature_cache={cache}"
        )
        records.append(record)
        heads.append(load_file(directory / "head.safetensors"))
    feature_store.forget()
    assert [bool(r.happened.frozen_features) for r in records] == [False, True]
    losses = [record.happened.curves["train_loss"] for record in records]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    statistics = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert set(heads[0]) == {"weight", "bias", *statistics}
    assert heads[0]["norm.running_mean"].abs().max() > 0.01
    for name in heads[0]:
        torch.testing.assert_close(heads[0][name], heads[1][name], atol=1e-4, rtol=1e-4)
    assert records[0].happened.parameters is not None
    assert records[0].happened.parameters.head == 128 * 10 + 10
    assert show(reopen(directory)).picture.is_file()

    asked = imagelist(tiny_data, "method=linear")
    dataset = open_dataset(asked.data)
    model = build_model(asked, dataset)
    task = build_task(asked, dataset, model)
    load_head(model.attached, task.model, directory / "head.safetensors")
    loaded = model.attached.backbone.head.state_dict()
    assert all(torch.equal(loaded[name], heads[1][name]) for name in loaded)


def test_an_interrupted_run_resumes_to_the_same_head(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The running statistics travel in the checkpoint."""
    options = ("method=linear", "hardware.feature_cache=off")
    whole, directory = record_of(tiny_data, tmp_path / "whole", *options)
    loss, calls = Classification.loss, []

    def fails_in_the_third_epoch(self: Classification, batch: Any) -> Any:
        calls.append(None)
        if len(calls) > 2 * 7 + 3:
            raise RuntimeError("power failure")
        return loss(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Classification, "loss", fails_in_the_third_epoch)
        with pytest.raises(RuntimeError, match="power failure"):
            record_of(tiny_data, tmp_path / "killed", *options)
    resumed, again = record_of(tiny_data, tmp_path / "killed", *options)
    assert resumed.happened.resumed == 1
    assert resumed.happened.last_epoch == whole.happened.last_epoch
    heads = [load_file(where / "head.safetensors") for where in (directory, again)]
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])


def test_it_is_an_experiment_of_its_own() -> None:
    def identity(*overrides: str) -> str:
        return config_hash(config(*overrides), "data", "weights")

    other = identity("head=batch_norm", "head.norm_eps=1e-5")
    assert len({identity(), identity("head=batch_norm"), other}) == 3


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("head=batch_norm", "train.batch_size=1"), "train.batch_size=2, or leave head= out"),
        (("head=batch_norm", "train.batch_size=199"), "train.batch_size=200"),
        (("method=hst", "train.batch_size=1"), "train.batch_size=2, or another method"),
        (("head=upernet",), "or head=batch_norm"),
        (("head=batch_norm", "head.norm_eps=0"), "head.norm_eps=0"),
    ],
)
def test_what_cannot_be_trained_is_said_before(
    overrides: tuple[str, ...], says: str, tiny_data: Path
) -> None:
    asked = config("data=imagelist", f"data.root={tiny_data}", *overrides)
    (problem,) = validation.problems(asked)
    assert says in f"{problem.where} {problem.what} {problem.fix}"


def test_a_dense_task_has_heads_of_its_own() -> None:
    asked = config("data=demo/scenes_segmentation", "head=batch_norm")
    assert any("no head for segmentation" in problem.what for problem in validation.problems(asked))
