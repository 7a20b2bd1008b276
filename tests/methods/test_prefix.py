"""Prefix tuning against its equation written out, and its start."""

from __future__ import annotations

from math import sqrt
from typing import Any

import pytest
import torch
from tiny_models import build, images
from torch import Tensor

import vpeft_bench


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_prefix_mixes_two_attentions(kind: str) -> None:
    """(1 - l) Attn(q, K, V) + l Attn(q, P_k, P_v), head by head; no position bias on the prefix."""
    attached = vpeft_bench.attach(build(kind).double(), "prefix", prompt_length=3)
    block = attached.backbone.blocks[0]
    attention: Any = block.attention
    with torch.no_grad():
        for parameter in attached.trainable_parameters():
            parameter.normal_()
    x = torch.randn(2, 16, block.width, dtype=torch.float64)
    prefix = attention.keys_values
    with torch.no_grad():
        output = attention(x)
        parts = attention.qkv(x).unflatten(-1, (3, block.heads, -1)).permute(2, 0, 3, 1, 4)
        biases = attention._get_rel_pos_bias()[0] if kind == "swin" else torch.zeros(block.heads)
        heads = []
        for h in range(block.heads):
            d = block.width // block.heads
            columns = slice(h * d, (h + 1) * d)
            p_k, p_v = prefix.keys[0, :, columns], prefix.values[0, :, columns]
            q, k, v = parts[:, :, h]
            own = (q @ k.transpose(1, 2)) / sqrt(d) + biases[h]
            learned = (q @ p_k.T) / sqrt(d)
            mass = learned.exp().sum(-1, keepdim=True)
            share = mass / (mass + own.exp().sum(-1, keepdim=True))
            heads.append((1 - share) * own.softmax(-1) @ v + share * learned.softmax(-1) @ p_v)
        expected = attention.proj(torch.cat(heads, dim=-1))
    assert torch.allclose(output, expected, atol=1e-12)


def test_prefix_is_seen_through_the_mask_of_shifted_windows() -> None:
    """A key that outweighs all others gives every query of every region the prefix's value."""
    model = build("swin")
    attached = vpeft_bench.attach(model, "prefix", prompt_length=1)
    block = attached.backbone.blocks[1]
    seen: list[Tensor] = []
    block.leaf("proj").register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        block.linear("qkv").weight[: block.width].zero_()
        block.linear("qkv").bias[: block.width].fill_(1.0)
        prefix: Any = block.attention.keys_values
        prefix.keys.fill_(15.0)  # 42 in the softmax; a mask would take 100 off
        prefix.values.copy_(torch.arange(16.0))
        model(images())
    assert torch.allclose(seen[0], torch.arange(16.0).expand_as(seen[0]))


def test_prefix_start() -> None:
    attached = vpeft_bench.attach(build("vit"), "prefix", prompt_length=200)
    bound = sqrt(6 / (200 * 32 + 32))
    for parameter in attached.trainable_parameters():
        assert 0.95 * bound < parameter.abs().max() <= bound
