"""LST's pruned start."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import build
from torch import nn

import vpeft_bench
from vpeft_bench.errors import UnsupportedBackboneError


@pytest.mark.parametrize("kind", ["vit", "vit_avg_reg"])
@torch.no_grad()
def test_pruning_nothing_gives_the_backbones_blocks(kind: str) -> None:
    model = build(kind)
    vpeft_bench.attach(model, "lst", init="pruned", bottleneck=32)
    x = torch.randn(2, 7, 32)
    for side, block in zip(model.trunk.blocks, model.blocks, strict=True):
        torch.testing.assert_close(side(x), block(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_pruning_keeps_the_largest() -> None:
    """Where only some channels are not zero, the small block computes what the large one does."""
    model = build("vit")
    residual, attention = torch.tensor([1, 4, 5, 20]), torch.tensor([3, 9, 17, 30])  # 2 per head
    hidden = torch.arange(5, 128, 8)
    for block in model.blocks:
        keep(block.attn.qkv, torch.cat([part * 32 + attention for part in range(3)]))
        keep(block.mlp.fc1, hidden)
        for linear in (block.attn.proj, block.mlp.fc2):
            keep(linear, residual)
    keep(model.patch_embed.proj, residual)
    vpeft_bench.attach(model, "lst", init="pruned", bottleneck=4)
    for side, block in zip(model.trunk.blocks, model.blocks, strict=True):
        small: dict[str, Any] = dict(side.named_parameters())
        large: dict[str, Any] = dict(block.named_parameters())
        assert torch.equal(small["norm1.weight"], large["norm1.weight"][residual])
        assert torch.equal(small["attn.proj.bias"], large["attn.proj.bias"][residual])
        queries = large["attn.qkv.weight"][attention][:, residual]
        assert torch.equal(small["attn.qkv.weight"][:4], queries)
        values = large["attn.qkv.weight"][64 + attention][:, residual]
        assert torch.equal(small["attn.qkv.weight"][8:], values)
        proj = large["attn.proj.weight"][residual][:, attention]
        assert torch.equal(small["attn.proj.weight"], proj)
        assert torch.equal(small["mlp.fc1.weight"], large["mlp.fc1.weight"][hidden][:, residual])
        assert torch.equal(small["mlp.fc2.weight"], large["mlp.fc2.weight"][residual][:, hidden])


def keep(leaf: nn.Module, rows: torch.Tensor) -> None:
    """Zero every output channel but ``rows``."""
    mask = torch.zeros(len(leaf.weight))  # type: ignore[arg-type]
    mask[rows] = 1
    leaf.weight.mul_(mask.view(-1, *[1] * (leaf.weight.ndim - 1)))  # type: ignore[operator, union-attr]


def test_widths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UnsupportedBackboneError, match=r"nearest: method\.bottleneck=6"):
        vpeft_bench.attach(build("vit"), "lst", bottleneck=5, heads=3)
    with pytest.raises(UnsupportedBackboneError, match="init=pruned"):
        vpeft_bench.attach(build("vit"), "lst", bottleneck=64, init="pruned")
