"""The feature maps that dense heads read are timm's own, at any size."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from vpeft_bench.attaching.attachment import attach_method
from vpeft_bench.backbones import block_map
from vpeft_bench.backbones.features import StageFeatures
from vpeft_bench.methods.registry import build_method

torch.set_num_threads(1)

WINDOW = 4
SIZES = [(160, 224), (96, 160), (WINDOW * 32, WINDOW * 32), (72, 36)]


def small_swin() -> Any:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = timm.create_model(
            "swin_tiny_patch4_window7_224",
            num_classes=0,
            img_size=64,
            window_size=WINDOW,
            embed_dim=16,
            depths=(2, 2, 2, 2),
            num_heads=(1, 2, 4, 8),
            drop_path_rate=0.0,
            strict_img_size=False,
            always_partition=True,
        )
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def small_vit() -> Any:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=0, **sizes).eval()


def images(size: tuple[int, int]) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def timms(model: Any, x: Tensor) -> list[Tensor]:
    count = 4 if hasattr(model, "layers") else 1
    maps: list[Tensor] = model.forward_intermediates(x, count, norm=True, intermediates_only=True)
    return maps


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_swin_features_are_timms(size: tuple[int, int]) -> None:
    model, x = small_swin(), images(size)
    tables = {n: p.clone() for n, p in model.named_parameters() if "relative_position" in n}
    features = StageFeatures(block_map(model))
    expected = timms(model, x)
    found = features(x)
    assert_equal(found, expected)
    for stride, width, feature in zip(features.strides, features.widths, found, strict=True):
        assert feature.shape == (2, width, -(-size[0] // stride), -(-size[1] // stride))
    assert len(tables) == 8
    assert all(torch.equal(model.get_parameter(n), table) for n, table in tables.items())


@pytest.mark.parametrize("build", [small_swin, small_vit])
def test_features_with_a_method(build: Any) -> None:
    """The same before a method has learned anything; merged, those of the merged model."""
    model = build()
    x = images((96, 160) if build is small_swin else (32, 32))
    before = timms(model, x)
    attached = attach_method(model, build_method("lora", {}))
    features = StageFeatures(attached.backbone)
    with torch.no_grad():
        assert_equal(features(x), before)
        for parameter in attached.trainable_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        trained = features(x)
        assert not torch.allclose(trained[-1], before[-1], atol=1e-2)
        attached.merge()
        assert_equal(features(x), timms(model, x))
        assert_equal(features(x), trained)


@torch.no_grad()
def test_features_built_before_the_method() -> None:
    model, x = small_swin(), images((64, 64))
    features = StageFeatures(block_map(model))
    before = features(x)
    attach_method(model, build_method("mona", {}))
    assert not torch.allclose(features(x)[0], before[0], atol=1e-3)


@torch.no_grad()
def test_a_final_norm_that_a_method_replaces() -> None:
    model, x = small_vit(), images((32, 32))
    backbone = block_map(model)
    features = StageFeatures(backbone)
    with backbone.replacing([backbone.final_norm]):
        model.norm = nn.Sequential(model.norm, nn.LayerNorm(32, bias=False))
        model.norm[1].weight.fill_(3.0)
    assert_equal(features(x), timms(model, x))


def test_the_model_is_registered_once() -> None:
    model = small_swin()
    features = StageFeatures(block_map(model))
    assert list(features.state_dict()) == [f"model.{name}" for name in model.state_dict()]


def test_gradient_checkpointing() -> None:
    model, x = small_swin().train(), images((96, 64))
    attached = attach_method(model, build_method("adapter", {}))
    features = StageFeatures(attached.backbone)

    def gradients() -> list[Tensor]:
        loss = torch.stack([m.square().mean() for m in features(x)]).sum()
        return list(torch.autograd.grad(loss, attached.trainable_parameters()))

    expected = gradients()
    model.set_grad_checkpointing(True)
    assert_equal(gradients(), expected)
    assert any(gradient.abs().max() > 1e-4 for gradient in expected)


# ---- padding and shifting -----------------------------------------------------------------------


def padded_first(block: Any, x: Tensor) -> Tensor:
    """Shifted-window attention in the order of the original code: padding, then shift."""
    (window, _), shift = block.window_size, block.shift_size
    _, height, width, channels = x.shape
    padded = functional.pad(x, (0, 0, 0, -width % window, 0, -height % window))
    rolled = padded.roll((-shift[0], -shift[1]), (1, 2))
    rows, columns = rolled.shape[1] // window, rolled.shape[2] // window
    windows = rolled.unflatten(2, (columns, window)).unflatten(1, (rows, window))
    windows = windows.transpose(2, 3).reshape(-1, window * window, channels)
    windows = block.attn(windows, mask=block.get_attn_mask(rolled))
    back = windows.reshape(-1, rows, columns, window, window, channels).transpose(2, 3)
    return back.reshape(rolled.shape).roll(shift, (1, 2))[:, :height, :width]


@pytest.mark.parametrize(
    ("side", "same"), [((2 * WINDOW, 3 * WINDOW), True), ((9, 12), False), ((8, 11), False)]
)
@torch.no_grad()
def test_timm_shifts_before_it_pads(side: tuple[int, int], same: bool) -> None:
    """A fact of timm; where it changes, so does the docstring of StageFeatures."""
    plain, shifted = small_swin().layers[0].blocks
    x = torch.randn(2, *side, 16, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(padded_first(plain, x), plain._attn(x))  # nothing is shifted
    difference = (padded_first(shifted, x) - shifted._attn(x)).abs().max()
    assert (difference < 1e-5) == same
    assert same or difference > 1e-2


@torch.no_grad()
def test_multiples_of_the_window_need_no_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Window times 32: all stages are those of the original order."""
    model = small_swin()
    x = images((WINDOW * 32, WINDOW * 64))
    expected = timms(model, x)
    for stage in model.layers:
        for block in stage.blocks:
            monkeypatch.setattr(block, "_attn", lambda x, block=block: padded_first(block, x))
    assert_equal(timms(model, x), expected)
    other = images((WINDOW * 32, WINDOW * 32 + 32))
    padded = timms(model, other)
    monkeypatch.undo()
    assert not torch.allclose(timms(model, other)[-1], padded[-1], atol=1e-2)
