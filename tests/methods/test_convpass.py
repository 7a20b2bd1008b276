"""Convpass: the grid that it convolves over, its start, its own drop-path."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from tiny_models import MODELS, VIT, build, images
from torch import Tensor

import vpeft_bench
from vpeft_bench.errors import UnsupportedBackboneError


def bypass(attached: vpeft_bench.Attached, block: int = 0) -> Any:
    return attached.backbone.blocks[block].module.attn_parallel_normed


@pytest.mark.parametrize("kind", MODELS)
def test_the_kernel_reaches_neighbours_on_the_grid_only(kind: str) -> None:
    """What one token changes: its 3 x 3 neighbours; a class or register token, itself alone."""
    module = bypass(vpeft_bench.attach(build(kind), "convpass", conv_init="xavier"))
    with torch.no_grad():
        module.up.weight.normal_()
    if kind == "swin":
        shape, prefix = (1, 5, 7, 16), 0
    else:
        prefix = {"vit": 1, "vit_avg_reg": 3}[kind]
        shape = (1, prefix + 16, 32)  # type: ignore[assignment]
    rows, columns = (5, 7) if kind == "swin" else (4, 4)
    u = torch.randn(shape)
    flat = u.view(prefix + rows * columns, -1)  # the same memory
    before = module(u).flatten(0, -2)
    for token in range(len(flat)):
        saved = flat[token].clone()
        flat[token] += 1
        changed = (module(u).flatten(0, -2) != before).any(1).nonzero().flatten().tolist()
        flat[token] = saved
        if token < prefix:
            assert changed == [token]
            continue
        row, column = divmod(token - prefix, columns)
        near = [
            prefix + r * columns + c
            for r in range(max(row - 1, 0), min(row + 2, rows))
            for c in range(max(column - 1, 0), min(column + 2, columns))
        ]
        assert changed == near


def test_grid_of_a_wide_image() -> None:
    model = timm.create_model("vit_tiny_patch16_224", **{**VIT, "img_size": (16, 40)})
    attached = vpeft_bench.attach(model, "convpass", conv_init="xavier")
    assert bypass(attached).grid.size == (2, 5)
    assert model(torch.randn(1, 3, 16, 40)).isfinite().all()


def test_start_of_the_kernel() -> None:
    module = bypass(vpeft_bench.attach(build("vit"), "convpass", bottleneck=5))
    x = torch.randn(2, 5, 4, 4)
    assert torch.equal(module.conv(x), x)
    other = bypass(vpeft_bench.attach(build("vit"), "convpass", conv_init="xavier"))
    bound = (6 / (9 * 8 + 9 * 8)) ** 0.5
    assert 0.9 * bound < other.conv.weight.abs().max() <= bound


def test_scale_multiplies_the_branch() -> None:
    outputs: list[Tensor] = []
    for scale in (1.0, 100.0):
        torch.manual_seed(0)
        module = bypass(vpeft_bench.attach(build("vit"), "convpass", scale=scale))
        torch.nn.init.ones_(module.up.weight)
        outputs.append(module(torch.randn(1, 17, 32)).detach())
    assert torch.allclose(100 * outputs[0], outputs[1])


def test_drop_path_is_drawn_on_its_own() -> None:
    """The rate of the block; a whole picture loses the branch, the others are scaled up."""
    name, overrides = MODELS["vit"]
    model = timm.create_model(name, drop_path_rate=0.5, **overrides).train()
    attached = vpeft_bench.attach(model, "convpass", dropout=0.0)
    assert [bypass(attached, i).drop_path.drop_prob for i in range(3)] == [0.0, 0.25, 0.5]
    module = bypass(attached, 2)
    torch.nn.init.ones_(module.up.bias)
    branch = module(torch.randn(64, 17, 32)).detach()
    assert {v.item() for v in branch.flatten(1).unique()} == {0.0, 2.0}
    assert all(len(picture.unique()) == 1 for picture in branch)


def test_dropped_patches_are_refused() -> None:
    model = timm.create_model("vit_tiny_patch16_224", patch_drop_rate=0.5, **VIT)
    with pytest.raises(UnsupportedBackboneError, match="convpass"):
        vpeft_bench.attach(model, "convpass")
    model.eval()(images())  # nothing was left of it
