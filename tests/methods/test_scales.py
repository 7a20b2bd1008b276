"""Methods that scale: SSL and SSB weights, AttnScale attention, ARC shared hidden units."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import build, images
from torch import Tensor, nn

import vpeft_bench
from vpeft_bench.backbones import block_map
from vpeft_bench.errors import NotMergeableError, UnsupportedBackboneError


def randomise(attached: vpeft_bench.Attached) -> dict[str, Tensor]:
    """Move everything trained away from its start; the tensors by name."""
    torch.manual_seed(2)
    named = dict(attached.named_trainable_parameters())
    for parameter in named.values():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return {name: parameter.detach().clone() for name, parameter in named.items()}


# ---- SSL and SSB --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ssl", "ssb"])
def test_unit_scales_merge_into_the_very_same_weights(name: str) -> None:
    model = build("vit")
    before = {n: p.clone() for n, p in model.state_dict().items()}
    vpeft_bench.attach(model, name).merge()
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())


@pytest.mark.parametrize("name", ["ssl", "ssb"])
def test_scales_stand_at_the_inputs_and_outputs_of_a_weight(name: str) -> None:
    """The bias is not scaled."""
    model = build("vit").double()
    fc1 = model.blocks[1].mlp.fc1
    weight, bias = fc1.weight.detach().clone(), fc1.bias.detach().clone()
    named = randomise(vpeft_bench.attach(model, name))
    s_in = named["blocks.1.mlp.fc1.weight_update.s_in"]
    s_out = named.get("blocks.1.mlp.fc1.weight_update.s_out", torch.ones(128).double())
    x = torch.randn(3, 32, dtype=torch.float64)
    torch.testing.assert_close(fc1(x), s_out * ((x * s_in) @ weight.T) + bias)
    assert (name == "ssb") == any(n.endswith("s_out") for n in named)


# ---- AttnScale ----------------------------------------------------------------------------------


class ScaleHeads(nn.Module):
    """Attention probabilities times a number per head, as an explicit map."""

    def __init__(self, s: Tensor) -> None:
        super().__init__()
        self.register_buffer("s", s)

    def forward(self, probabilities: Tensor) -> Tensor:
        return probabilities * self.s.view(1, -1, 1, 1)


@pytest.mark.parametrize("kind", ["vit", "vit_avg_reg", "swin"])
def test_scales_of_heads_scale_the_attention_maps(kind: str) -> None:
    explicit, model = build(kind).double(), build(kind).double()
    named = randomise(vpeft_bench.attach(model, "attn_scale", granularity="head", dra=False))
    for block, s in zip(block_map(explicit).blocks, named.values(), strict=True):
        block.place("attention_map", ScaleHeads(s))
    x = images().double()
    torch.testing.assert_close(model(x), explicit(x))
    assert not torch.allclose(model(x), build(kind).double()(x))


def test_map_scales_multiply_the_probabilities() -> None:
    model, plain = build("vit").double(), build("vit").double()
    named = randomise(vpeft_bench.attach(model, "attn_scale", dra=False))
    S = named["blocks.0.attn.attention_map.S"]
    assert S.shape == (17, 17)
    attention = plain.blocks[0].attn
    x = torch.randn(2, 17, 32, dtype=torch.float64)
    q, k, v = attention.qkv(x).reshape(2, 17, 3, 2, 16).permute(2, 0, 3, 1, 4)
    A = (q @ k.transpose(-2, -1) / 16**0.5).softmax(-1) * S
    expected = attention.proj((A @ v).transpose(1, 2).reshape(2, 17, 32))
    torch.testing.assert_close(model.blocks[0].attn(x), expected)


def test_map_scales_have_the_size_of_a_window() -> None:
    attached = vpeft_bench.attach(build("swin"), "attn_scale", dra=False)
    assert {tuple(p.shape) for p in attached.trainable_parameters()} == {(16, 16)}


def test_offsets_stand_behind_attention_and_mlp() -> None:
    model, plain = build("vit").double(), build("vit").double()
    named = randomise(vpeft_bench.attach(model, "attn_scale", granularity="head"))
    for index in range(3):
        block = plain.blocks[index]
        s = named[f"blocks.{index}.attn.qkv.delta.s"].repeat_interleave(16)
        block.attn.qkv.weight.data[64:] *= s[:, None]
        block.attn.qkv.bias.data[64:] *= s
        block.attn.proj.bias.data += named[f"blocks.{index}.attn.proj.delta.d"]
        block.mlp.fc2.bias.data += named[f"blocks.{index}.mlp.fc2.delta.d"]
    x = images().double()
    torch.testing.assert_close(model(x), plain(x))


def test_offsets_need_a_bias_to_be_merged() -> None:
    model = build("vit")
    model.blocks[1].mlp.fc2.register_parameter("bias", None)
    attached = vpeft_bench.attach(model, "attn_scale", granularity="head")
    with pytest.raises(NotMergeableError, match=r"blocks\.1\.mlp\.fc2.*no bias"):
        attached.merge()


def test_map_scales_need_a_fixed_number_of_tokens() -> None:
    model = build("vit")
    model.dynamic_img_size = True
    with pytest.raises(UnsupportedBackboneError, match="granularity=head"):
        vpeft_bench.attach(model, "attn_scale")
    vpeft_bench.attach(model, "attn_scale", granularity="head")


# ---- ARC ----------------------------------------------------------------------------------------


def test_arc_is_the_papers_formula_in_front_of_both_linears() -> None:
    model, plain = build("vit").double(), build("vit").double()
    named = randomise(vpeft_bench.attach(model, "arc", bottleneck=5))
    block, reference = model.blocks[2], plain.blocks[2]
    x = torch.randn(4, 32, dtype=torch.float64)
    for path, leaf, linear in (
        ("attn.qkv", block.attn.qkv, reference.attn.qkv),
        ("mlp.fc1", block.mlp.fc1, reference.mlp.fc1),
    ):
        P = named[f"blocks.0.{path}.input.shared.P"]
        c, b = named[f"blocks.2.{path}.input.c"], named[f"blocks.2.{path}.input.b"]
        assert P.shape == (32, 5)
        torch.testing.assert_close(leaf(x), linear(x + x @ P @ torch.diag(c) @ P.T + b))


def test_arc_shares_one_projection_per_width_and_place() -> None:
    attached = vpeft_bench.attach(build("swin"), "arc")
    shapes = [p.shape for n, p in attached.named_trainable_parameters() if n.endswith(".P")]
    assert sorted(shapes) == [(16, 50), (16, 50), (32, 50), (32, 50)]


def test_arc_on_the_stream_changes_the_shortcut_and_says_so() -> None:
    """The authors' Swin code: x <- A(x), then x + mlp(norm2(x))."""
    model, plain = build("swin").double(), build("swin").double()
    attached = vpeft_bench.attach(model, "arc", mlp_site="stream", bottleneck=5)
    named = randomise(attached)
    block: Any = block_map(plain).blocks[0].module
    path = "layers.0.blocks.0."
    A: Any = {}
    for site in ("attn.qkv.input", "stream_mid"):
        A[site] = tuple(named[f"{path}{site}.{name}"] for name in ("shared.P", "c", "b"))

    def adapt(x: Tensor, site: str) -> Tensor:
        P, c, b = A[site]
        return x + (x @ P * c) @ P.T + b

    x = torch.randn(2, 16, 16, 16, dtype=torch.float64)
    block.attn.qkv.register_forward_pre_hook(lambda _, given: adapt(given[0], "attn.qkv.input"))
    mid = adapt(x + block._attn(block.norm1(x)), "stream_mid")
    expected = mid + block.mlp(block.norm2(mid))
    torch.testing.assert_close(block_map(model).blocks[0].module(x), expected)
    with pytest.raises(NotMergeableError, match="mlp_site=stream"):
        attached.merge()


# ---- Partial-k ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "path"), [("vit", "blocks.2."), ("swin", "layers.1.blocks.1.")])
def test_partial_trains_the_last_block_and_no_norm_behind_it(kind: str, path: str) -> None:
    model = build(kind)
    attached = vpeft_bench.attach(model, "partial")
    names = [n for n, _ in attached.named_trainable_parameters()]
    assert names == [n for n, _ in model.named_parameters() if n.startswith(path)]
    attached.detach()
    attached = vpeft_bench.attach(model, "partial", final_norm=True)
    more = [n for n, _ in attached.named_trainable_parameters() if n not in names]
    assert more == ["norm.weight", "norm.bias"]


def test_partial_reads_what_enters_the_first_trained_block() -> None:
    attached = vpeft_bench.attach(build("vit"), "partial", last_blocks=2)
    assert attached.method.reads(attached.backbone) == ("tokens.1",)


def test_partial_wants_no_more_blocks_than_there_are() -> None:
    with pytest.raises(UnsupportedBackboneError, match="the backbone has 3"):
        vpeft_bench.attach(build("vit"), "partial", last_blocks=4)
