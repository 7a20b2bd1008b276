"""SCT: which channels are salient, what happens to them and to all others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import build, images
from torch import Tensor, nn

import vpeft_bench
from vpeft_bench.errors import NotMergeableError, UnsupportedBackboneError

PICTURES = images(7, seed=3)
LABELS = torch.tensor([4, 1, 1, 1, 1, 1, 4])  # classes of unequal size; three are absent
BATCHES = [(PICTURES[:4], LABELS[:4]), (PICTURES[4:], LABELS[4:])]


def streams(model: Any, placement: str) -> list[Tensor]:
    """For every block the features that decide, ``(7, tokens, D)``, computed block by block."""
    found = []
    with torch.no_grad():
        if hasattr(model, "blocks"):
            x, blocks = (
                model._pos_embed(model.patch_embed(PICTURES)),
                [("", b) for b in model.blocks],
            )
        else:
            x = model.patch_embed(PICTURES)
            blocks = [
                (s.downsample if i == 0 else "", b)
                for s in model.layers
                for i, b in enumerate(s.blocks)
            ]
        for merge, block in blocks:
            x = merge(x) if merge else x
            if hasattr(model, "blocks"):
                middle = x + block.ls1(block.attn(block.norm1(x)))
            else:
                middle = x + block._attn(block.norm1(x))
            x = block(x)
            found.append((middle if placement == "attn" else x).flatten(1, -2))
    return found


def salient(features: Tensor, channels: int) -> list[int]:
    """Channel by channel, class by class."""
    importance = []
    for channel in range(features.shape[-1]):
        norms = [features[label == LABELS][..., channel].norm() for label in (1, 4)]
        importance.append(sum(norms) / 2)
    order = sorted(range(len(importance)), key=lambda c: -importance[c])
    return sorted(order[:channels])


@pytest.mark.parametrize("placement", ["attn", "mlp"])
@pytest.mark.parametrize(("kind", "prefix"), [("vit", 1), ("vit_avg_reg", 3), ("swin", 0)])
def test_channels_of_the_largest_norm(kind: str, prefix: int, placement: str) -> None:
    model = build(kind)
    expected = [salient(x[:, prefix:], 5) for x in streams(model, placement)]
    attached = vpeft_bench.attach(model, "sct", data=BATCHES, channels=5, placement=placement)
    assert attached.selection is not None
    assert [chosen.tolist() for chosen in attached.selection.values()] == expected
    assert list(attached.selection) == [block.path for block in attached.backbone.blocks]


def test_query_and_value_have_channels_of_their_own() -> None:
    model = build("swin")
    seen: list[Tensor] = []
    hook = (
        model.layers[0]
        .blocks[0]
        .attn.qkv.register_forward_hook(lambda _, __, y: seen.append(y.detach()))
    )
    model(PICTURES)
    hook.remove()
    qkv = seen[0].view(7, -1, 48)
    attached = vpeft_bench.attach(model, "sct", data=BATCHES, channels=5, placement="qkv")
    assert attached.selection is not None
    chosen = {site: channels.tolist() for site, channels in attached.selection.items()}
    assert chosen["layers.0.blocks.0.q"] == salient(qkv[..., :16], 5)
    assert chosen["layers.0.blocks.0.v"] == salient(qkv[..., 32:], 5)
    parts = attached.backbone.blocks[0].linear("qkv").delta.parts  # type: ignore[union-attr]
    y = torch.randn(2, 48)
    changed = (parts["v"](parts["q"](y)) != y).any(0).nonzero().flatten().tolist()
    q, v = chosen["layers.0.blocks.0.q"], chosen["layers.0.blocks.0.v"]
    assert changed == [*q, *(32 + channel for channel in v)]


@pytest.mark.parametrize("scale_on", ["branch", "stream"])
def test_scale(scale_on: str) -> None:
    attached = vpeft_bench.attach(
        build("vit"), "sct", data=BATCHES, channels=4, scale=0.25, scale_on=scale_on
    )
    module: Any = attached.backbone.blocks[1].module.stream_mid
    nn.init.normal_(module.linear.bias)
    chosen = attached.selection["blocks.1"]  # type: ignore[index]
    x = torch.randn(2, 17, 32)
    linear = x[..., chosen] @ module.linear.weight.T + module.linear.bias
    own, added = (1, 0.25) if scale_on == "branch" else (0.25, 1)
    expected = x.clone()
    expected[..., chosen] = own * x[..., chosen] + added * linear
    assert torch.allclose(module(x), expected)


def test_the_pass_leaves_no_trace() -> None:
    """In eval mode, without gradients; each module's own mode and no hook is left behind."""
    model = build("vit").train()
    model.blocks[1].eval()
    modes = [module.training for module in model.modules()]
    inside: list[bool] = []
    model.blocks[0].register_forward_hook(
        lambda module, _, y: inside.append(module.training or y.requires_grad)
    )
    attached = vpeft_bench.attach(model, "sct", channels=4)
    attached.method.select(attached.backbone, vpeft_bench.methods.data_pass.BatchData(BATCHES))
    assert inside == [False, False]
    assert [module.training for module in model.modules()] == modes
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert sum(len(m._forward_hooks) for m in model.modules()) == 1


def test_refusals() -> None:
    with pytest.raises(UnsupportedBackboneError, match="narrowest block has 32"):
        vpeft_bench.attach(build("vit"), "sct", channels=33)
    attached = vpeft_bench.attach(build("vit"), "sct", data=BATCHES, channels=4)
    with pytest.raises(NotMergeableError, match="placement=mlp"):
        attached.merge()


def test_merge_is_exact_where_a_channel_was_shut() -> None:
    """scale_on=stream with s = 0 and W = 0 leaves b alone; folding must not divide by anything."""
    model = build("vit_avg_reg").double()
    data = [(PICTURES.double(), LABELS)]
    attached = vpeft_bench.attach(
        model, "sct", data=data, channels=4, placement="mlp", scale=0.0, scale_on="stream"
    )
    with torch.no_grad():
        for name, parameter in attached.named_trainable_parameters():
            parameter.normal_() if name.endswith("bias") else parameter.zero_()
        expected = model(PICTURES.double())
        assert torch.allclose(attached.merge()(PICTURES.double()), expected, atol=1e-12)
