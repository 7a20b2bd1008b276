"""Compacter and KAdaptation against Kronecker products written out."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_models import build, images, targets
from torch import Tensor, nn

import vpeft_bench
from vpeft_bench.errors import MethodOptionError, UnsupportedBackboneError
from vpeft_bench.methods.parts.kronecker import LowRankBlocks, kronecker_sum


def random_start(attached: vpeft_bench.Attached) -> None:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in attached.trainable_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))


def written_out(rule: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """sum_i A_i (x) (left_i right_i), entry by entry."""
    n, p, q = rule.shape
    rows, columns = left.shape[1], right.shape[2]
    out = torch.zeros(p * rows, q * columns, dtype=rule.dtype)
    for i in range(n):
        block = left[i] @ right[i]
        for a in range(p):
            for c in range(q):
                out[a * rows : (a + 1) * rows, c * columns : (c + 1) * columns] += (
                    rule[i, a, c] * block
                )
    return out


def test_kronecker_sum_of_unequal_shapes() -> None:
    a, b = torch.randn(3, 2, 5), torch.randn(3, 4, 7)
    expected = torch.stack([torch.kron(x, y) for x, y in zip(a, b, strict=True)]).sum(0)
    assert torch.allclose(kronecker_sum(a, b), expected, atol=1e-6)


def test_factors_start_glorot() -> None:
    factors = LowRankBlocks(400, 6, 10, 1, zero=False)
    for factor, fans in ((factors.left, 1 + 6), (factors.right, 10 + 1)):
        bound = (2 * 6 / fans) ** 0.5
        assert 0.98 * bound < factor.abs().max() <= bound


# ---- Compacter ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_compacter_is_an_adapter_with_these_weights(kind: str) -> None:
    """The weights written out, in an adapter of the same width, give the same logits."""
    model = build(kind).double()
    attached = vpeft_bench.attach(model, "compacter", bottleneck=8, terms=4, rank=2)
    random_start(attached)
    plain = build(kind).double()
    adapter = vpeft_bench.attach(plain, "adapter", bottleneck=8, placement="houlsby")
    with torch.no_grad():
        for ours, theirs in zip(attached.backbone.blocks, adapter.backbone.blocks, strict=True):
            for site in ("attn_out", "mlp_out"):
                source: Any = getattr(ours.module, site)
                target: Any = getattr(theirs.module, site)
                for half in ("down", "up"):
                    layer, linear = getattr(source, half), getattr(target, half)
                    left, right = layer.blocks.left, layer.blocks.right
                    linear.weight.copy_(written_out(layer.rule.A, left, right).T)
                    linear.bias.copy_(layer.bias)
        x = images().double()
        assert torch.allclose(model(x), plain(x), atol=1e-10)


def test_compacter_has_one_rule() -> None:
    """Every projection of the network uses the same A, and all of them shape its gradient."""
    model = build("vit")
    attached = vpeft_bench.attach(model, "compacter", bottleneck=8, init="compacter")
    rules = [p for n, p in attached.named_trainable_parameters() if n.endswith("rule.A")]
    assert [tuple(rule.shape) for rule in rules] == [(4, 4, 4)]
    layers: list[Any] = [m for m in model.modules() if hasattr(m, "rule")]
    assert len(layers) == 3 * 2 * 2
    assert all(layer.rule.A is rules[0] for layer in layers)
    nn.functional.cross_entropy(model(images()), targets()).backward()
    shared = rules[0].grad
    assert shared is not None
    for layer in layers:  # apart, the gradients of each add up to that of the shared one
        layer.rule = copy.deepcopy(layer.rule)
        layer.rule.A = nn.Parameter(rules[0].detach().clone())
    model.zero_grad()
    nn.functional.cross_entropy(model(images()), targets()).backward()
    parts = torch.stack([layer.rule.A.grad for layer in layers])
    assert (parts.flatten(1).abs().amax(1) > 0).all()
    assert torch.allclose(parts.sum(0), shared, atol=1e-7)


def test_the_configuration_of_the_published_compacter() -> None:
    """Norms trained, A near zero, the tanh form of GELU."""
    options = {"unfreeze_layer_norms": True, "phm_init_range": 1e-4, "activation": "gelu_tanh"}
    model = build("swin")
    attached = vpeft_bench.attach(model, "compacter", bottleneck=8, **options)
    trained = set(attached.trainable_parameters())
    assert {p for norm in attached.backbone.norms() for p in norm.parameters()} <= trained
    assert attached.method.reads(attached.backbone) == ("images",)  # Swin has a norm on its patches
    (rule,) = (p for n, p in attached.named_trainable_parameters() if n.endswith("rule.A"))
    assert 2e-5 < rule.abs().mean() < 2e-4
    module: Any = attached.backbone.blocks[0].module
    z = torch.randn(2, 3, attached.backbone.blocks[0].width)
    random_start(attached)
    adapter = module.mlp_out
    hidden = nn.functional.gelu(adapter.down(z), approximate="tanh")
    torch.testing.assert_close(adapter(z), z + adapter.up(hidden))


def test_compacter_refuses_what_it_cannot_cut() -> None:
    with pytest.raises(MethodOptionError, match=r"method\.bottleneck=12"):
        vpeft_bench.attach(build("vit"), "compacter", bottleneck=10)
    with pytest.raises(UnsupportedBackboneError, match=r"32 wide \(method\.terms=4 fits"):
        vpeft_bench.attach(build("vit"), "compacter", bottleneck=10, terms=5)


# ---- KAdaptation --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_kadaptation_updates_query_and_value(kind: str) -> None:
    """Each with its own rule and factors, the key not at all; the bias serves both."""
    model = build(kind).double()
    attached = vpeft_bench.attach(model, "kadaptation", terms=4, rank=2, scale=0.3)
    random_start(attached)
    block = attached.backbone.blocks[-1]
    linear: Any = block.linear("qkv")
    update = linear.delta
    x = torch.randn(3, block.width, dtype=torch.float64)
    with torch.no_grad():
        q, k, v = (linear.weight @ x.T).T.add(linear.bias).chunk(3, dim=-1)
        for_query, for_value = (
            written_out(rule.left @ rule.right, blocks.left, blocks.right)
            for rule, blocks in (
                (update.query_rule, update.query_blocks),
                (update.value_rule, update.value_blocks),
            )
        )
        q = q + 0.3 * x @ for_query + update.bias
        v = v + 0.3 * x @ for_value + update.bias
        assert torch.allclose(linear(x), torch.cat([q, k, v], dim=-1), atol=1e-12)
        assert not torch.allclose(for_query, for_value)


def test_kadaptation_shares_its_rules_between_blocks() -> None:
    attached = vpeft_bench.attach(build("swin"), "kadaptation", terms=4)
    names = [n for n, _ in attached.named_trainable_parameters() if "rule" in n]
    assert [n.split("delta.")[1] for n in names] == [
        f"{part}_rule.{side}" for part in ("query", "value") for side in ("left", "right")
    ]
    updates: list[Any] = [block.linear("qkv").delta for block in attached.backbone.blocks]
    assert len({id(update.query_rule) for update in updates}) == 1
    assert len({id(update.value_rule) for update in updates}) == 1
    assert updates[0].query_rule is not updates[0].value_rule
    for parameter in (updates[0].query_rule.left, updates[0].value_rule.right):
        assert 0.005 < parameter.abs().max() <= 0.01


def test_kadaptation_drops_entries_of_the_update() -> None:
    """What is dropped is an entry of H, for all tokens alike, and the rest is scaled up."""
    attached = vpeft_bench.attach(build("vit").train(), "kadaptation", terms=4, scale=1.0)
    random_start(attached)
    update: Any = attached.backbone.blocks[0].linear("qkv").delta
    with torch.no_grad():
        update.bias.zero_()
        used = update(torch.eye(32), torch.zeros(32, 96))[:, :32]
        full = update.updates()[0]
    dropped = used == 0
    assert 0.4 < dropped.float().mean() < 0.6
    assert torch.allclose(used[~dropped], 2 * full[~dropped])


def test_kadaptation_needs_widths_it_can_cut() -> None:
    with pytest.raises(UnsupportedBackboneError, match=r"method\.terms=16 fits"):
        vpeft_bench.attach(build("swin"), "kadaptation", terms=32)
