"""PATT and BAPAT: what the branches are added to, biases, drop-path."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from tiny_models import MODELS, build
from torch import Tensor, nn

import vpeft_bench
from vpeft_bench.methods.patt import MODES, ParallelAttention


@pytest.mark.parametrize("mode", MODES)
def test_only_the_modes_parts_change(mode: str) -> None:
    torch.manual_seed(0)
    branch = ParallelAttention(6, 4, mode, scale=0.5, bias=True)
    x, y = torch.randn(2, 3, 6), torch.randn(2, 3, 18)
    added = 0.5 * branch.up(torch.tanh(branch.down(x)))
    expected = {part: torch.zeros(2, 3, 6) for part in "qkv"}
    expected |= dict(zip(mode, added.split(6, dim=-1), strict=True))
    torch.testing.assert_close(branch(x, y) - y, torch.cat(list(expected.values()), dim=-1))


@pytest.mark.parametrize(("biased", "count"), [(True, 3 * 258), (False, 3 * 192)])
def test_biases_follow_the_qkv_linear(biased: bool, count: int) -> None:
    model: Any = timm.create_model(
        "vit_tiny_patch16_224", qkv_bias=biased, num_classes=0, **MODELS["vit"][1]
    )
    attached = vpeft_bench.attach(model, "patt", bottleneck=2)
    assert attached.parameter_counts().method == count


def test_bapat_block_by_hand() -> None:
    model, plain = build("vit_avg_reg"), build("vit_avg_reg")
    vpeft_bench.attach(model, "bapat")
    block, reference = model.blocks[1], plain.blocks[1]
    nn.init.normal_(block.mlp_parallel_normed[0].up.weight)
    x = torch.randn(2, 18, 32)
    with torch.no_grad():
        middle = x + reference.ls1(block.attn(reference.norm1(x)))
        assert not torch.allclose(middle, x + reference.ls1(reference.attn(reference.norm1(x))))
        u = reference.norm2(middle)
        ffn = block.mlp_parallel_normed[0]
        branch = 0.1 * ffn.up(ffn.down(u).relu())
        torch.testing.assert_close(block(x), middle + reference.ls2(reference.mlp(u)) + branch)


def test_bapat_draws_drop_path_beside_the_mlp() -> None:
    model: Any = timm.create_model(
        "vit_tiny_patch16_224", drop_path_rate=0.5, num_classes=0, **MODELS["vit"][1]
    )
    vpeft_bench.attach(model.train(), "bapat")
    branch = model.blocks[-1].mlp_parallel_normed
    nn.init.normal_(branch[0].up.weight)
    given: Tensor = torch.randn(64, 17, 32)
    dropped = (branch(given) == 0).flatten(1).all(1).float().mean()
    assert 0.2 < dropped < 0.8
    assert branch.eval()(given).any(-1).all()
