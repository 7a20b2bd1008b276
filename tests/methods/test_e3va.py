"""E3VA: nothing of the backbone changes or is kept, and the highway is what it says."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from tiny_models import MODELS, build, images, targets
from torch import Tensor, nn

import vpeft_bench
from vpeft_bench.methods.e3va import Highway

EVERY_MODEL = pytest.mark.parametrize("kind", MODELS)


def highway(attached: vpeft_bench.Attached) -> Highway:
    module = attached.backbone.placements[0].module
    assert isinstance(module, Highway)
    return module


def stages(model: Any) -> list[Tensor]:
    found: list[Tensor] = model.forward_intermediates(images(), intermediates_only=True)
    return found


@EVERY_MODEL
@torch.no_grad()
def test_without_adapters_it_is_the_plain_model(kind: str) -> None:
    model, plain = build(kind), build(kind)
    side = highway(vpeft_bench.attach(model, "e3va"))
    assert not torch.equal(model(images()), plain(images()))
    for adapter in [*side.attn, *side.mlp]:
        for silent in (*adapter.up.Q, adapter.up.bias):
            silent.zero_()
    assert torch.equal(model(images()), plain(images()))
    assert all(torch.equal(a, b) for a, b in zip(stages(model), stages(plain), strict=True))


@EVERY_MODEL
@torch.no_grad()
def test_highway_by_hand(kind: str) -> None:
    """From the plain model's own branches, block after block and through the patch merging."""
    model, plain = build(kind).double(), build(kind).double()
    side = highway(vpeft_bench.attach(model, "e3va"))
    picture = images().double()
    if kind == "swin":
        x = plain.patch_embed(picture)
        groups = [(stage.downsample, list(stage.blocks)) for stage in plain.layers]
    else:
        x = plain.norm_pre(plain.patch_drop(plain._pos_embed(plain.patch_embed(picture))))
        groups = [(nn.Identity(), list(plain.blocks))]
    y, index, expected = x, 0, []
    for merge, blocks in groups:
        x, y = merge(x), merge(y)
        for block in blocks:
            attention = block._attn if kind == "swin" else lambda z, b=block: b.ls1(b.attn(z))
            attn = attention(block.norm1(x))
            x = x + attn
            mlp = (
                block.mlp(block.norm2(x))
                if kind == "swin"
                else block.ls2(block.mlp(block.norm2(x)))
            )
            x = x + mlp
            y = y + attn + side.attn[index](attn) + mlp + side.mlp[index](mlp)
            index += 1
            expected.append(y)
    streams = model.around(picture).streams
    for stream, by_hand in zip(streams, expected, strict=True):
        torch.testing.assert_close(stream, by_hand)
    torch.testing.assert_close(model(picture), plain.forward_head(plain.norm(y)))


@EVERY_MODEL
def test_nothing_of_the_trunk_is_kept_for_the_backward_pass(kind: str) -> None:
    model = build(kind).train()
    attached = vpeft_bench.attach(model, "e3va")
    inside, kept_inside, kept = [False], [0], [0]

    def enter(*_: object) -> None:
        inside[0] = True

    def leave(_: object, __: object, output: Tensor) -> None:
        inside[0] = False
        assert not output.requires_grad

    def pack(tensor: Tensor) -> Tensor:
        (kept_inside if inside[0] else kept)[0] += 1
        return tensor

    for block in attached.backbone.blocks:
        block.module.register_forward_pre_hook(enter)
        block.module.register_forward_hook(leave)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        # As if something in front of the trunk were trained: the highway still stops at the trunk.
        picture = images().requires_grad_()
        loss = nn.functional.cross_entropy(model(picture), targets())
    assert kept[0] > 0
    assert kept_inside == [0]
    loss.backward()
    trained = set(attached.trainable_parameters() + attached.head_parameters())
    assert all((p.grad is not None) == (p in trained) for p in model.parameters())


def test_a_stage_reaches_later_ones_through_the_frozen_merging() -> None:
    model = build("swin")
    side = highway(vpeft_bench.attach(model, "e3va"))
    first, last = stages(model)
    (gradient,) = torch.autograd.grad(last.sum(), side.attn[0].up.bias, retain_graph=True)
    assert gradient.any()
    assert torch.autograd.grad(first.sum(), side.attn[2].up.bias, allow_unused=True) == (None,)
    assert [stage.shape[1] for stage in (first, last)] == [16, 32]
    with torch.no_grad():
        before = [stage.clone() for stage in (first, last)]
        side.mlp[0].up.bias += 1.0
        assert not any(torch.equal(a, b) for a, b in zip(before, stages(model), strict=True))


def test_final_norm_is_trained_where_asked() -> None:
    attached = vpeft_bench.attach(build("vit"), "e3va", train_norm=True)
    names = [name for name, _ in attached.named_trainable_parameters()]
    assert {"norm.weight", "norm.bias"} < set(names)
    names = [n for n, _ in vpeft_bench.attach(build("vit"), "e3va").named_trainable_parameters()]
    assert all(name.startswith("trunk.") for name in names)


def test_drop_path_of_the_trunk_reaches_the_highway() -> None:
    """What a block drops in training is dropped for the adapter that reads it, too."""
    model: Any = timm.create_model(
        "vit_tiny_patch16_224", drop_path_rate=0.5, num_classes=2, **MODELS["vit"][1]
    )
    side = highway(vpeft_bench.attach(model.train(), "e3va"))
    seen: list[Tensor] = []
    side.mlp[2].register_forward_hook(lambda _, given, __: seen.append(given[0]))
    model(images(32))
    dropped = (seen[0] == 0).flatten(1).all(1).float().mean()
    assert 0.2 < dropped < 0.8
