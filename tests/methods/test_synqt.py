"""SynQT against a plain implementation over whole blocks, in which tokens cannot see queries."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import build, images
from torch import Tensor, nn

import vpeft_bench

F = nn.functional


@pytest.mark.parametrize("eps", [None, 1e-5, 1e-3])
def test_the_head_norm_has_an_eps_of_its_own(eps: float | None) -> None:
    """Its weight and bias start as the backbone's, whose own norm stays as it is."""
    model: Any = build("vit")
    own = model.norm.eps
    vpeft_bench.attach(model, "synqt", head_norm_eps=eps)
    assert (model.norm.eps, model.trunk.norm.eps) == (own, own if eps is None else eps)
    assert torch.equal(model.trunk.norm.weight, model.norm.weight)


def adapter(module: Any, x: Tensor) -> Tensor:
    hidden = F.gelu(x @ module.down.weight.T + module.down.bias)
    return x + hidden @ module.up.weight.T + module.up.bias


def norm(module: Any, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], module.weight, module.bias, module.eps)


def synthesis(module: Any, previous: Tensor | None, pictures: int) -> Tensor:
    p = module.queries.expand(pictures, -1, -1)
    p = adapter(module.entry, p if previous is None else p + previous)
    normed = norm(module.norm1, p)
    q = adapter(module.attn.q, norm(module.attn.q_norm, normed))
    source = norm(module.attn.kv_norm, normed)
    k, v = adapter(module.attn.k, source), adapter(module.attn.v, source)
    scores = torch.einsum("btd,bsd->bts", q, k) / q.shape[-1] ** 0.5
    read = torch.einsum("bts,bsd->btd", scores.softmax(-1), v)
    p = p + module.attn_scale * adapter(module.attn.proj, read)
    return p + module.ffn_scale * adapter(module.ffn, norm(module.norm2, p))


def through(block: Any, p: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The whole block over [x; p]; the mask hides the queries' keys from everybody."""
    tokens, count = x.shape[1], p.shape[1]
    mask = torch.zeros(tokens + count, tokens + count, dtype=x.dtype)
    mask[:, tokens:] = -torch.inf
    both = torch.cat([x, p], dim=1)
    attn = block.ls1(block.attn(block.norm1(both), attn_mask=mask))
    middle = both + attn
    mlp = block.ls2(block.mlp(block.norm2(middle)))
    out = middle + mlp
    return attn[:, tokens:], mlp[:, tokens:], out[:, tokens:], out[:, :tokens]


@pytest.mark.parametrize("kind", ["vit", "vit_avg_reg"])
@pytest.mark.parametrize("queries", [1, 3])
@torch.no_grad()
def test_synqt(kind: str, queries: int) -> None:
    options = {"prompt_length": queries, "attn_scale": 0.7, "ffn_scale": 0.4, "feat_scale": 0.3}
    model = build(kind).double()
    attached = vpeft_bench.attach(model, "synqt", **options)
    generator = torch.Generator().manual_seed(0)
    for parameter in attached.trainable_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.add_(0.2 * noise)
    trunk: Any = model.trunk
    pictures = images().double()

    plain = build(kind).double()
    x = plain.norm_pre(plain._pos_embed(plain.patch_embed(pictures)))
    outputs: list[Tensor] = []
    attns: list[Tensor] = []
    mlps: list[Tensor] = []
    for block, module in zip(plain.blocks, trunk.synthesis, strict=True):
        previous = trunk.feat_scale * outputs[-1] if outputs else None
        p = synthesis(module, previous, len(pictures))
        attn, mlp, out, x = through(block, p, x)
        attns.append(attn.mean(1, keepdim=True))
        mlps.append(mlp.mean(1, keepdim=True))
        outputs.append(out.mean(1, keepdim=True))
    rows = torch.cat([outputs[-1], *outputs, *attns, *mlps], dim=1)
    head = trunk.head
    rows = torch.stack([r + adapter(head.adapter, norm(head.norm, r)) for r in rows.unbind(1)], 1)
    weights = torch.tanh(F.gelu(rows[:, 0] @ head.weights.weight.T + head.weights.bias))
    weights = torch.cat([torch.ones_like(weights[:, :1]), weights], dim=1)
    features = norm(trunk.norm, (weights[..., None] * rows).sum(1) / rows.shape[1])
    expected = plain.head(features)
    torch.testing.assert_close(model(pictures), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["vit", "vit_avg_reg"])
def test_its_norm_starts_as_the_backbones(kind: str) -> None:
    model = build(kind)
    attached = vpeft_bench.attach(model, "synqt")
    own, final = model.trunk.norm, attached.backbone.final_norm
    assert own is not final
    assert torch.equal(own.weight, final.weight)
    assert torch.equal(own.bias, final.bias)
    assert not torch.equal(own.weight, torch.ones_like(own.weight))
    assert own.weight.requires_grad
    assert not final.weight.requires_grad  # type: ignore[union-attr]


def test_rows_are_dropped_whole_and_never_the_first() -> None:
    from vpeft_bench.methods.synqt import WeightedRows

    torch.manual_seed(0)
    head = WeightedRows(8, 5, bottleneck=3, dropout=0.0, drop_path=0.4)
    nn.init.zeros_(head.adapter.up.weight)
    nn.init.zeros_(head.adapter.up.bias)
    nn.init.zeros_(head.norm.weight)  # now r = f + Ad(LN f) = f
    nn.init.zeros_(head.weights.weight)
    nn.init.constant_(head.weights.bias, 20.0)  # now every weight is 1
    basis = torch.eye(5, 8).expand(400, 5, 8)
    seen = 5 * head(basis)[:, :5]  # row j is dropped where entry j is zero
    assert torch.equal(seen[:, 0], torch.ones(400))
    kept = seen[:, 1:] != 0
    torch.testing.assert_close(seen[:, 1:][kept], torch.full((int(kept.sum()),), 1 / 0.6))
    assert 0.55 < kept.float().mean() < 0.65
    assert 0.2 < (kept[:, 0] & kept[:, 1]).float().mean() < 0.5  # each by itself: 0.36
    assert torch.equal(5 * head.eval()(basis)[:, :5], torch.ones(400, 5))
