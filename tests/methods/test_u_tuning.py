"""U-Tuning: each tuner beside its operation, written out; starts."""

from __future__ import annotations

from math import sqrt
from typing import Any

import pytest
import torch
from tiny_models import build
from torch import Tensor, nn

import vpeft_bench
from vpeft_bench.errors import MethodOptionError


def randomly_tuned(kind: str, **options: Any) -> vpeft_bench.Attached:
    attached = vpeft_bench.attach(build(kind).double(), "u_tuning", **options)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in attached.trainable_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return attached


def adapter(tuner: Any, x: Tensor) -> Tensor:
    hidden = nn.functional.gelu(x @ tuner.down.weight.T + tuner.down.bias)
    return hidden @ tuner.up.weight.T + tuner.up.bias


@pytest.mark.parametrize("kind", ["vit", "swin"])
@torch.no_grad()
def test_the_prefix_tuner_attends_to_the_learned_pairs_alone(kind: str) -> None:
    """MHA(u) + W_o Attn(u W_q, P_k, P_v), head by head, with no bias of W_o counted twice."""
    attached = randomly_tuned(kind, mlp="none", prompt_length=3)
    block = attached.backbone.blocks[0]
    attention: Any = block.attention
    u = torch.randn(2, 16, block.width, dtype=torch.float64)
    tuned = attention(u)
    tuner = attention.attention_parallel
    attention.attention_parallel = None
    plain = attention(u)
    q = attention.qkv(u)[..., : block.width]
    d = block.width // block.heads
    heads = []
    for h in range(block.heads):
        columns = slice(h * d, (h + 1) * d)
        scores = q[..., columns] @ tuner.keys[0, :, columns].T / sqrt(d)
        heads.append(scores.softmax(-1) @ tuner.values[0, :, columns])
    expected = plain + torch.cat(heads, dim=-1) @ attention.proj.weight.T
    assert torch.allclose(tuned, expected, atol=1e-12)


@pytest.mark.parametrize("kind", ["vit_avg_reg", "swin"])
@torch.no_grad()
def test_adapters_stand_beside_their_operations(kind: str) -> None:
    """x + MHA(u) + T(u), then x + FFN(v) + T(v), then + T(block's input)."""
    attached = randomly_tuned(kind, attn="adapter", block="adapter")
    tuned: Any = attached.backbone.blocks[1].module
    plain: Any = build(kind).double()
    own = plain.get_submodule(attached.backbone.blocks[1].path)
    shape = (2, 8, 8, 16) if kind == "swin" else (2, 19, 32)
    own_input = torch.randn(shape, dtype=torch.float64)
    if kind == "swin":
        shape = (2, *own.input_resolution, 16)
        own_input = torch.randn(shape, dtype=torch.float64)
    x, u = own_input, own.norm1(own_input)
    attention = own._attn(u) if kind == "swin" else own.ls1(own.attn(u))
    x = x + attention + adapter(tuned.attn_parallel_normed, u)
    v = own.norm2(x)
    mlp = own.mlp(v) if kind == "swin" else own.ls2(own.mlp(v))
    x = x + mlp + adapter(tuned.mlp_parallel_normed, v)
    x = x + adapter(tuned.block_parallel, own_input)
    assert torch.allclose(tuned(own_input), x, atol=1e-12)


def test_start_of_modelscope() -> None:
    attached = vpeft_bench.attach(
        build("vit"), "u_tuning", init="modelscope", prompt_length=300, bottleneck=300
    )
    block: Any = attached.backbone.blocks[0].module
    prefix, tuner = block.attn.attention_parallel, block.mlp_parallel_normed
    bounds = {
        prefix.keys: sqrt(6 / (300 * 32 + 32)),
        prefix.values: sqrt(6 / (300 * 32 + 32)),
        tuner.down.weight: sqrt(6 / 332),
        tuner.up.weight: sqrt(6 / 332),
    }
    for parameter, bound in bounds.items():
        assert 0.98 * bound < parameter.abs().max() <= bound
    assert 0 < tuner.down.bias.abs().max() < 1e-5


def test_no_tuner_is_refused() -> None:
    with pytest.raises(MethodOptionError, match="no tuner is left"):
        vpeft_bench.attach(build("vit"), "u_tuning", attn="none", mlp="none")
