"""What the contract does not ask of a family: weights from files, feature maps, two heads."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import vpeft_bench
from vpeft_bench.backbones import block_map
from vpeft_bench.backbones.features import StageFeatures
from vpeft_bench.backbones.load import load_backbone, traits_of
from vpeft_bench.backbones.weights import WeightsSource, load_weights
from vpeft_bench.heads.classifiers import BatchNormLinear, norm_before_classifier
from vpeft_bench.traits import Trait

sys.path.append(str(Path(__file__).resolve().parents[1] / "methods"))
from tiny_models import FURTHER, build, images


@pytest.mark.parametrize("kind", FURTHER)
def test_weights_fill_it_and_leave_the_heads(kind: str, tmp_path: Path) -> None:
    saved, model = build(kind), build(kind, seed=5)
    path = tmp_path / "weights.safetensors"
    save_file(saved.state_dict(), path)
    assert load_weights(model, WeightsSource("file", str(path), path)) == ()
    head = {id(p) for p in block_map(model).head.parameters()}
    own = model.state_dict(keep_vars=True)
    differing = {name for name, tensor in saved.state_dict().items() if not tensor.equal(own[name])}
    assert differing == {name for name, tensor in own.items() if id(tensor) in head}


def test_the_original_names_of_dinov3_are_read(tmp_path: Path) -> None:
    """Storage tokens, layer scales, and a qkv bias that timm's model has not."""
    saved, model = build("dinov3"), build("dinov3", seed=5)
    names = {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
    state: dict[str, Tensor] = {}
    for name, tensor in saved.state_dict().items():
        for timms, theirs in names.items():
            name = name.replace(timms, theirs)
        if not name.startswith("head."):
            state[name] = tensor
    state["mask_token"] = torch.zeros(1, 32)
    path = tmp_path / "dinov3.pth"
    torch.save(state, path)
    load_weights(model, WeightsSource("file", str(path), path))
    own = model.state_dict()
    assert all(
        tensor.equal(own[name])
        for name, tensor in saved.state_dict().items()
        if not name.startswith("head.")
    )


@pytest.mark.parametrize("kind", FURTHER)
def test_feature_maps_are_those_of_timm(kind: str) -> None:
    model = build(kind)
    features = StageFeatures(block_map(model))
    with torch.no_grad():
        maps = features(images())
        expected: list[Tensor] = model.forward_intermediates(
            images(), indices=len(maps), norm=True, intermediates_only=True
        )
    assert [m.shape[1:2] for m in maps] == [(w,) for w in features.widths]
    assert [32 // m.shape[2] for m in maps] == list(features.strides)
    if not isinstance(model.norm, torch.nn.Identity):
        assert torch.equal(maps[-1], expected[-1])


def test_swin_v2_takes_any_size() -> None:
    name, arguments = FURTHER["swinv2"]
    others = {key: value for key, value in arguments.items() if key != "img_size"}
    loaded = load_backbone(name, "none", 0, image_size=32, any_size=True, **others)
    assert loaded.any_size
    attached = vpeft_bench.attach(loaded.model, "mona")
    maps = StageFeatures(attached.backbone)(torch.randn(1, 3, 40, 56))
    assert [tuple(m.shape[2:]) for m in maps] == [(20, 28), (10, 14)]


def test_both_heads_of_a_distilled_deit_are_normed_and_trained_apart() -> None:
    model = build("deit")
    attached = vpeft_bench.attach(model, "linear")
    norm_before_classifier(model, 1e-6)
    assert all(isinstance(head, BatchNormLinear) for head in attached.backbone.heads)
    assert sum(p.numel() for p in attached.head_parameters()) == 2 * (32 * 5 + 5)
    model.train().set_distilled_training(True)
    logits, of_distillation = model(images(4))
    assert logits.shape == of_distillation.shape == (4, 5)


def test_traits_are_those_of_the_family_of_a_name() -> None:
    assert Trait.PATCH_MERGING in traits_of("swinv2_tiny_window8_256")
    assert Trait.FREE_TOKENS not in traits_of("beit_base_patch16_224")
    assert traits_of("resnet18") == frozenset()
