"""LAST against loops that follow the equations literally."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import build, images
from torch import Tensor

import vpeft_bench
from vpeft_bench.errors import UnsupportedBackboneError


def attention(module: Any, x: Tensor) -> Tensor:
    """f(X) = X + softmax(Q K^T / sqrt(r)) V A_o, one query at a time."""
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    normed = (x - mean) / (variance + 1e-5).sqrt() * module.norm.weight + module.norm.bias
    q, k, v = (
        normed @ linear.weight.T + (0 if linear.bias is None else linear.bias)
        for linear in (module.q, module.k, module.v)
    )
    out = torch.empty_like(x)
    for picture in range(len(x)):
        for token in range(x.shape[1]):
            scores = torch.exp(k[picture] @ q[picture, token] / q.shape[-1] ** 0.5)
            out[picture, token] = (scores / scores.sum()) @ v[picture] @ module.out.weight.T
    return x + out + (0 if module.out.bias is None else module.out.bias)


@pytest.mark.parametrize("kind", ["vit", "vit_avg_reg"])
@pytest.mark.parametrize(
    "options", [{}, {"gap": 3, "repeats": 2, "rank": 3}, {"repeats": 2, "bias": True, "rank": 5}]
)
@torch.no_grad()
def test_bias_correction(kind: str, options: dict[str, Any]) -> None:
    """z_m + u_m - sum z_i, with the chain u_i = F_i(u_{i-1} + z_{i-1}) run as it is written."""
    model = build(kind).double()
    attached = vpeft_bench.attach(model, "last", **options)
    generator = torch.Generator().manual_seed(0)
    for parameter in attached.trainable_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.add_(0.3 * noise)
    x = images().double()
    gap = options.get("gap", 1)

    plain = build(kind).double()
    z = [plain.norm_pre(plain._pos_embed(plain.patch_embed(x)))]
    for block in plain.blocks:
        z.append(block(z[-1]))
    z = z[::gap]
    u = torch.zeros_like(z[0])
    for i, group in enumerate(model.trunk.groups):
        u = u + z[i]
        for module in group:
            u = attention(module, u)
    assert len(model.trunk.groups) == len(z) - 1
    last = z[-1] + u - sum(z[:-1])
    expected = plain.forward_head(plain.norm(last))
    assert not torch.allclose(expected, plain(x), atol=1e-2)
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_without_output_projections_it_is_the_frozen_model() -> None:
    """Bit for bit, whatever the other projections are, in float32 as well."""
    model = build("vit")
    expected = model(images())
    attached = vpeft_bench.attach(model, "last", repeats=2)
    for name, parameter in attached.named_trainable_parameters():
        if ".out." in name:
            assert not parameter.any()
        else:
            parameter.normal_()
    assert torch.equal(model(images()), expected)


def test_groups_must_come_out_even() -> None:
    with pytest.raises(UnsupportedBackboneError, match=r"gap=2.*valid: 1, 3"):
        vpeft_bench.attach(build("vit"), "last", gap=2)
