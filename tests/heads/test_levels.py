"""Four levels of any backbone."""

from __future__ import annotations

import pytest
import timm
import torch
from detector_models import attached, swin

from vpeft_bench.backbones import block_map
from vpeft_bench.backbones.features import StageFeatures
from vpeft_bench.heads.levels import Levels


def vit(patch: int, size: int) -> StageFeatures:
    torch.manual_seed(0)
    sizes = {"img_size": size, "patch_size": patch, "embed_dim": 32, "depth": 1, "num_heads": 2}
    return StageFeatures(block_map(timm.create_model("vit_tiny_patch16_224", **sizes)))


@pytest.mark.parametrize(
    ("patch", "size", "strides"),
    [(16, 64, (4, 8, 16, 32)), (14, 56, (3.5, 7, 14, 28)), (4, 32, (4, 8, 16, 32))],
)
def test_levels_of_a_vit(patch: int, size: int, strides: tuple[float, ...]) -> None:
    levels = Levels(vit(patch, size), channels=8)
    assert levels.strides == strides
    assert levels.widths == (8, 8, 8, 8)
    maps = levels(torch.randn(2, 3, size, size))
    assert [m.shape for m in maps] == [(2, 8, int(size / s), int(size / s)) for s in strides]
    torch.stack([m.square().mean() * torch.rand(()) for m in maps]).sum().backward()
    assert all(p.grad is not None for p in levels.branches.parameters())


@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
def test_levels_of_a_swin(size: tuple[int, int]) -> None:
    levels = Levels(StageFeatures(swin()), channels=8)
    assert levels.strides == (4, 8, 16, 32)
    assert levels.widths == (16, 32, 64, 128)
    maps = levels(torch.randn(1, 3, *size))
    shapes = zip(levels.widths, levels.strides, strict=True)
    assert [m.shape for m in maps] == [(1, w, size[0] // s, size[1] // s) for w, s in shapes]
    places = maps[0].permute(0, 2, 3, 1)
    torch.testing.assert_close(places.mean(-1), torch.zeros(places.shape[:3]), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        places.var(-1, unbiased=False), torch.ones(places.shape[:3]), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_skipping_the_finest(kind: str) -> None:
    features = StageFeatures(attached(kind).backbone)
    whole, part = Levels(features, 8), Levels(features, 8, skip=1)
    assert part.strides == whole.strides[1:]
    assert part.widths == whole.widths[1:]
    part.branches.load_state_dict(whole.branches[1:].state_dict())
    x = torch.randn(1, 3, 64, 64)
    for found, expected in zip(part(x), whole(x)[1:], strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_gradients_reach_the_method_alone(kind: str) -> None:
    method = attached(kind)
    levels = Levels(StageFeatures(method.backbone), 8)
    torch.stack(
        [m[:, 0].square().mean() for m in levels(torch.randn(1, 3, 64, 64))]
    ).sum().backward()
    trained = set(method.trainable_parameters())
    for name, parameter in method.model.named_parameters():
        assert (parameter.grad is not None) == (parameter in trained), name
